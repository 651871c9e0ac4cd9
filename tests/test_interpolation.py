"""Weights between two states: the formula, what is copied, and how val chooses."""

import numpy as np
import pytest
import torch
from conftest import tells

from tasks.judging.metrics import image_losses
from tasks.judging.rule import ValSet
from tasks.training.resume.checkpoints import copy_tensors
from tasks.training.verdicts import Candidate, Chosen, choose_weights, explain_choice, interpolate

VAL = ValSet(np.array([0, 1, 0]), ["a", "b", "c"])


def state_of(value: float, batches: int) -> dict[str, torch.Tensor]:
    norm = torch.nn.BatchNorm1d(2)
    with torch.no_grad():
        norm.weight.fill_(value)
        norm.running_mean = torch.full((2,), 10 * value)
    norm.num_batches_tracked = torch.tensor(batches)
    return copy_tensors(norm, list(norm.state_dict()))


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_weights_are_mixed_by_the_formula(alpha: float):
    mixed = interpolate(state_of(1.0, 3), state_of(5.0, 9), alpha)
    expected = (1 - alpha) * 1.0 + alpha * 5.0
    assert mixed["weight"].tolist() == pytest.approx([expected] * 2)
    assert mixed["running_mean"].tolist() == pytest.approx([10 * expected] * 2)


def test_whole_numbers_are_copied_not_averaged():
    mixed = interpolate(state_of(1.0, 3), state_of(5.0, 8), 0.5)
    assert mixed["num_batches_tracked"] == 8
    assert mixed["num_batches_tracked"].dtype == torch.int64


def test_the_ends_are_the_two_states_to_the_last_bit():
    one, other = state_of(1 / 3, 1), state_of(2 / 7, 2)
    assert torch.equal(interpolate(one, other, 0.0)["weight"], one["weight"])
    assert torch.equal(interpolate(one, other, 1.0)["weight"], other["weight"])


@pytest.fixture(autouse=True)
def losses_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of one loss for all images hold nothing but a temperature."""
    monkeypatch.setattr(ValSet, "losses", lambda val, logits: image_losses(logits, val.labels))


def logits_with_loss(loss: float) -> np.ndarray:
    share = np.exp(-loss)
    table = np.log([[share, 1 - share], [1 - share, share]]).astype(np.float32)
    return table[VAL.labels]


def choose(
    norm: torch.nn.BatchNorm1d, best: float, average: dict[str, torch.Tensor] | None = None
) -> Chosen:
    """Choose among shares of weights 0 to 1 where val likes a weight of `best`."""
    return choose_weights(
        norm,
        state_of(0.0, 1),
        state_of(1.0, 2),
        shares=[0.25, 0.5, 0.75, 1.0],
        average=average,
        predict_val=lambda: logits_with_loss(0.1 + abs(float(norm.weight[0].detach()) - best)),
        val=VAL,
    )


@pytest.mark.parametrize("best", [0.25, 0.5, 1.0])
def test_the_share_with_the_lowest_val_loss_ends_in_the_model(best: float):
    norm = torch.nn.BatchNorm1d(2)
    chosen = choose(norm, best)
    assert chosen.best == Candidate(best)
    assert norm.weight.tolist() == pytest.approx([best, best])
    assert chosen.val_losses[Candidate(best)] == pytest.approx(0.1, rel=1e-4)
    np.testing.assert_allclose(chosen.val_logits, logits_with_loss(0.1), rtol=1e-5)


@pytest.mark.parametrize(
    ("best", "averaged"), [(0.6, True), (0.75, False)], ids=["average", "share"]
)
def test_the_average_of_phases_wins_only_where_val_likes_it_best(best: float, averaged: bool):
    norm = torch.nn.BatchNorm1d(2)
    average = {"weight": torch.full((2,), 0.6)}
    chosen = choose(norm, best, average)
    assert chosen.best == (Candidate(1.0, averaged=True) if averaged else Candidate(best))
    assert norm.weight.tolist() == pytest.approx([best, best])
    assert len(chosen.val_losses) == 5
    assert norm.num_batches_tracked == 2


def test_tensors_outside_the_average_are_those_of_the_end():
    norm = torch.nn.BatchNorm1d(2)
    choose(norm, 0.6, {"weight": torch.full((2,), 0.6)})
    assert norm.running_mean is not None
    assert norm.running_mean.tolist() == pytest.approx([10.0, 10.0])


def test_of_equally_good_candidates_the_first_is_kept():
    norm = torch.nn.BatchNorm1d(2)
    assert choose(norm, 1.0, {"weight": torch.ones(2)}).best == Candidate(1.0)


def test_the_choice_is_told_with_every_loss():
    norm = torch.nn.BatchNorm1d(2)
    (note,) = explain_choice(choose(norm, 0.6, {"weight": torch.full((2,), 0.6)}))
    best, _, tried = note.partition("(")
    assert tells(best, "the average of the phases", "lowest loss")
    assert tells(tried, "0.25: 0.4500", "0.5: 0.2000", "the average of the phases: ")
    (note,) = explain_choice(None)
    assert tells(note, "rejected", "every phase", "rolled back")
