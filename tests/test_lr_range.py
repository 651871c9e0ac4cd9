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
    assert rates[0] == pytest.approx(1e-7)
    np.testing.assert_allclose(rates[1:] / rates[:-1], 1e8**0.01)
    assert rates[-1] < 10


def test_losses_are_smoothed_as_fastai_does():
    losses = np.random.default_rng(1).uniform(0.5, 2, 20)
    average, expected = torch.tensor(0.0, dtype=torch.float64), []
    for number, loss in enumerate(torch.from_numpy(losses), start=1):
        average = torch.lerp(loss, average, 0.98)
        expected.append(float(average / (1 - 0.98**number)))
    np.testing.assert_allclose(smooth_losses(list(losses)), expected, rtol=1e-12)
    assert smooth_losses([0.7, 0.7, 0.7]) == pytest.approx([0.7] * 3)


def curve_of(points: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Rates and a curve that is straight between points (power of ten of the rate, loss)."""
    powers = np.linspace(-7, 1, 81)
    return 10**powers, np.interp(powers, *zip(*points, strict=True))


def test_the_rate_of_the_steepest_descent_before_the_minimum_is_suggested():
    rates, curve = curve_of([(-7, 2), (-4, 1.9), (-3, 1.2), (-2, 1), (-1, 1.3), (0, 8), (1, 0.9)])
    found = suggest_rate(rates[:-5], curve[:-5])
    assert -4.01 < np.log10(found.suggested) < -3.01
    assert found.falls
    assert found.lowest_at == pytest.approx(1e-2)
    assert (found.first_loss, found.lowest_loss) == pytest.approx((2, 1))


def test_a_steeper_descent_after_the_minimum_does_not_count():
    rates, curve = curve_of([(-7, 2), (-4, 2), (-2, 1), (-1, 5), (-0.9, 1.1), (1, 1.1)])
    assert -4.01 <= np.log10(suggest_rate(rates, curve).suggested) < -2


def test_where_no_rate_helps_the_highest_is_suggested_that_does_no_harm():
    rates, curve = curve_of([(-7, 1), (-6, 0.995), (-5, 1), (-2, 1.0945), (1, 2)])
    found = suggest_rate(rates, curve)
    assert not found.falls
    at = int(np.searchsorted(rates, found.suggested * 1.001)) - 1
    assert curve[at] <= 1.1 * 0.995 < curve[at + 1]
    assert found.lowest_loss == pytest.approx(0.995)


def test_a_loss_that_never_rises_allows_the_highest_rate_that_was_tried():
    assert suggest_rate(*curve_of([(-7, 1), (1, 1)])).suggested == pytest.approx(10)


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
    assert 1e-5 < found.suggested < found.lowest_at < 10


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


def test_the_words_say_the_rate_and_what_it_lowers(setting: Setting):
    test = RangeTest(
        suggested=1.3e-4, falls=True, steps=80, first_loss=0.9, lowest_loss=0.5, lowest_at=2e-3
    )
    (words,) = describe_range_test(test, setting(backbone_lr=2e-4))
    assert "suggests 0.00013 for the head" in words
    assert "from 0.900 to 0.500 at 0.002" in words
    assert words.endswith("The backbone's rate of 0.0002 is lowered to it.")
    (words,) = describe_range_test(test, setting(backbone_lr=1e-4))
    assert "lowered" not in words
    assert describe_range_test(None, setting()) == []
