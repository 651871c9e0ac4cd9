"""Pooled features of a timm model."""

from typing import Any

import torch
from torch import nn


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
