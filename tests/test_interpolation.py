"""Weights between two states: the formula, what is copied, and how val chooses."""

import numpy as np
import pytest
import torch

from tasks.training.gate import ValSet
from tasks.training.interpolation import choose_interpolation, interpolate
from tasks.training.state import copy_tensors

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


def logits_with_loss(loss: float) -> np.ndarray:
    share = np.exp(-loss)
    table = np.log([[share, 1 - share], [1 - share, share]]).astype(np.float32)
    return table[VAL.labels]


@pytest.mark.parametrize("best", [0.25, 0.5, 1.0])
def test_the_share_with_the_lowest_val_loss_ends_in_the_model(best: float):
    norm = torch.nn.BatchNorm1d(2)
    chosen = choose_interpolation(
        norm,
        state_of(0.0, 1),
        state_of(1.0, 2),
        shares=[0.25, 0.5, 0.75, 1.0],
        predict_val=lambda: logits_with_loss(0.1 + abs(float(norm.weight[0].detach()) - best)),
        val=VAL,
    )
    assert chosen.alpha == best
    assert norm.weight.tolist() == pytest.approx([best, best])
    assert chosen.val_losses[best] == pytest.approx(0.1, rel=1e-4)
    np.testing.assert_allclose(chosen.val_logits, logits_with_loss(0.1), rtol=1e-5)
