"""Settings compared on val: the order, and how sure a difference is."""

from collections.abc import Sequence

import numpy as np
import pytest

from tasks.evaluation.comparison import Answers, Ranked, rank
from tasks.judging.statistics import paired_accuracy_interval

N = 60
IMAGES = tuple(f"image{number}" for number in range(N))
GROUPS = tuple(f"plate{number // 2}" for number in range(N))


def answers(wrong: Sequence[int], loss: float = 0.5, images: tuple[str, ...] = IMAGES) -> Answers:
    right = np.ones(N, dtype=np.bool_)
    right[list(wrong)] = False
    return Answers(images, GROUPS, right, loss)


def ranked(runs: dict[str, dict[int, Answers]]) -> list[Ranked]:
    return rank(runs, confidence=0.95, resamples=500, seed=3)


def test_the_best_on_val_comes_first_whatever_the_order_of_the_runs() -> None:
    runs = {"a": {1: answers(range(9))}, "b": {1: answers(range(3))}, "c": {1: answers(range(6))}}
    backwards = dict(reversed(runs.items()))
    assert [one.setting for one in ranked(runs)] == ["b", "c", "a"]
    assert ranked(runs) == ranked(backwards)


def test_accuracy_is_the_mean_over_seeds() -> None:
    (best, second) = ranked(
        {
            "steady": {1: answers(range(6)), 2: answers(range(6))},
            "lucky once": {1: answers([]), 2: answers(range(18))},
        }
    )
    assert (best.setting, best.accuracy, best.seeds) == ("steady", pytest.approx(0.9), (1, 2))
    assert (second.setting, second.accuracy) == ("lucky once", pytest.approx(0.85))


def test_calibrated_loss_decides_a_tie() -> None:
    runs = {"surer": {1: answers([0], loss=0.2)}, "unsure": {1: answers([1], loss=0.3)}}
    assert [one.setting for one in ranked(runs)] == ["surer", "unsure"]
    assert [one.setting for one in ranked(dict(reversed(runs.items())))] == ["surer", "unsure"]


def test_a_setting_that_lacks_a_seed_comes_after_those_that_lack_none() -> None:
    (first, second) = ranked(
        {"half": {1: answers([])}, "whole": {1: answers([0]), 2: answers([0])}}
    )
    assert (first.setting, second.setting) == ("whole", "half")
    assert second.seeds == (1,)
    # What the two share is compared all the same: one image of the sixty, on seed 1.
    assert second.difference is not None
    assert second.difference.value == pytest.approx(1 / N)
    assert second.difference.n == N


def test_a_setting_whose_runs_all_failed_is_left_out() -> None:
    assert [one.setting for one in ranked({"a": {1: answers([])}, "none": {}})] == ["a"]
    assert ranked({"none": {}}) == []


def test_the_difference_is_paired_over_seeds_and_images_of_one_group_go_together() -> None:
    chosen = {1: answers([0]), 2: answers([1])}
    other = {1: answers(range(10)), 2: answers(range(8))}
    (_, second) = ranked({"a": chosen, "b": other})
    expected = paired_accuracy_interval(
        np.concatenate([chosen[1].right, chosen[2].right]),
        np.concatenate([other[1].right, other[2].right]),
        [*GROUPS, *GROUPS],
        confidence=0.95,
        resamples=500,
        seed=3,
    )
    assert second.difference == expected
    assert second.difference.value == pytest.approx(-16 / (2 * N))
    # As if the two seeds were other images the interval would be too narrow.
    apart = paired_accuracy_interval(
        np.concatenate([chosen[1].right, chosen[2].right]),
        np.concatenate([other[1].right, other[2].right]),
        [*GROUPS, *(f"again {group}" for group in GROUPS)],
        confidence=0.95,
        resamples=500,
        seed=3,
    )
    assert second.difference.low is not None
    assert apart.low is not None
    assert second.difference.low < apart.low


def test_settings_that_saw_other_val_images_are_not_compared() -> None:
    others = tuple(f"other{number}" for number in range(N))
    (first, second) = ranked({"a": {1: answers([])}, "b": {1: answers([0], images=others)}})
    assert first.difference is None
    assert second.difference is None
