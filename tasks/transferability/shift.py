"""Batch-norm shift: how far the inputs of each norm layer are from what pretraining saw there.

It needs no source data: every batch-norm layer carries the mean and variance of its source inputs.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from tasks.artifacts.arrays import Floats
from tasks.artifacts.records import Estimate, GroupShift, LayerGroup
from tasks.errors import ArtifactError

SMALLEST_VARIANCE = 1e-3  # of a channel, as a share of the layer's mean variance
BATCH_NORM_EPSILON = 1e-5  # what batch norm itself adds to a variance by default


@dataclass(frozen=True, slots=True)
class LayerShift:
    """Shift of one batch-norm layer; `group` is the number of its layer group.

    `without`: the shift where each part of the images is left out, (P,).
    """

    name: str
    group: int
    value: float
    without: Sequence[float]


def measure_layer_shifts(
    tensors: Mapping[str, NDArray[np.float32]], note: Mapping[str, str]
) -> list[LayerShift]:
    """Measure the shift of every batch-norm layer, in forward order.

    Args:
        tensors: `parts`, the part of each image; for layer i `bn.{i:03d}.mean`, `.var` (of its
            input on the training images), `.running_mean` and `.running_var` (of pretraining), each
            (channels,), `.part_means` and `.part_vars` (parts, channels).
        note: `layers` holds a json list of [layer name, layer group].

    Returns:
        One entry a layer; empty for a network without batch norm.

    Raises:
        ArtifactError: Tensors and note do not fit each other.
    """
    layers = json.loads(note.get("layers", "[]"))
    try:
        return [
            _measure(name, int(group), number, tensors)
            for number, (name, group) in enumerate(layers)
        ]
    except KeyError as err:
        raise ArtifactError(
            f"the probe names {len(layers)} batch-norm layers but has no {err}; rerun extract"
        ) from err


def _measure(
    name: str, group: int, number: int, tensors: Mapping[str, NDArray[np.float32]]
) -> LayerShift:
    mean, var, running_mean, running_var, part_means, part_vars = (
        tensors[f"bn.{number:03d}.{key}"].astype(np.float64)
        for key in ("mean", "var", "running_mean", "running_var", "part_means", "part_vars")
    )
    sizes = np.bincount(tensors["parts"].astype(np.int64)).astype(np.float64)
    without = [
        layer_shift(*_pool(part_means, part_vars, kept), running_mean, running_var)
        for kept in sizes * (1 - np.eye(len(sizes)))
        if kept.any()
    ]
    value = layer_shift(mean, var, running_mean, running_var)
    return LayerShift(name, group, value, without)


def _pool(means: Floats, variances: Floats, sizes: Floats) -> tuple[Floats, Floats]:
    """Mean and variance of several parts together, (channels,) each."""
    weights = sizes / sizes.sum()
    mean: Floats = weights @ means
    variance: Floats = weights @ (variances + (means - mean) ** 2)
    return mean, variance


def layer_shift(mean: Floats, var: Floats, running_mean: Floats, running_var: Floats) -> float:
    """Mean over channels of ((mu_t - mu_s)^2 + (sd_t - sd_s)^2) / var_s.

    The numerator is the squared 2-Wasserstein distance of two normal distributions; the division
    makes it free of the channel's scale. A channel that pretraining hardly used (variance below a
    thousandth of the layer's mean) is measured against that floor: divided by its own variance, any
    change would be infinite.

    Args:
        mean: Of the layer's input on the target images, (channels,).
        var: Its variance.
        running_mean: Of the layer's input on the source images.
        running_var: Its variance.

    Returns:
        At least 0; 0 where both have the same statistics.
    """
    scale = np.maximum(running_var, SMALLEST_VARIANCE * running_var.mean())
    scale = np.maximum(scale, BATCH_NORM_EPSILON)
    moved = (mean - running_mean) ** 2
    spread = (np.sqrt(np.maximum(var, 0)) - np.sqrt(np.maximum(running_var, 0))) ** 2
    return float(np.mean((moved + spread) / scale))


def shift_by_group(layers: Sequence[LayerShift], groups: Sequence[LayerGroup]) -> list[GroupShift]:
    """Mean shift over the layers of each group that has any, in forward order."""
    members: dict[int, list[float]] = defaultdict(list)
    for layer in layers:
        members[layer.group].append(layer.value)
    return [
        GroupShift(group=groups[number].name, value=float(np.mean(members[number])))
        for number in sorted(members)
    ]


def estimate_shift(
    layers: Sequence[LayerShift], *, images: int, confidence: float
) -> Estimate | None:
    """Mean shift over all layers with an interval over images, None where there is none.

    The interval comes from leaving out each part of the images in turn (jackknife); a group of
    images lies in one part. Without a second part there is none.

    Args:
        layers: Shifts of all layers, from the same parts.
        images: On which they were measured.
        confidence: In (0, 1).

    Source: Efron and Tibshirani 1993, An introduction to the bootstrap, chapter 11.
    """
    if not layers:
        return None
    value = float(np.mean([layer.value for layer in layers]))
    left_out = np.mean([layer.without for layer in layers], axis=0)
    count = len(left_out)
    if count < 2:
        return Estimate(value=value, low=None, high=None, n=images)
    error = float(np.sqrt((count - 1) / count * np.sum((left_out - left_out.mean()) ** 2)))
    half = -error * float(special.stdtrit(count - 1, (1 - confidence) / 2))
    return Estimate(value=value, low=max(0.0, value - half), high=value + half, n=images)
