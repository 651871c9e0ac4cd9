import json

import numpy as np
import pytest

from tasks.artifacts.records import LayerGroup
from tasks.backbones.source_cards import LayerMoments
from tasks.errors import ArtifactError
from tasks.transferability.shift import (
    LayerShift,
    estimate_shift,
    layer_shift,
    measure_layer_shifts,
    measure_moment_shifts,
    moment_shift,
    shift_by_group,
)

ONES = np.ones(4)


def probe(*layers):
    """A probe of layers given as (name, group, mean, var, running_mean, running_var), two parts."""
    tensors = {
        f"bn.{number:03d}.{key}": np.full(3, value, np.float32)
        for number, (_, _, *values) in enumerate(layers)
        for key, value in zip(("mean", "var", "running_mean", "running_var"), values, strict=True)
    }
    for number, (_, _, mean, var, *_) in enumerate(layers):
        for key, value in (("part_means", mean), ("part_vars", var)):
            tensors[f"bn.{number:03d}.{key}"] = np.full((2, 3), value, np.float32)
    tensors["parts"] = np.array([0, 1, 1])
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


# layers without statistics of their own -----------------------------------------------------------


def test_without_outliers_a_moment_shift_is_the_mean_of_all_but_the_outer_channels():
    rng = np.random.default_rng(5)
    mean, source_mean = rng.normal(size=(2, 40))
    var, source_var = rng.uniform(0.5, 2, (2, 40))
    each = [
        layer_shift(*(values[[i]] for values in (mean, var, source_mean, source_var)))
        for i in range(40)
    ]
    expected = np.mean(sorted(each)[2:-2])
    assert moment_shift(mean, var, source_mean, source_var) == pytest.approx(expected)
    assert moment_shift(mean, var, mean, var) == 0
    few = [values[:4] for values in (mean, var, source_mean, source_var)]
    assert moment_shift(*few) == pytest.approx(layer_shift(*few))


def test_a_massive_channel_is_not_the_shift_of_its_layer():
    ones, zeros = np.ones(100), np.zeros(100)
    massive = np.where(np.arange(100) < 2, 1e6, 1.0)
    moved = 0.5 * ones
    assert moment_shift(moved, ones, zeros, ones) == pytest.approx(0.25)
    comes = (moved, massive, zeros, ones)
    assert moment_shift(*comes) == pytest.approx(0.25)
    assert layer_shift(*comes) > 10_000
    stays = (moved, massive, zeros, massive)  # the floor of batch norm would hide all others
    assert moment_shift(*stays) == pytest.approx(0.25, rel=0.03)
    assert layer_shift(*stays) < 0.02


def moments_of(*layers):
    tensors, note = probe(*layers)
    tensors = {
        name.replace("bn.", "moments."): tensor
        for name, tensor in tensors.items()
        if "running" not in name
    }
    source = {
        name: LayerMoments(np.full(3, mean, np.float32), np.full(3, var, np.float32))
        for name, _, _, _, mean, var in layers
    }
    return tensors, {"layers": "[]", "moments": note["layers"]}, source


def test_layers_are_compared_with_those_of_the_card_by_name():
    tensors, note, source = moments_of(("stem.norm", 0, 1, 1, 0, 1), ("head.norm", 5, 0, 4, 0, 1))
    expected = [
        LayerShift("stem.norm", 0, 1.0, [1.0, 1.0]), LayerShift("head.norm", 5, 1.0, [1.0, 1.0])
    ]  # fmt: skip
    for known in (source, dict(reversed(source.items())), source | {"more": source["stem.norm"]}):
        assert measure_moment_shifts(tensors, note, known) == expected
    assert measure_layer_shifts(tensors, note) == []


def test_without_the_moments_of_every_layer_nothing_is_measured():
    tensors, note, source = moments_of(("stem.norm", 0, 1, 1, 0, 1), ("head.norm", 5, 0, 4, 0, 1))
    assert measure_moment_shifts(tensors, note, {}) == []
    assert measure_moment_shifts(tensors, note, {"stem.norm": source["stem.norm"]}) == []


# files and intervals -----------------------------------------------------------------------------


def test_layers_are_read_in_forward_order():
    tensors, note = probe(("stem.bn", 0, 1, 1, 0, 1), ("head.bn", 5, 0, 4, 0, 1))
    assert measure_layer_shifts(tensors, note) == [
        LayerShift("stem.bn", 0, 1.0, [1.0, 1.0]),
        LayerShift("head.bn", 5, 1.0, [1.0, 1.0]),
    ]


def test_a_network_without_batch_norm_has_no_layers():
    assert measure_layer_shifts({}, {"layers": "[]"}) == []
    assert measure_layer_shifts({}, {}) == []
    assert estimate_shift([], images=3, confidence=0.9) is None


def test_missing_tensors_are_an_error():
    tensors, note = probe(("stem.bn", 0, 1, 1, 0, 1))
    del tensors["bn.000.var"]
    with pytest.raises(ArtifactError, match=r"bn\.000\.var.*rerun extract"):
        measure_layer_shifts(tensors, note)


def test_groups_get_the_mean_of_their_layers():
    layers = [LayerShift("a", 0, 1.0, []), LayerShift("b", 2, 2.0, []), LayerShift("c", 2, 4.0, [])]
    groups = [LayerGroup(name=name, parameters=1, blocks=1) for name in ("stem", "plain", "top")]
    found = shift_by_group(layers, groups)
    assert [(item.group, item.value) for item in found] == [("stem", 1.0), ("top", 3.0)]


def test_a_part_is_left_out_by_its_moments():
    values = np.random.default_rng(0).normal(size=(30, 3))
    parts = np.repeat([0, 1, 2], [8, 10, 12])
    chunks = [values[parts == part] for part in range(3)]
    tensors = {
        "parts": parts,
        "bn.000.mean": values.mean(axis=0), "bn.000.var": values.var(axis=0),
        "bn.000.running_mean": np.zeros(3), "bn.000.running_var": np.ones(3),
        "bn.000.part_means": np.stack([chunk.mean(axis=0) for chunk in chunks]),
        "bn.000.part_vars": np.stack([chunk.var(axis=0) for chunk in chunks]),
    }  # fmt: skip
    found = measure_layer_shifts(tensors, {"layers": '[["bn", 0]]'})[0]
    expected = [
        layer_shift(kept.mean(axis=0), kept.var(axis=0), np.zeros(3), np.ones(3))
        for kept in (values[parts != part] for part in range(3))
    ]
    assert found.without == pytest.approx(expected)


def test_one_part_alone_gives_no_interval():
    found = estimate_shift([LayerShift("a", 0, 0.2, [])], images=4, confidence=0.9)
    assert (found.value, found.low, found.high, found.n) == (0.2, None, None, 4)


def shift_of(means, parts, kind="bn"):
    """Shift of three layers whose channels see images with these means, (n, 3, C), variance 1."""
    tensors = {"parts": parts}
    for layer in range(3):
        chunks = [means[parts == part, layer] for part in range(parts.max() + 1)]
        tensors |= {
            f"bn.{layer:03d}.mean": means[:, layer].mean(axis=0),
            f"bn.{layer:03d}.var": 1 + means[:, layer].var(axis=0),
            f"bn.{layer:03d}.running_mean": np.zeros(means.shape[2]),
            f"bn.{layer:03d}.running_var": np.ones(means.shape[2]),
            f"bn.{layer:03d}.part_means": np.stack([chunk.mean(axis=0) for chunk in chunks]),
            f"bn.{layer:03d}.part_vars": np.stack([1 + chunk.var(axis=0) for chunk in chunks]),
        }
    note = {"layers": json.dumps([[str(layer), 0] for layer in range(3)])}
    layers = measure_layer_shifts(tensors, note)
    if kind == "moments":
        other = {name.replace("bn.", "moments."): tensor for name, tensor in tensors.items()}
        nothing = LayerMoments(np.zeros(means.shape[2]), np.ones(means.shape[2]))
        source = {str(layer): nothing for layer in range(3)}
        layers = measure_moment_shifts(other, {"moments": note["layers"]}, source)
    return estimate_shift(layers, images=len(means), confidence=0.95)


@pytest.mark.parametrize(
    ("groups_of", "kind", "runs"), [(1, "bn", 300), (5, "bn", 300), (5, "moments", 60)]
)
def test_the_interval_holds_the_shift_of_all_images_as_often_as_promised(groups_of, kind, runs):
    # All channels share an image's brightness: comparing layers tells nothing of the error.
    moved, spread, inside = 0.5, 0.6, []
    truth = moved**2 + (np.sqrt(1 + spread**2) - 1) ** 2
    for run in range(runs):
        rng = np.random.default_rng([4, run])
        groups = 200 // groups_of
        brightness = np.repeat(rng.normal(moved, spread, groups), groups_of)
        parts = np.repeat(rng.permutation(groups) % 20, groups_of)
        found = shift_of(np.broadcast_to(brightness[:, None, None], (200, 3, 4)), parts, kind)
        inside.append(found.low <= truth <= found.high)
    assert 0.92 <= np.mean(inside) <= 0.98
