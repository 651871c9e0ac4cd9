"""A note is made where the last epoch had learned more and knew less than the best one."""

import pytest
from conftest import tells

from tasks.judging.rule import EpochLosses, describe_gap, describe_overfitting

CURVES = {
    "overfits": ([(1.0, 0.9), (0.6, 0.5), (0.3, 0.7)], True),
    "both fall": ([(1.0, 0.9), (0.6, 0.5)], False),
    "both rise": ([(1.0, 0.9), (0.6, 0.5), (0.8, 0.7)], False),
    "val hardly rises": ([(1.0, 0.9), (0.6, 0.5), (0.3, 0.505)], False),
}


@pytest.mark.parametrize(("losses", "overfits"), CURVES.values(), ids=CURVES.keys())
def test_overfitting_is_a_falling_train_loss_with_a_rising_val_loss(
    losses: list[tuple[float, float]], overfits: bool
):
    epochs = [EpochLosses(train, val) for train, val in losses]
    note = describe_overfitting("Phase 1", epochs, 2, "epoch 2 was kept")
    assert (note is not None) == overfits
    if note is not None:
        assert tells(note, "Phase 1", "after epoch 2", "train loss fell from 0.600 to 0.300")
        assert tells(note, "val loss rose from 0.500 to 0.700", "epoch 2 was kept")


@pytest.mark.parametrize(("val_accuracy", "told"), [(0.85, True), (0.95, False)])
def test_a_gap_between_train_and_val_is_told(val_accuracy: float, told: bool):
    note = describe_gap(1.0, val_accuracy)
    assert (note is not None) == told
    assert note is None or tells(note, "1.000 on train", "0.850 on val")
