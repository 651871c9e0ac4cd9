"""The kinds of heads: what the module of each offers, and how it is found.

A new one is a module of this package, named like its kind, and that word in
`tasks.artifacts.records.HeadKind`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

from torch import nn

from tasks.artifacts.records import HeadKind
from tasks.heads.features import Labeled
from tasks.params import BaselineParams


@dataclass(frozen=True, eq=False)
class TrainedHead:
    """A trained head in eval mode, what it was built with, and what is worth telling about it."""

    module: nn.Module
    setting: str
    hidden: int = 0
    dropout: float = 0.0
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class HeadPath:
    """The heads that were tried, and which of them was chosen."""

    tried: Sequence[TrainedHead]
    chosen: TrainedHead


class HeadModule(Protocol):
    """What the module of a kind offers."""

    def build(self, feature_dim: int, classes: int, *, hidden: int, dropout: float) -> nn.Module:
        """Build an untrained head: raw pooled features (N, feature_dim) to logits (N, classes).

        It is one layer of `torch.nn` or several in a row, so that it can be exported. What a kind
        does not have, a hidden layer or dropout, is not looked at.

        Args:
            feature_dim: Number of pooled features.
            classes: Number of logits.
            hidden: Width of the hidden layer.
            dropout: Share of hidden units dropped in training.
        """
        ...

    def train(
        self, train: Labeled, val: Labeled, params: BaselineParams, *, classes: int, seed: int
    ) -> HeadPath:
        """Train heads of the kind and choose one of them, on val or by cross-validation."""
        ...


def find_head(kind: HeadKind) -> HeadModule:
    """Find the module of a kind."""
    return cast(HeadModule, import_module(f"tasks.heads.{kind}"))
