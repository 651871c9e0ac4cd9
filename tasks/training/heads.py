"""Heads: raw pooled features to logits. Written by baseline, read by every later stage."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.artifacts import read_tensors, write_tensors
from tasks.records import Baseline, HeadKind
from tasks.training.tensors import from_arrays, to_arrays

ROWS_AT_ONCE = 8192


def build_head(
    kind: HeadKind, feature_dim: int, classes: int, *, hidden: int, dropout: float
) -> nn.Module:
    """Build an untrained head: raw pooled features (N, feature_dim) to logits (N, classes).

    Standardization is part of the head: a linear head has it folded into its weights, an MLP starts
    with a batch norm whose stored statistics are those of the training features.

    Args:
        kind: `linear` is one layer; `mlp` is batch norm, linear, ReLU, dropout, linear.
        feature_dim: Number of pooled features.
        classes: Number of logits.
        hidden: Width of the MLP's hidden layer.
        dropout: Share of hidden units dropped in training.
    """
    if kind == "linear":
        return nn.Linear(feature_dim, classes)
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm1d(feature_dim),
            hidden=nn.Linear(feature_dim, hidden),
            act=nn.ReLU(),
            dropout=nn.Dropout(dropout),
            out=nn.Linear(hidden, classes),
        )
    )


def write_head(path: Path, head: nn.Module) -> None:
    """Write the weights of a head as safetensors."""
    write_tensors(path, to_arrays(head))


def load_head(path: Path, summary: Baseline) -> nn.Module:
    """Read the head that a baseline chose, in eval mode.

    Raises:
        ArtifactError: The file is missing, damaged or holds another head than the summary says.
    """
    head = build_head(
        summary.head,
        summary.feature_dim,
        len(summary.classes),
        hidden=summary.hidden,
        dropout=summary.dropout,
    )
    from_arrays(head, read_tensors(path), where=path)
    return head.eval()


@torch.no_grad()
def apply_head(head: nn.Module, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give the logits, float32 (N, C), of pooled features, float32 (N, D).

    The head is put into eval mode. Features may be memory-mapped: they are read in blocks.
    """
    head.eval()
    blocks = [
        head(torch.from_numpy(np.array(features[start : start + ROWS_AT_ONCE], dtype=np.float32)))
        for start in range(0, max(len(features), 1), ROWS_AT_ONCE)
    ]
    logits: NDArray[np.float32] = torch.cat(blocks).numpy()
    return logits
