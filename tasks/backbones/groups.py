"""What timm models have in common: pooled features, and layer groups in forward order."""

import re
from typing import Any

import torch
from timm.models._manipulate import group_with_matcher
from torch import nn

from tasks.artifacts.records import LayerGroup


class PooledFeatures(nn.Module):
    """Normalized images (N, 3, R, R) -> pooled features (N, D) before the classifier."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Give the features of a batch."""
        timm_model = untyped(self.model)
        features: torch.Tensor = timm_model.forward_head(
            timm_model.forward_features(images), pre_logits=True
        )
        return features


def untyped(model: nn.Module) -> Any:
    """Give a timm model to the code that uses what timm adds to a module, which has no types."""
    return model


_UNMATCHED = (
    "~"  # no layer has this name: where the matcher puts it is where it puts what it does not know
)


def layer_groups(model: nn.Module) -> list[LayerGroup]:
    """Name, parameters and blocks of every layer group, in forward order; no classifier."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    groups = parameter_names(model)
    blocks = _block_numbers(model, [name for names in groups for name in names])
    return [
        LayerGroup(
            name=_group_name(model, names),
            parameters=sum(sizes.get(name, 0) for name in names),
            blocks=len({blocks[name] for name in names}),
        )
        for names in groups
    ]


def _block_numbers(model: nn.Module, names: list[str]) -> dict[str, int]:
    """Block of every parameter: a group of the matcher's finest grouping, where it has one."""
    if not hasattr(model, "group_matcher"):
        return dict.fromkeys(names, 0)
    matcher = untyped(model).group_matcher(coarse=False)
    found: dict[str, int] = group_with_matcher(
        ((name, None) for name in names), matcher, reverse=True
    )
    return found


def parameter_names(model: nn.Module) -> list[list[str]]:
    """Names of the parameters and saved buffers of every layer group, in forward order.

    Every entry of the state dict is in one group, except those of the pretrained classifier.
    """
    head = classifier_names(model)
    names = [name for name in model.state_dict() if name not in head]
    if not hasattr(model, "group_matcher"):
        return [names]
    matcher = untyped(model).group_matcher(coarse=True)
    numbers = group_with_matcher(
        ((name, None) for name in [*names, _UNMATCHED]), matcher, reverse=True
    )
    matched = [number for name in names if (number := numbers[name]) != numbers[_UNMATCHED]]
    top = max(matched, default=0)
    groups: dict[int, list[str]] = {}
    for name in names:
        groups.setdefault(min(numbers[name], top), []).append(name)
    return [groups[number] for number in sorted(groups)]


def group_numbers(model: nn.Module) -> dict[str, int]:
    """Layer group of every parameter and saved buffer by name; the classifier's are left out."""
    return {name: number for number, names in enumerate(parameter_names(model)) for name in names}


def classifier_names(model: nn.Module) -> set[str]:
    """Names of the parameters and saved buffers of the pretrained classifier; may be empty."""
    classifier = untyped(model).get_classifier()
    heads = classifier if isinstance(classifier, tuple) else (classifier,)
    inside = {id(module) for head in heads for module in head.modules()}
    return {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if id(module) in inside
        for name in module.state_dict()
    }


def _group_name(model: nn.Module, names: list[str]) -> str:
    """Name a group by what matched its first name: `blocks.3`, or the matcher's own `stem`."""
    matcher = untyped(model).group_matcher(coarse=True) if hasattr(model, "group_matcher") else None
    if not isinstance(matcher, dict):
        return (names[0].rpartition(".")[0] or "stem") if matcher else "all"
    for key, patterns in matcher.items():
        for pattern in (
            [patterns] if isinstance(patterns, str) else [first for first, _ in patterns or ()]
        ):
            if match := re.match(pattern, names[0]):
                return match.group(0) if match.groups() else key
    return names[0].rpartition(".")[0] or "stem"
