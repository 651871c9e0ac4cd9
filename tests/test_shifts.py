"""Tests of a shift against exact distributions, and how often they are wrong together."""

from collections.abc import Callable
from itertools import product
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from scipy.special import comb
from scipy.stats import ks_2samp

from tasks import monitor
from tasks.delivery.appearance import FACTS, Appearance
from tasks.monitor import judge_windows, windows_of
from tasks.watching import repeated
from tasks.watching.looks import Subject
from tasks.watching.shifts import (
    Seen,
    appearance_p_values,
    draw_known,
    features_p_value,
    kinds_p_value,
    shares_p_value,
    strangers_p_value,
    strangers_share,
)

KNOWN = 60


def seen(count: int, *, seed: int, shift: float = 0.0, classes: int = 3) -> Seen:
    """Images whose features, scores and classes have nothing to do with each other."""
    rng = np.random.default_rng(seed)
    features = rng.normal(shift, 1, (count, 4)).astype(np.float32)
    scores, predicted = rng.normal(shift, 1, count), rng.integers(0, classes, count)
    kinds = [f"kind {number}" for number in rng.integers(0, classes, count)]
    looks = Appearance(rng.normal(shift, 1, (count, len(FACTS))), kinds)
    return Seen(features, scores, predicted, looks)


def of(*, scores: Any = (), predicted: Any = ()) -> Seen:
    count = max(len(scores), len(predicted))
    nothing, no_looks = np.zeros((count, 1), np.float32), Appearance.unknown(count)
    return Seen(nothing, np.asarray(scores, np.float64), np.asarray(predicted, np.int64), no_looks)


# the reference -----------------------------------------------------------------------------------


def test_a_group_counts_once_and_features_of_training_images_not_at_all() -> None:
    groups = np.repeat(np.arange(20), 5)
    domain: Any = SimpleNamespace(
        held_out=np.repeat(np.arange(100), 4).reshape(100, 4).astype(np.float32),
        held_out_predicted=np.arange(100),
        held_out_groups=groups,
        held_out_appearance=Appearance(np.arange(100.0)[:, None], [str(n) for n in range(100)]),
        scores=lambda features: features[:, 0],
    )
    known = draw_known(domain)
    assert groups[known.predicted].tolist() == list(range(20))
    np.testing.assert_array_equal(known.features[:, 0], known.predicted)
    np.testing.assert_array_equal(known.appearance.numbers[:, 0], known.predicted)
    assert known.appearance.kinds == [str(number) for number in known.predicted]
    assert len(set(known.predicted % 5)) > 1  # not always the first, which may be of one class


# appearance --------------------------------------------------------------------------------------


def test_facts_are_tested_one_by_one_without_those_that_are_unknown() -> None:
    known, new = seen(40, seed=1), seen(30, seed=2)
    old, now = known.appearance.numbers, new.appearance.numbers
    old[:30, 0], now[:10, 0] = np.nan, np.nan
    now[:, 1] += 3
    now[:, 2] = np.nan
    found = appearance_p_values(known, new)
    assert tuple(found) == FACTS
    assert found["brightness"] == ks_2samp(old[30:, 0], now[10:, 0], method="exact").pvalue
    assert found["border"] < 1e-6
    assert found["sharpness"] == 1


def test_kinds_of_files_are_tested_by_their_shares_without_those_that_are_unknown() -> None:
    known, new = seen(40, seed=1), seen(30, seed=2)
    found = kinds_p_value(known, new, needed=1e-4, seed=3)
    codes = [[int(kind[-1]) for kind in one.appearance.kinds] for one in (known, new)]
    one, other = (np.array(some) for some in codes)
    assert found == pytest.approx(shares_p_value(one, other, needed=1e-4, seed=3), rel=0.5)
    new.appearance.kinds[:] = ["PNG"] * 30
    assert kinds_p_value(known, new, needed=1e-4, seed=3) <= 1e-4
    new.appearance.kinds[1:] = [""] * 29
    assert kinds_p_value(known, new, needed=1e-4, seed=3) == 1


def test_facts_of_one_world_are_seldom_told_apart_also_where_many_are_the_same() -> None:
    p_values = []
    for seed in range(400):
        known, new = seen(60, seed=seed), seen(25, seed=1000 + seed)
        for one in (known, new):
            one.appearance.numbers[:, 2] = np.round(one.appearance.numbers[:, 2])
        p_values.append(list(appearance_p_values(known, new).values()))
    assert ((np.array(p_values) <= 0.05).mean(axis=0) <= 0.075).all()


# out of the domain -------------------------------------------------------------------------------


@pytest.mark.parametrize(("known", "new", "beyond"), [(20, 7, 1), (12, 5, 0), (15, 9, 4)])
def test_the_test_of_strangers_is_the_exact_law_of_exceedances(
    known: int, new: int, beyond: int
) -> None:
    """Of all orders of both samples, all alike likely: how many new ones lie above the cut."""
    scores = np.arange(known, dtype=np.float64)
    threshold = known - 1 - beyond
    orders = comb(known + new, new)
    for found in range(new + 1):
        above = sum(
            comb(more + beyond, more) * comb(known + new - more - beyond - 1, new - more)
            for more in range(found, new + 1)
        )
        incoming = of(scores=[known] * found + [-1] * (new - found))
        p_value = strangers_p_value(of(scores=scores), incoming, threshold)
        assert p_value == pytest.approx(above / orders)


def test_a_threshold_that_nothing_held_out_keeps_tells_nothing() -> None:
    assert strangers_p_value(of(scores=[1, 2]), of(scores=[9] * 30), 0.5) == 1.0


def test_the_share_has_clopper_and_pearsons_interval() -> None:
    share = strangers_share(of(scores=[0.0] * 9 + [1.0]), 0.5)
    assert (share.value, share.n) == (0.1, 10)
    assert share.low == pytest.approx(1 - 0.975 ** (1 / 10))
    assert share.high == pytest.approx(0.4450, abs=1e-4)


# classes -----------------------------------------------------------------------------------------


def exact_g_test(known: list[int], incoming: list[int]) -> float:
    """Sum the probabilities of all tables with these margins whose G reaches that of the data."""

    def terms(table: tuple[int, ...]) -> float:
        cells = [*table, *(t - n for t, n in zip(total, table, strict=True))]
        return sum(cell * np.log(cell) for cell in cells if cell)

    total = [a + b for a, b in zip(known, incoming, strict=True)]
    n, observed, p_value = sum(incoming), terms(tuple(incoming)), 0.0
    for table in product(*(range(t + 1) for t in total)):
        if sum(table) == n and terms(table) >= observed - 1e-9:
            ways = [comb(t, x) for t, x in zip(total, table, strict=True)]
            p_value += float(np.prod(ways)) / comb(sum(total), n)
    return p_value


@pytest.mark.parametrize(
    ("known", "incoming"), [([8, 3, 1], [3, 6, 4]), ([9, 2, 2], [5, 1, 1]), ([5, 5, 0], [1, 2, 5])]
)
def test_random_tables_approach_the_exact_g_test(known: list[int], incoming: list[int]) -> None:
    one, other = (np.repeat(np.arange(3), counts) for counts in (known, incoming))
    found = [shares_p_value(one, other, needed=1e-4, seed=seed) for seed in range(300)]
    # Where draws stop after h hits, h / l lies above p by a share of up to 1 / h.
    assert np.mean(found) == pytest.approx(exact_g_test(known, incoming), rel=0.25)


def test_a_class_that_was_never_predicted_is_told() -> None:
    one, other = np.array([0, 1] * 30), np.array([2] * 20)
    assert shares_p_value(one, other, needed=1e-4, seed=0) <= 1e-4


# features ----------------------------------------------------------------------------------------


def test_features_that_moved_reach_the_p_value_that_is_needed() -> None:
    known = seen(KNOWN, seed=0)
    moved = features_p_value(known, seen(20, seed=1, shift=3), needed=1e-4, seed=0)
    same = features_p_value(known, seen(20, seed=1), needed=1e-4, seed=0)
    assert moved <= 1e-4
    assert same > 0.01


# together ----------------------------------------------------------------------------------------


def alarms(looks: int, draw: Callable[[int], Seen]) -> int:
    """Looks that alarm, of two windows each."""
    count = 0
    for look in range(looks):
        known, new, before = seen(KNOWN, seed=3 * look), draw(look), seen(20, seed=3 * look + 1)
        tests = judge_windows(known, windows_of(new, [before, new]), 1.5, 1)
        assert len(tests) == 2 * len(get_args(Subject))
        count += any(test.corrected <= repeated.ALARM_RATE for test in tests)
    return count


def test_all_tests_of_a_look_together_keep_its_level(monkeypatch: pytest.MonkeyPatch) -> None:
    level, looks = 0.2, 200
    monkeypatch.setattr(repeated, "ALARM_RATE", level * (1 + repeated.HALF_SPENT))
    assert repeated.level_of(1) == pytest.approx(level)
    monkeypatch.setattr(monitor, "ALARM_RATE", repeated.ALARM_RATE)

    def judged(tests: Any, look: int) -> Any:  # 1 is no bound where the rate is above it
        return np.where(np.array(tests) <= repeated.smallest_needed(12, look), 0.0, np.inf)

    monkeypatch.setattr(monitor, "correct", judged)
    wrong = alarms(looks, lambda look: seen(20, seed=3 * look + 2))
    assert wrong <= looks * level + 3 * np.sqrt(looks * level * (1 - level))
    assert wrong > 0
    assert alarms(10, lambda look: seen(20, seed=look, shift=2.0)) == 10


def test_windows_are_the_new_images_and_the_newest_of_all() -> None:
    parts = [seen(count, seed=count) for count in (300, 150, 100)]
    windows = windows_of(parts[-1], parts)
    assert {name: len(window.scores) for name, window in windows.items()} == {
        "new": 100,
        "recent": monitor.RECENT_IMAGES,
    }
    np.testing.assert_array_equal(windows["recent"].scores[-100:], parts[-1].scores)
    assert list(windows_of(parts[-1], parts[-1:])) == ["new"]
