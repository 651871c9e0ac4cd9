"""The range test: its curve and suggestion are fastai's, and it leaves nothing behind."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import with_values
from test_loop import Run, make_run
from tiny_finetune import make_inputs

from tasks.artifacts import read_record
from tasks.errors import TrainingError
from tasks.params import FinetuneParams, Params
from tasks.records import RangeTest
from tasks.training import lr_range, lr_suggestion
from tasks.training.lr_range import RangeTester
from tasks.training.lr_suggestion import (
    describe_range_test,
    rates_tried,
    smooth_losses,
    suggest_rate,
)
from tasks.training.phases import peak_rates

Setting = Callable[..., FinetuneParams]


@pytest.fixture
def setting(default_params: Params, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """Make a `finetune` block; the range test, which reads no head_lr, is made shorter."""
    monkeypatch.setattr(lr_suggestion, "STEPS", 30)

    def make(**values: object) -> FinetuneParams:
        asked = {"head_lr": 0.01, "batch_size": 8, "label_smoothing": 0.0, "cache_gb": 1.0}
        named = {f"finetune.{key}": value for key, value in {**asked, **values}.items()}
        return with_values(default_params, named).finetune

    return make


def make_tester(run: Run, params: FinetuneParams, seed: int = 17) -> RangeTester:
    return RangeTester(run.classifier, run.groups, run.trainer._examples, params, seed=seed)


def search(run: Run, params: FinetuneParams, seed: int = 17) -> RangeTest:
    return make_tester(run, params, seed).run(run.parts.open(5), 5)


# the curve and what it suggests ------------------------------------------------------------------


def test_rates_rise_by_a_constant_factor_from_the_lowest():
    rates = rates_tried()
    assert len(rates) == 100
    assert rates[0] == pytest.approx(1e-6)
    np.testing.assert_allclose(rates[1:] / rates[:-1], 1e5**0.01)
    assert rates[-1] < 0.1


def test_losses_are_smoothed_with_the_correction_of_fastai():
    losses = np.random.default_rng(1).uniform(0.5, 2, 20)
    average, expected = torch.tensor(0.0, dtype=torch.float64), []
    for number, loss in enumerate(torch.from_numpy(losses), start=1):
        average = torch.lerp(loss, average, 0.8)
        expected.append(float(average / (1 - 0.8**number)))
    np.testing.assert_allclose(smooth_losses(list(losses)), expected, rtol=1e-12)
    assert smooth_losses([0.7, 0.7, 0.7]) == pytest.approx([0.7] * 3)


def curve_of(points: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Rates and a curve that is straight between points (power of ten of the rate, loss)."""
    powers = np.linspace(-7, 1, 81)
    return 10**powers, np.interp(powers, *zip(*points, strict=True))


def test_a_tenth_of_the_rate_of_the_lowest_loss_is_suggested():
    rates, curve = curve_of([(-7, 2), (-4, 1.9), (-3, 1.2), (-2, 1), (-1, 1.3), (0, 8), (1, 0.9)])
    found = suggest_rate(rates[:-5], curve[:-5])
    assert (found.falls, found.rises) == (True, True)
    assert found.lowest_at == pytest.approx(1e-2)
    assert found.suggested == pytest.approx(1e-3)
    assert (found.first_loss, found.lowest_loss) == pytest.approx((2, 1))


def test_where_no_rate_helps_a_tenth_of_the_highest_harmless_one_is_suggested():
    rates, curve = curve_of([(-7, 1), (-6, 0.995), (-5, 1), (-2, 1.0945), (1, 2)])
    found = suggest_rate(rates, curve)
    assert (found.falls, found.rises) == (False, True)
    at = int(np.searchsorted(rates, 10 * found.suggested * 1.001)) - 1
    assert curve[at] <= 1.1 * 0.995 < curve[at + 1]
    assert found.lowest_loss == pytest.approx(0.995)


def test_a_loss_that_was_high_before_its_minimum_has_not_risen():
    found = suggest_rate(*curve_of([(-7, 1.15), (-5, 1), (1, 1.05)]))
    assert (found.falls, found.rises) == (True, False)


def test_no_suggestion_is_above_a_tenth_of_the_highest_rate_that_is_tried():
    rates = rates_tried()
    flat = suggest_rate(rates, np.ones(len(rates)))
    assert (flat.falls, flat.rises) == (False, False)
    falling = suggest_rate(rates, np.linspace(2, 1, len(rates)))
    assert flat.suggested == falling.suggested == pytest.approx(rates[-1] / 10)
    assert rates[-1] / 10 < 0.01


def test_a_single_rate_is_no_test():
    with pytest.raises(TrainingError, match=r"head_lr is auto, but training breaks down at once"):
        suggest_rate(np.array([1e-7]), np.array([0.5]))


# on a network ------------------------------------------------------------------------------------


def test_a_search_leaves_weights_optimizer_and_random_numbers_as_they_were(
    tmp_path: Path, setting: Setting
):
    params = setting(mixup_alpha=0.2)
    run = make_run(tmp_path, params, head="mlp")
    before, random = run.weights(), torch.get_rng_state()
    search(run, params)
    after = run.weights()
    assert [
        name for name in before if before[name].numpy().tobytes() != after[name].numpy().tobytes()
    ] == []
    assert torch.equal(torch.get_rng_state(), random)
    assert run.trainer._optimizer.state == {}
    assert all(parameter.grad is None for parameter in run.classifier.parameters())


def test_training_after_a_search_is_training_without_one(tmp_path: Path, setting: Setting):
    params = setting(epochs=1, backbone_lr=0.003)
    plain = make_run(tmp_path / "plain", params, head="mlp")
    searched = make_run(tmp_path / "searched", params, head="mlp")
    search(searched, params)
    assert plain.go().history == searched.go().history


def test_the_same_seed_finds_the_same_rate(tmp_path: Path, setting: Setting):
    params = setting()
    one, other, third = (make_run(tmp_path / name, params) for name in "abc")
    assert search(one, params) == search(other, params)
    assert search(third, params, seed=18) != search(one, params)


def test_a_new_head_gets_a_rate_at_which_it_learns(tmp_path: Path, setting: Setting):
    params = setting(batch_size=16)
    found = search(make_run(tmp_path, params), params)
    assert found.falls
    assert 1e-5 < found.suggested == pytest.approx(found.lowest_at / 10)


def test_losses_of_the_lowest_rates_are_those_of_the_start(
    tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch
):
    curves = []
    monkeypatch.setattr(lr_range, "suggest_rate", lambda rates, curve: curves.append(curve) or None)
    params = setting(mixup_alpha=0.2)
    search(make_run(tmp_path, params, head="mlp"), params)
    flat = curves[0][:4]
    assert np.ptp(flat) < 1e-3
    assert flat[0] > 0.5


def test_the_search_ends_when_the_loss_is_four_times_its_lowest(
    tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch
):
    params = setting()
    run = make_run(tmp_path, params)
    tester = make_tester(run, params)
    losses = iter([*[1.0] * 30, *[1.0] * 10, *[50.0] * 20])
    monkeypatch.setattr(tester, "_step", lambda *args, **named: next(losses))
    found = tester.run(run.parts.open(5), 5)
    assert 10 < found.steps < 20
    assert not found.falls


def test_the_backbone_never_gets_a_higher_rate_than_the_head(tmp_path: Path, setting: Setting):
    params = setting(backbone_lr=1e-3, lr_decay=0.5)
    groups = make_run(tmp_path, params).groups
    low = peak_rates(groups, 4, params, head_lr=1e-5)
    assert low == pytest.approx({"head": 1e-5, groups[5].name: 1e-5, groups[4].name: 5e-6})
    high = peak_rates(groups, 4, params, head_lr=1e-2)
    assert high == pytest.approx({"head": 1e-2, groups[5].name: 1e-3, groups[4].name: 5e-4})


def test_what_was_found_is_read_again_or_found_again(tmp_path: Path, setting: Setting):
    params, folder = setting(), tmp_path / "checkpoints"
    inputs = make_inputs(tmp_path / "inputs")
    first = make_run(tmp_path / "a", params, inputs)
    found = make_tester(first, params).run_once(first.parts, 5, folder=folder)
    assert read_record(folder / "range_test.json", RangeTest) == found
    second = make_run(tmp_path / "b", params, inputs)
    again = make_tester(second, params).run_once(second.parts, 5, folder=folder)
    assert again == found
    assert not (tmp_path / "b" / "activations").exists()
    (folder / "range_test.json").write_text("{")
    assert make_tester(second, params).run_once(second.parts, 5, folder=folder) == found


def test_a_loss_that_is_no_number_from_the_start_stops_the_run(
    tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch
):
    params = setting()
    run = make_run(tmp_path, params)
    tester = make_tester(run, params)
    monkeypatch.setattr(tester, "_step", lambda *args, **named: float("nan"))
    with pytest.raises(TrainingError, match="breaks down at once, even at a rate of 1e-06"):
        tester.run(run.parts.open(5), 5)


@pytest.mark.parametrize(("head", "batch_size"), [("linear", 8)])
def test_training_at_the_rate_that_was_found_is_not_rolled_back(
    tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch, head: str, batch_size: int
):
    monkeypatch.setattr(lr_suggestion, "STEPS", 100)
    params = setting(batch_size=batch_size)
    found = search(make_run(tmp_path / "search", params, head=head), params)
    params = setting(batch_size=batch_size, head_lr=found.suggested, epochs=4, early_epochs=2,
        backbone_lr=min(2e-4, found.suggested))  # fmt: skip
    state = make_run(tmp_path / "train", params, head=head).go()
    assert [phase.kept for phase in state.finished] == [True] * len(state.finished)


RANGE_TEST = RangeTest(
    suggested=1.3e-4,
    falls=True,
    rises=True,
    steps=80,
    first_loss=0.9,
    lowest_loss=0.5,
    lowest_at=1.3e-3,
)


def test_the_words_say_the_rate_and_what_it_lowers(setting: Setting):
    (words,) = describe_range_test(RANGE_TEST, setting(backbone_lr=2e-4))
    assert "suggests 0.00013 for the head, a tenth of 0.0013, where the loss is lowest" in words
    assert "falling from 0.900 to 0.500 (80 steps)." in words
    assert words.endswith("The backbone's rate of 0.0002 is lowered to it.")
    (words,) = describe_range_test(RANGE_TEST, setting(backbone_lr=1e-4))
    assert "lowered" not in words
    assert describe_range_test(None, setting()) == []


@pytest.mark.parametrize(
    ("rises", "said"), [(True, "rises by a tenth"), (False, "no rate changed the loss")]
)
def test_the_words_do_not_say_that_a_flat_loss_rose(setting: Setting, rises: bool, said: str):
    test = RANGE_TEST.model_copy(update={"falls": False, "rises": rises})
    (words,) = describe_range_test(test, setting())
    assert said in words
    assert ("rises" in words) == rises
