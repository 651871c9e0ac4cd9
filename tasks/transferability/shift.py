"""Shift: how far the inputs of each normalization layer are from what pretraining saw there.

Every batch-norm layer carries the mean and variance of its source inputs, so the batch-norm shift
needs no source data. Other layers carry none: the source side of the moment shift is a source card.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from tasks.artifacts.arrays import Floats
from tasks.artifacts.records import Estimate, GroupShift, LayerGroup
from tasks.backbones.source_cards import LayerMoments
from tasks.errors import ArtifactError

SMALLEST_VARIANCE = 1e-3  # of a channel, as a share of what is usual in its layer
NORM_EPSILON = 1e-5  # what normalization layers themselves add to a variance by default
OUTLIERS = 0.05  # share of the channels that the moment shift leaves out at either end
Tensors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class LayerShift:
    """Shift of one normalization layer; `group` is the number of its layer group.

    `without`: the shift where each part of the images is left out, (P,).
    """

    name: str
    group: int
    value: float
    without: Sequence[float]


def measure_layer_shifts(tensors: Tensors, note: Mapping[str, str]) -> list[LayerShift]:
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
            _measure(name, int(group), tensors, key, partial(layer_shift, **_learned(tensors, key)))
            for key, name, group in ((f"bn.{i:03d}", *layer) for i, layer in enumerate(layers))
        ]
    except KeyError as err:
        raise ArtifactError(
            f"the probe names {len(layers)} batch-norm layers but has no {err}; rerun extract"
        ) from err


def measure_moment_shifts(
    tensors: Tensors, note: Mapping[str, str], source: Mapping[str, LayerMoments]
) -> list[LayerShift]:
    """Measure the shift of every normalization layer without statistics of its own, likewise.

    Args:
        tensors: As above, `moments.` instead of `bn.`, and without running statistics.
        note: `moments` holds a json list of [layer name, layer group].
        source: Moments of the layers in the source images, by name.

    Returns:
        One entry a layer; empty where the source does not have them all.
    """
    layers = layers_without_statistics(note)
    if not source.keys() >= {name for name, _ in layers}:
        return []
    return [
        _measure(
            name,
            group,
            tensors,
            f"moments.{number:03d}",
            partial(
                moment_shift,
                source_mean=source[name].mean.astype(np.float64),
                source_var=source[name].var.astype(np.float64),
            ),
        )
        for number, (name, group) in enumerate(layers)
    ]


def layers_without_statistics(note: Mapping[str, str]) -> list[tuple[str, int]]:
    """Name and layer group of the probe's layers whose weights tell nothing of the source."""
    return [(name, int(group)) for name, group in json.loads(note.get("moments", "[]"))]


def _learned(tensors: Tensors, key: str) -> dict[str, Floats]:
    return {
        name: tensors[f"{key}.{name}"].astype(np.float64)
        for name in ("running_mean", "running_var")
    }


def _measure(
    name: str, group: int, tensors: Tensors, key: str, shift: Callable[[Floats, Floats], float]
) -> LayerShift:
    mean, var, part_means, part_vars = (
        tensors[f"{key}.{part}"].astype(np.float64)
        for part in ("mean", "var", "part_means", "part_vars")
    )
    sizes = np.bincount(tensors["parts"].astype(np.int64)).astype(np.float64)
    without = [
        shift(*_pool(part_means, part_vars, kept))
        for kept in sizes * (1 - np.eye(len(sizes)))
        if kept.any()
    ]
    return LayerShift(name, group, shift(mean, var), without)


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
    usual = float(running_var.mean())
    return float(np.mean(_channel_shifts(mean, var, running_mean, running_var, usual=usual)))


def moment_shift(mean: Floats, var: Floats, source_mean: Floats, source_var: Floats) -> float:
    """Give the same for a layer behind a residual stream: a trimmed mean over channels.

    Transformers put values thousands of times the usual size into a few channels of a few tokens
    (Sun et al. 2024, Massive Activations in Large Language Models, 2402.17762). Such a channel
    would set the floor for all others, so the floor is a thousandth of the layer's median; and
    where one comes, goes or moves, it alone would be the mean, so a twentieth of the channels is
    left out at either end, none where there are fewer than twenty.

    Args:
        mean: Of the layer's input on the target images, (channels,).
        var: Its variance.
        source_mean: Of the layer's input on the images of the source card.
        source_var: Its variance.

    Returns:
        At least 0; 0 where both have the same statistics.
    """
    usual = float(np.median(source_var))
    shifts = _channel_shifts(mean, var, source_mean, source_var, usual=usual)
    return float(stats.trim_mean(shifts, OUTLIERS))


def _channel_shifts(
    mean: Floats, var: Floats, source_mean: Floats, source_var: Floats, *, usual: float
) -> Floats:
    scale = np.maximum(source_var, SMALLEST_VARIANCE * usual)
    scale = np.maximum(scale, NORM_EPSILON)
    moved = (mean - source_mean) ** 2
    spread = (np.sqrt(np.maximum(var, 0)) - np.sqrt(np.maximum(source_var, 0))) ** 2
    shifts: Floats = (moved + spread) / scale
    return shifts


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
