"""What training costs, in multiply-adds, so that it is the same on every machine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tasks.artifacts.records import Phase
from tasks.backbones.cuts import example_images, in_eval_mode
from tasks.backbones.groups import group_numbers

BACKWARD = 2.0  # what a backward pass costs as a multiple of the forward pass


@dataclass(frozen=True)
class Workload:
    """Images that are trained on and judged, and how often.

    Attributes:
        images: Training images.
        views: Augmented views of each, beside the clean one.
        val: Val images.
        epochs: How often each training image is shown.
        looks: How often val is looked at.
    """

    images: float
    views: int
    val: int
    epochs: int
    looks: int


@torch.inference_mode()
def measure_costs(backbone: nn.Module) -> list[float]:
    """Give the share of a forward pass's multiply-adds that each layer group takes.

    Convolutions and linear layers count; what attention adds to them does not.
    """
    numbers = group_numbers(backbone)
    costs = [0.0] * (max(numbers.values()) + 1)

    def count(layer: nn.Module, name: str, output: Tensor) -> None:
        weight = layer.get_parameter("weight")
        channels = weight.shape[0]
        costs[numbers[f"{name}.weight"]] += output.numel() * weight.numel() / channels

    hooks = [
        module.register_forward_hook(lambda layer, _, output, name=name: count(layer, name, output))
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and f"{name}.weight" in numbers
    ]
    try:
        with in_eval_mode(backbone):
            backbone(example_images(backbone, 1))
    finally:
        for hook in hooks:
            hook.remove()
    return [cost / sum(costs) for cost in costs]


def cost_of_phase(costs: Sequence[float], cut: int, work: Workload) -> float:
    """Give what the steps of a phase cost, in forward passes of one image through all layers.

    Args:
        costs: Share of a forward pass that each layer group takes.
        cut: Lowest trained group.
        work: Images and epochs.
    """
    shown = (1 + BACKWARD) * work.images * work.epochs + work.val * work.looks
    return sum(costs[cut:]) * shown


def cost_of_cache(costs: Sequence[float], cut: int, work: Workload) -> float:
    """Give what the frozen layers below a cut cost, once for every view, in the same unit."""
    return sum(costs[:cut]) * (work.images * (work.views + 1) + work.val)


def share_lost(phases: Sequence[Phase], costs: Sequence[float], work: Workload) -> float:
    """Give the share of what fine-tuning cost that went into phases that were rolled back.

    Args:
        phases: As they were trained.
        costs: Share of a forward pass that each layer group takes.
        work: All images; its epochs and looks do not matter.
    """
    if not phases:
        return 0.0
    spent = [
        cost_of_phase(
            costs,
            phase.unfrozen_from,
            replace(work, epochs=phase.epochs, looks=phase.epochs + 1),
        )
        for phase in phases
    ]
    whole = sum(spent) + cost_of_cache(costs, max(phase.unfrozen_from for phase in phases), work)
    lost = sum(cost for cost, phase in zip(spent, phases, strict=True) if not phase.kept)
    return lost / whole
