"""Settings compared on val: the order, and how sure a difference is."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tasks.artifacts.tables import Manifest, ManifestRow
from tasks.evaluation.comparison import Answers, Ranked, rank, read_answers
from tasks.judging.rule import RESAMPLES, ValSet, judge_change
from tasks.judging.statistics import paired_accuracy_interval

N = 60
IMAGES = tuple(f"image{number}" for number in range(N))
GROUPS = tuple(f"plate{number // 2}" for number in range(N))


def answers(wrong: Sequence[int], loss: float = 0.5, images: tuple[str, ...] = IMAGES) -> Answers:
    right = np.ones(N, dtype=np.bool_)
    right[list(wrong)] = False
    return Answers(images, GROUPS, right, np.full(N, loss))


def ranked(runs: dict[str, dict[int, Answers]]) -> list[Ranked]:
    return rank(runs, confidence=0.95, seed=3)


def order(runs: dict[str, dict[int, Answers]]) -> list[str]:
    return [one.setting for one in ranked(runs)]


def test_the_lowest_loss_comes_first_whatever_the_order_of_the_runs() -> None:
    runs = {
        "a": {1: answers(range(3), loss=0.9)},
        "b": {1: answers(range(3), loss=0.3)},
        "c": {1: answers(range(3), loss=0.6)},
    }
    assert order(runs) == ["b", "c", "a"]
    assert ranked(runs) == ranked(dict(reversed(runs.items())))


def test_an_accuracy_that_is_better_by_chance_alone_does_not_speak() -> None:
    assert order({"a": {1: answers([], loss=0.5)}, "b": {1: answers([0], loss=0.4)}}) == ["b", "a"]


def test_an_accuracy_that_is_better_beyond_doubt_speaks_first() -> None:
    runs = {
        "surest": {1: answers(range(30), loss=0.2)},
        "next": {1: answers(range(29), loss=0.3)},
        "good": {1: answers(range(10), loss=0.4)},
        "as good": {1: answers(range(9), loss=0.5)},
        "bad": {1: answers(range(40), loss=0.6)},
    }
    found = ranked(runs)
    assert [one.setting for one in found] == ["good", "surest", "next", "as good", "bad"]
    assert [one.change.worse for one in found if one.change] == [True, True, False, True]


def test_an_accuracy_is_sure_over_all_seeds_together() -> None:
    wrong, right = answers(range(12), loss=0.2), answers(range(4), loss=0.3)
    others = tuple(f"plate {number}" for number in range(N // 2, N) for _ in range(2))
    once = {"a": {1: wrong}, "b": {1: right}}
    twice = {
        name: {1: one, 2: replace(one, groups=others)} for name, one in (("a", wrong), ("b", right))
    }
    assert (order(once), order(twice)) == (["a", "b"], ["b", "a"])


def test_figures_are_means_over_seeds() -> None:
    (best, second) = ranked(
        {
            "steady": {1: answers(range(6), 0.4), 2: answers(range(6), 0.4)},
            "lucky once": {1: answers([], 0.1), 2: answers(range(18), 0.9)},
        }
    )
    assert (best.setting, best.accuracy, best.seeds) == ("steady", pytest.approx(0.9), (1, 2))
    assert (second.setting, second.accuracy) == ("lucky once", pytest.approx(0.85))
    assert (best.loss, second.loss) == (pytest.approx(0.4), pytest.approx(0.5))


def test_a_setting_that_lacks_a_seed_comes_after_those_that_lack_none() -> None:
    (first, second) = ranked(
        {
            "half": {1: answers([], loss=0.1)},
            "whole": {1: answers(range(20)), 2: answers(range(20))},
        }
    )
    assert (first.setting, second.setting) == ("whole", "half")
    assert second.seeds == (1,)
    # What the two share is compared all the same: on seed 1.
    assert second.change is not None
    assert second.change.better
    assert second.change.accuracy.value == pytest.approx(20 / N)
    assert second.change.accuracy.n == N


def test_a_setting_whose_runs_all_failed_is_left_out() -> None:
    assert order({"a": {1: answers([])}, "none": {}}) == ["a"]
    assert ranked({"none": {}}) == []


def test_the_difference_is_paired_over_seeds_and_images_of_one_group_go_together() -> None:
    chosen = {1: answers([0], 0.4), 2: answers([1], 0.4)}
    other = {1: answers(range(10)), 2: answers(range(8))}
    (_, second) = ranked({"a": chosen, "b": other})
    expected = paired_accuracy_interval(
        np.concatenate([chosen[1].right, chosen[2].right]),
        np.concatenate([other[1].right, other[2].right]),
        [*GROUPS, *GROUPS],
        confidence=0.95,
        resamples=RESAMPLES,
        seed=3,
    )
    assert second.change is not None
    assert second.change.accuracy == expected
    assert second.change.accuracy.value == pytest.approx(-16 / (2 * N))
    assert second.change.loss.value == pytest.approx(0.1)
    # As if the two seeds were other images the interval would be too narrow.
    apart = paired_accuracy_interval(
        np.concatenate([chosen[1].right, chosen[2].right]),
        np.concatenate([other[1].right, other[2].right]),
        [*GROUPS, *(f"again {group}" for group in GROUPS)],
        confidence=0.95,
        resamples=RESAMPLES,
        seed=3,
    )
    assert expected.low is not None
    assert apart.low is not None
    assert expected.low < apart.low


def test_settings_that_saw_other_val_images_are_not_compared() -> None:
    others = tuple(f"other{number}" for number in range(N))
    (first, second) = ranked({"a": {1: answers([])}, "b": {1: answers([0], images=others)}})
    assert first.change is None
    assert second.change is None


# from logits -------------------------------------------------------------------------------------

LABELS = (np.arange(200) >= 180).astype(int)  # nine to one


def manifest() -> Manifest:
    return Manifest(
        [
            ManifestRow(f"{i}.png", "ab"[label], "val", str(i), f"{i:064}", 8, 8, "L")
            for i, label in enumerate(LABELS)
        ]
    )


def read(logits: np.ndarray, *, balanced: bool = False) -> dict[int, Answers]:
    return {1: read_answers(manifest(), logits.astype(np.float32), balanced=balanced)}


def draw(sureness: float, *, noise: float = 1.0, seed: int = 0) -> np.ndarray:
    """Logits that favor the label by `sureness`."""
    noises = np.random.default_rng(seed).normal(0, noise, (len(LABELS), 2))
    return np.asarray(sureness * np.eye(2)[LABELS] + noises)


def test_the_loss_tells_settings_apart_that_are_right_as_often() -> None:
    blunt = np.eye(2)[np.where(np.arange(200) % 5, LABELS, 1 - LABELS)]
    telling = np.where(np.arange(200)[:, None] % 5, blunt, blunt / 4)
    (first, second) = ranked({"blunt": read(blunt), "telling": read(telling)})
    assert (first.setting, first.accuracy) == ("telling", second.accuracy)


@pytest.mark.parametrize("balanced", [False, True])
def test_a_temperature_changes_nothing(*, balanced: bool) -> None:
    logits = {"a": draw(1.5), "b": draw(1.2, seed=1), "c": draw(0.3, seed=2)}
    before = ranked({name: read(one, balanced=balanced) for name, one in logits.items()})
    after = ranked(
        {
            name: read(factor * one, balanced=balanced)
            for factor, (name, one) in zip((8.0, 0.2, 3.0), logits.items(), strict=True)
        }
    )
    assert [one.setting for one in after] == [one.setting for one in before]
    assert [one.loss for one in after] == pytest.approx([one.loss for one in before], abs=1e-5)


def test_where_classes_count_the_same_the_setting_that_finds_the_rare_one_is_chosen() -> None:
    common = draw(0.0) + np.array([4.0, 0.0])
    finds = draw(1.5)
    assert order({"common": read(common), "finds": read(finds)}) == ["common", "finds"]
    (first, second) = ranked(
        {"common": read(common, balanced=True), "finds": read(finds, balanced=True)}
    )
    assert first.setting == "finds"
    assert first.balanced
    recalls = [np.mean(finds[label == LABELS].argmax(axis=1) == label) for label in range(2)]
    assert first.accuracy == pytest.approx(np.mean(recalls))
    assert second.change is not None
    assert second.change.reason.startswith("class-balanced val accuracy")


def test_a_setting_is_judged_as_any_change_is() -> None:
    one, other = draw(1.5), draw(1.0, seed=1)
    (_, second) = ranked({"one": read(one, balanced=True), "other": read(other, balanced=True)})
    val = ValSet(LABELS, [str(i) for i in range(200)], balanced=True)
    logits = one.astype(np.float32), other.astype(np.float32)
    assert second.change == judge_change(*logits, val, confidence=0.95, seed=3)
