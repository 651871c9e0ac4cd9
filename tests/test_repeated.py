"""One rate of false alarms for all looks of a lifetime, against closed forms and naive loops."""

from typing import get_args

import numpy as np
import pytest

from tasks.watching.looks import Subject
from tasks.watching.repeated import (
    ALARM_RATE,
    HALF_SPENT,
    LIFETIME,
    correct,
    level_of,
    smallest_needed,
)
from tasks.watching.shifts import enough_for


@pytest.mark.parametrize("looks", [1, 2, HALF_SPENT, LIFETIME])
def test_so_many_looks_spend_their_share_and_never_more_than_the_rate(looks: int) -> None:
    spent = sum(level_of(look) for look in range(1, looks + 1))
    assert spent == pytest.approx(ALARM_RATE * looks / (HALF_SPENT + looks))
    assert spent < ALARM_RATE


def test_after_a_lifetime_the_rate_begins_anew_and_no_look_needs_more_draws_than_fit() -> None:
    levels = [level_of(look) for look in range(1, 3 * LIFETIME + 1)]
    assert levels[:LIFETIME] == levels[LIFETIME : 2 * LIFETIME] == levels[2 * LIFETIME :]
    tests = 2 * len(get_args(Subject))
    assert enough_for(smallest_needed(tests, LIFETIME)) < 2_000_000


def test_two_years_of_weekly_looks_leave_more_to_each_than_the_common_rule() -> None:
    for look in range(13, 2 * HALF_SPENT):
        assert level_of(look) > 6 * ALARM_RATE / (np.pi * look) ** 2
    assert level_of(HALF_SPENT) > level_of(1) / 5


def naive_holm(p_values: list[float], rate: float) -> list[bool]:
    """Reject from the smallest on, as long as p <= rate / hypotheses left."""
    rejected = [False] * len(p_values)
    for step, row in enumerate(np.argsort(p_values)):
        if p_values[row] > rate / (len(p_values) - step):
            break
        rejected[row] = True
    return rejected


@pytest.mark.parametrize("look", [1, 51])
def test_corrected_p_values_alarm_where_holms_procedure_rejects(look: int) -> None:
    rng = np.random.default_rng(look)
    for _ in range(200):
        p_values = (level_of(look) * rng.exponential(0.5, 6)).tolist()
        alarms = correct(p_values, look) <= ALARM_RATE
        assert alarms.tolist() == naive_holm(p_values, level_of(look))
        assert alarms.any() == (min(p_values) <= smallest_needed(6, look))


def test_correction_keeps_the_order_and_stays_a_probability() -> None:
    corrected = correct([0.3, 1e-9, 1e-5, 1.0], 7)
    assert np.all(np.diff(corrected[[1, 2, 0, 3]]) >= 0)
    assert corrected.max() == 1.0
    assert corrected[1] == pytest.approx(4e-9 * ALARM_RATE / level_of(7))
