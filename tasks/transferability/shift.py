"""Batch-norm shift: how far the inputs of each norm layer are from what pretraining saw there.

It needs no source data: every batch-norm layer carries the mean and variance of its source inputs.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.artifacts.arrays import Floats
from tasks.artifacts.records import Estimate, GroupShift, LayerGroup
from tasks.errors import ArtifactError

RESAMPLING = 0x5346  # purpose of the random numbers drawn here
SMALLEST_VARIANCE = 1e-3  # of a channel, as a share of the layer's mean variance
BATCH_NORM_EPSILON = 1e-5  # what batch norm itself adds to a variance by default


@dataclass(frozen=True, slots=True)
class LayerShift:
    """Shift of one batch-norm layer; `group` is the number of its layer group."""

    name: str
    group: int
    value: float


def measure_layer_shifts(
    tensors: Mapping[str, NDArray[np.float32]], note: Mapping[str, str]
) -> list[LayerShift]:
    """Measure the shift of every batch-norm layer, in forward order.

    Args:
        tensors: For layer i `bn.{i:03d}.mean`, `.var` (of its input on the training images),
            `.running_mean` and `.running_var` (of pretraining), each (channels,).
        note: `layers` holds a json list of [layer name, layer group].

    Returns:
        One entry a layer; empty for a network without batch norm.

    Raises:
        ArtifactError: Tensors and note do not fit each other.
    """
    layers = json.loads(note.get("layers", "[]"))
    try:
        return [
            LayerShift(name, int(group), layer_shift(*_statistics(tensors, number)))
            for number, (name, group) in enumerate(layers)
        ]
    except KeyError as err:
        raise ArtifactError(
            f"the probe names {len(layers)} batch-norm layers but has no {err}; rerun extract"
        ) from err


def _statistics(
    tensors: Mapping[str, NDArray[np.float32]], number: int
) -> tuple[Floats, Floats, Floats, Floats]:
    mean, var, running_mean, running_var = (
        tensors[f"bn.{number:03d}.{name}"].astype(np.float64)
        for name in ("mean", "var", "running_mean", "running_var")
    )
    return mean, var, running_mean, running_var


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
    layers: Sequence[LayerShift], *, confidence: float, resamples: int, seed: int
) -> Estimate | None:
    """Mean shift over all layers, None where there is none.

    The interval comes from a bootstrap of layers and `n` counts layers: it says how much the mean
    depends on which layers are asked. Images add little, as every statistic is a mean over hundreds
    of images and all their positions.

    Args:
        layers: Shifts of all layers.
        confidence: In (0, 1).
        resamples: Of the bootstrap.
        seed: The run's seed.
    """
    if not layers:
        return None
    values = np.array([layer.value for layer in layers])
    rng = np.random.default_rng([seed, RESAMPLING])
    means = values[rng.integers(0, len(values), (resamples, len(values)))].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    value = float(values.mean())
    return Estimate(
        value=value, low=min(value, float(low)), high=max(value, float(high)), n=len(values)
    )
