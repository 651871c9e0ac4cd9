"""Batch normalization: what a backbone's layers see in images; fitting an untrained backbone."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tasks.backbones.groups import group_numbers

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """What one batch-norm layer sees in some images, beside what it saw in pretraining.

    Attributes:
        name: Module name in the backbone.
        group: Its layer group.
        mean: Of the layer's input over images and positions, one value a channel: (C,).
        var: Population variance of the same, (C,).
        running_mean: What the layer learned in pretraining, (C,).
        running_var: The same, (C,).
    """

    name: str
    group: int
    mean: Vector
    var: Vector
    running_mean: Vector
    running_var: Vector


def norm_kind(model: nn.Module) -> Literal["batch", "other"]:
    """Say whether a backbone has batch-norm layers with running statistics."""
    return "batch" if _layers(model) else "other"


def measure_inputs(model: nn.Module, batches: Iterable[torch.Tensor]) -> list[LayerInputs]:
    """Measure mean and variance of the input of every batch-norm layer, in forward order.

    Args:
        model: A timm model in eval mode.
        batches: Normalized images, float32 (N, 3, R, R) each; one batch is in memory at a time.
    """
    layers = _layers(model)
    moments: dict[str, _Moments] = {}
    hooks = [
        layer.register_forward_pre_hook(_recorder(moments, name)) for name, layer in layers.items()
    ]
    try:
        with torch.inference_mode():
            for batch in batches:
                model(batch.to(_device(model)))
    finally:
        for hook in hooks:
            hook.remove()
    groups = group_numbers(model)
    return [
        LayerInputs(
            name=name,
            group=groups[f"{name}.running_mean"],
            mean=seen.mean,
            var=seen.squares / seen.count,
            running_mean=_to_vector(layers[name].running_mean),
            running_var=_to_vector(layers[name].running_var),
        )
        for name, seen in moments.items()
        if f"{name}.running_mean" in groups
    ]


def fit_running_statistics(model: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Set the running statistics of every batch-norm layer to those of some images, in place.

    With the initial statistics (0 and 1) an untrained network normalizes nothing: values shrink or
    grow from layer to layer, and its features say more about that than about the architecture.

    Args:
        model: A timm model; left in eval mode.
        batches: Normalized images, float32 (N, 3, R, R) each; every batch counts the same.
    """
    layers = list(_layers(model).values())
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain average over the batches
        layer.train()
    with torch.inference_mode():
        for batch in batches:
            model(batch.to(_device(model)))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.eval()


class _Moments:
    """Count, mean and sum of squared deviations of a stream of rows, in float64.

    Source: Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample
    variances, 1979: batches are merged without losing digits.
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean: Vector = np.zeros(channels)
        self.squares: Vector = np.zeros(channels)

    def add(self, rows: torch.Tensor) -> None:
        """Take in rows (n, C)."""
        mean = rows.mean(dim=0)
        squares = _to_vector((rows - mean).square_().sum(dim=0))
        count, delta = len(rows), _to_vector(mean) - self.mean
        total = self.count + count
        self.squares += squares + delta**2 * (self.count * count / total)
        self.mean += delta * (count / total)
        self.count = total


def _recorder(moments: dict[str, _Moments], name: str) -> Any:
    def record(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        rows = inputs[0].movedim(1, -1).flatten(end_dim=-2)
        moments.setdefault(name, _Moments(rows.shape[1])).add(rows)

    return record


def _layers(model: nn.Module) -> dict[str, _BatchNorm]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _to_vector(tensor: torch.Tensor | None) -> Vector:
    assert tensor is not None
    vector: Vector = tensor.detach().double().cpu().numpy()
    return vector
