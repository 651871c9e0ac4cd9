"""Rates rise linearly, then follow half a cosine."""

import pytest

from tasks.heads.schedule import warmup_cosine

TABLE = [  # step, steps, warm-up fraction, share by hand
    (0, 10, 0.2, 0.5),
    (1, 10, 0.2, 1.0),
    (2, 10, 0.2, 1.0),
    (6, 10, 0.2, 0.5),
    (4, 10, 0.2, 0.8535533905932737),  # (1 + cos(pi / 4)) / 2
    (9, 10, 0.2, 0.03806023374435663),  # (1 + cos(7 pi / 8)) / 2
    (0, 4, 0.0, 1.0),
    (2, 4, 0.0, 0.5),
    (0, 1, 0.0, 1.0),
    (0, 1, 0.9, 1.0),
]


@pytest.mark.parametrize(("step", "steps", "fraction", "share"), TABLE)
def test_share_is_as_computed_by_hand(step: int, steps: int, fraction: float, share: float):
    assert warmup_cosine(step, steps=steps, warmup_fraction=fraction) == pytest.approx(share)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_share_is_never_zero_above_one_or_rising_after_the_peak(steps: int, fraction: float):
    shares = [warmup_cosine(step, steps=steps, warmup_fraction=fraction) for step in range(steps)]
    assert all(0 < share <= 1 for share in shares)
    peak = shares.index(max(shares))
    assert shares[: peak + 1] == sorted(shares[: peak + 1])
    assert shares[peak:] == sorted(shares[peak:], reverse=True)
