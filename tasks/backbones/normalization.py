"""Normalization layers: what those of a backbone see in images; fitting an untrained backbone."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from typing import Literal, Self

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tasks.artifacts.arrays import Floats
from tasks.backbones.groups import group_numbers
from tasks.runtime.device import single_thread
from tasks.runtime.parallel import map_in_order

IMAGES_AT_ONCE = 8  # of a pass that measures: what larger ones allocate is mapped anew every time


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """What one normalization layer sees in some images, beside what it saw in pretraining.

    Attributes:
        name: Module name in the backbone.
        group: Its layer group.
        mean: Of the layer's input over images and positions, one value a channel: (C,). Tokens are
            positions, class and register tokens too: the layer sees them all.
        var: Population variance of the same, (C,).
        running_mean: What a batch-norm layer learned in pretraining, (C,); None: another layer.
        running_var: The same, (C,).
        part_means: Of each part of the images, (P, C).
        part_vars: The same, (P, C).
    """

    name: str
    group: int
    mean: Floats
    var: Floats
    running_mean: Floats | None
    running_var: Floats | None
    part_means: Floats
    part_vars: Floats


def norm_kind(model: nn.Module) -> Literal["batch", "other"]:
    """Say whether a backbone has batch-norm layers with running statistics."""
    return "batch" if _batch_norms(model) else "other"


def measure_inputs(
    model: nn.Module, parts: Iterable[Iterable[torch.Tensor]], *, workers: int = 1
) -> list[LayerInputs]:
    """Measure mean and variance of the input of every batch-norm layer, in forward order.

    Of a network without running statistics, of every other normalization layer that has a weight
    for each channel.

    Args:
        model: A timm model in eval mode.
        parts: Batches of each part of the images: normalized, float32 (N, 3, R, R); few are in
            memory at a time.
        workers: Batches computed side by side, in one thread each. Changes no result.
    """
    layers = _measured_layers(model)
    moments: dict[str, dict[int, _Moments]] = {}
    small = (
        (part, batch[start : start + IMAGES_AT_ONCE])
        for part, batches in enumerate(parts)
        for batch in batches
        for start in range(0, len(batch), IMAGES_AT_ONCE)
    )
    with _recording(layers) as run, single_thread():

        def run_part(numbered: tuple[int, torch.Tensor]) -> tuple[int, NamedMoments]:
            return numbered[0], run(model, numbered[1])

        for part, found in map_in_order(run_part, small, workers=workers):
            for name, seen in found:
                of_layer = moments.setdefault(name, {})
                of_layer[part] = of_layer[part].merge(seen) if part in of_layer else seen
    groups = group_numbers(model)
    return [
        _join(name, group, layers[name], list(of_layer.values()))
        for name, of_layer in moments.items()
        if (group := _group_of(name, groups)) is not None
    ]


def _group_of(name: str, groups: Mapping[str, int]) -> int | None:
    """Give the layer group of a layer; None for one of the classifier's."""
    return groups.get(f"{name}.running_mean", groups.get(f"{name}.weight"))


def _join(name: str, group: int, layer: nn.Module, parts: "Sequence[_Moments]") -> LayerInputs:
    whole = reduce(_Moments.merge, parts)
    learned = layer if isinstance(layer, _BatchNorm) else None
    return LayerInputs(
        name=name,
        group=group,
        mean=whole.mean,
        var=whole.squares / whole.count,
        running_mean=None if learned is None else _to_vector(learned.running_mean),
        running_var=None if learned is None else _to_vector(learned.running_var),
        part_means=np.stack([part.mean for part in parts]),
        part_vars=np.stack([part.squares / part.count for part in parts]),
    )


def fit_running_statistics(
    model: nn.Module, batches: Iterable[torch.Tensor], *, workers: int = 1
) -> None:
    """Set the running statistics of every batch-norm layer to those of some images, in place.

    With the initial statistics (0 and 1) an untrained network normalizes nothing: values shrink or
    grow from layer to layer, and its features say more about that than about the architecture.

    Args:
        model: A timm model; left in eval mode.
        batches: Normalized images, float32 (N, 3, R, R) each, more than one in each; every batch
            counts the same.
        workers: Batches computed side by side, in one thread each. Changes no result.
    """
    model.eval()
    layers = _batch_norms(model)
    if not layers:
        return
    sums = {name: np.zeros((2, layer.num_features)) for name, layer in layers.items()}
    count = 0
    with _by_batch(layers.values()), _recording(layers) as run, single_thread():
        for parts in map_in_order(partial(run, model), batches, workers=workers):
            count += 1
            for name, seen in parts:
                sums[name] += np.stack([seen.mean, seen.squares / (seen.count - 1)])
    for name, layer in layers.items():
        mean, var = torch.from_numpy(sums[name] / max(count, 1))
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(var)


@contextmanager
def _by_batch(layers: Iterable[_BatchNorm]) -> Iterator[None]:
    """Let batch-norm layers normalize by the batch and leave their running statistics alone."""
    kept = [(layer, layer.running_mean, layer.running_var) for layer in layers]
    for layer, _, _ in kept:
        layer.running_mean = layer.running_var = None
    try:
        yield
    finally:
        for layer, mean, var in kept:
            layer.running_mean, layer.running_var = mean, var


@dataclass(frozen=True, slots=True)
class _Moments:
    """Count, mean and sum of squared deviations of some rows, each (C,), in float64."""

    count: int
    mean: Floats
    squares: Floats

    @classmethod
    def of(cls, inputs: torch.Tensor) -> Self:
        """Measure the channels of (n, C, ...), in two passes of torch's kernel."""
        mean, var = torch.batch_norm_update_stats(inputs, None, None, 0.0)
        count = inputs.numel() // inputs.shape[1]
        return cls(count, _to_vector(mean), _to_vector(var) * count)

    def merge(self, other: Self) -> "_Moments":
        """Give the moments of both together, without losing digits.

        Source: Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing
        sample variances, 1979.
        """
        total, delta = self.count + other.count, other.mean - self.mean
        return _Moments(
            total,
            self.mean + delta * (other.count / total),
            self.squares + other.squares + delta**2 * (self.count * other.count / total),
        )


NamedMoments = list[tuple[str, _Moments]]


@contextmanager
def _recording(
    layers: Mapping[str, nn.Module],
) -> Iterator[Callable[[nn.Module, torch.Tensor], NamedMoments]]:
    """Give a function that runs a model on a batch and returns what its layers were given.

    It may be called from several threads at a time.
    """
    here = threading.local()

    def record(name: str, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        here.parts.append((name, _Moments.of(inputs[0].movedim(_channel_axis(layer), 1))))

    def run(model: nn.Module, batch: torch.Tensor) -> NamedMoments:
        here.parts = []
        with torch.inference_mode():
            model(batch.to(_device(model)))
        parts: NamedMoments = here.parts
        return parts

    hooks = [
        layer.register_forward_pre_hook(partial(record, name)) for name, layer in layers.items()
    ]
    try:
        yield run
    finally:
        for hook in hooks:
            hook.remove()


def _measured_layers(model: nn.Module) -> Mapping[str, nn.Module]:
    return _batch_norms(model) or {
        name: module for name, module in model.named_modules() if _has_channel_weights(module)
    }


def _batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def _has_channel_weights(module: nn.Module) -> bool:
    """Whether it is a layer, group or RMS norm, of torch or timm, with one weight a channel."""
    weight = getattr(module, "weight", None)
    of_a_kind = isinstance(module, nn.GroupNorm) or hasattr(module, "normalized_shape")
    return of_a_kind and isinstance(weight, torch.Tensor) and weight.ndim == 1


def _channel_axis(layer: nn.Module) -> int:
    """Say where the channels of a layer's input are: last for the kinds that normalize tokens.

    timm calls those whose input is (N, C, H, W) `LayerNorm2d`, `RmsNorm2d` and the like. The shape
    cannot tell where there are as many channels as positions in a row.
    """
    first = isinstance(layer, _BatchNorm | nn.GroupNorm) or "2d" in type(layer).__name__
    return 1 if first else -1


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _to_vector(tensor: torch.Tensor | None) -> Floats:
    assert tensor is not None
    vector: Floats = tensor.detach().double().cpu().numpy()
    return vector
