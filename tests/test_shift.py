import json

import numpy as np
import pytest

from tasks.artifacts.records import LayerGroup
from tasks.errors import ArtifactError
from tasks.transferability.shift import (
    LayerShift,
    estimate_shift,
    layer_shift,
    measure_layer_shifts,
    shift_by_group,
)

ONES = np.ones(4)


def probe(*layers):
    """A probe of layers given as (name, group, mean, var, running_mean, running_var)."""
    tensors = {
        f"bn.{number:03d}.{key}": np.full(3, value, np.float32)
        for number, (_, _, *values) in enumerate(layers)
        for key, value in zip(("mean", "var", "running_mean", "running_var"), values, strict=True)
    }
    return tensors, {"layers": json.dumps([[name, group] for name, group, *_ in layers])}


def test_shift_of_a_layer_by_hand():
    # Channel 1: mean moved by 2 at variance 4. Channel 2: deviation from 3 to 6 at variance 9.
    value = layer_shift(
        np.array([3.0, 0.0]), np.array([4.0, 36.0]), np.array([1.0, 0.0]), np.array([4.0, 9.0])
    )
    assert value == pytest.approx((4 / 4 + 9 / 9) / 2)


def test_equal_statistics_are_no_shift():
    assert layer_shift(ONES, 2 * ONES, ONES, 2 * ONES) == 0


def test_scale_and_offset_of_a_channel_do_not_matter():
    rng = np.random.default_rng(0)
    mean, running = rng.normal(size=(2, 4))
    var, running_var = rng.uniform(0.5, 2, (2, 4))
    plain = layer_shift(mean, var, running, running_var)
    moved = layer_shift(3 * mean + 1, 9 * var, 3 * running + 1, 9 * running_var)
    assert moved == pytest.approx(plain)


def test_shift_grows_with_the_move():
    values = [layer_shift(move * ONES, ONES, 0 * ONES, ONES) for move in (0, 0.5, 1, 2)]
    assert values == [0, 0.25, 1, 4]


def test_a_channel_that_was_hardly_used_does_not_explode():
    running_var = np.array([1.0, 1.0, 1.0, 1e-12])
    mean = np.array([0.0, 0.0, 0.0, 0.1])
    value = layer_shift(mean, running_var, np.zeros(4), running_var)
    assert value == pytest.approx(0.01 / (1e-3 * running_var.mean()) / 4)


def test_a_layer_that_was_never_used_is_measured_against_the_epsilon_of_batch_norm():
    assert layer_shift(0.01 * ONES, 0 * ONES, 0 * ONES, 0 * ONES) == pytest.approx(1e-4 / 1e-5)


def test_layers_are_read_in_forward_order():
    tensors, note = probe(("stem.bn", 0, 1, 1, 0, 1), ("head.bn", 5, 0, 4, 0, 1))
    assert measure_layer_shifts(tensors, note) == [
        LayerShift("stem.bn", 0, 1.0),
        LayerShift("head.bn", 5, 1.0),
    ]


def test_a_network_without_batch_norm_has_no_layers():
    assert measure_layer_shifts({}, {"layers": "[]"}) == []
    assert measure_layer_shifts({}, {}) == []
    assert estimate_shift([], confidence=0.9, resamples=20, seed=0) is None


def test_missing_tensors_are_an_error():
    tensors, note = probe(("stem.bn", 0, 1, 1, 0, 1))
    del tensors["bn.000.var"]
    with pytest.raises(ArtifactError, match=r"bn\.000\.var.*rerun extract"):
        measure_layer_shifts(tensors, note)


def test_groups_get_the_mean_of_their_layers():
    layers = [LayerShift("a", 0, 1.0), LayerShift("b", 2, 2.0), LayerShift("c", 2, 4.0)]
    groups = [LayerGroup(name=name, parameters=1) for name in ("stem", "plain", "top")]
    found = shift_by_group(layers, groups)
    assert [(item.group, item.value) for item in found] == [("stem", 1.0), ("top", 3.0)]


def test_overall_shift_is_the_mean_over_layers_with_an_interval_over_layers():
    values = np.random.default_rng(1).uniform(0, 1, 50)
    layers = [LayerShift(str(i), 0, value) for i, value in enumerate(values)]
    estimate = estimate_shift(layers, confidence=0.95, resamples=2000, seed=0)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.n == 50
    error = 1.96 * values.std() / np.sqrt(50)
    assert estimate.high - estimate.value == pytest.approx(error, rel=0.1)
    assert estimate.value - estimate.low == pytest.approx(error, rel=0.1)
