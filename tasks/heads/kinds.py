"""Heads, raw pooled features to logits: written by baseline, read by every later stage."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.artifacts.arrays import Array, read_tensors, write_tensors
from tasks.artifacts.records import Baseline, HeadKind
from tasks.errors import ArtifactError
from tasks.heads.registry import find_head


def to_arrays(module: nn.Module, prefix: str = "") -> dict[str, Array]:
    """Give parameters and buffers of a module as arrays named `<prefix><name in the module>`."""
    state = module.state_dict()
    return {f"{prefix}{name}": tensor.detach().cpu().numpy() for name, tensor in state.items()}


def from_arrays(
    module: nn.Module, arrays: Mapping[str, Array], *, where: Path, prefix: str = ""
) -> None:
    """Fill a module with the arrays named `<prefix><name in the module>`; others are not looked at.

    Args:
        module: What is filled; every one of its tensors must be there with its shape.
        arrays: Named arrays, as `to_arrays` gives them.
        where: The file they come from, for the message.
        prefix: What the names start with.

    Raises:
        ArtifactError: A tensor is missing, has another shape, or one of the prefix is left over.
    """
    state = module.state_dict()
    found = {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    odd = sorted(state.keys() ^ found.keys())
    if odd:
        problem = "is missing" if odd[0] in state else "does not belong to this architecture"
        raise ArtifactError(
            f"{where}: tensor {prefix}{odd[0]} {problem}; run the stage that writes it"
        )
    for name, tensor in state.items():
        if tensor.shape != found[name].shape:
            raise ArtifactError(
                f"{where}: tensor {prefix}{name} has shape {found[name].shape}, expected "
                f"{tuple(tensor.shape)}; run the stage that writes it"
            )
    module.load_state_dict({name: torch.from_numpy(found[name].copy()) for name in state})


ROWS_AT_ONCE = 8192


def build_head(
    kind: HeadKind, feature_dim: int, classes: int, *, hidden: int, dropout: float
) -> nn.Module:
    """Build an untrained head of a kind, see `tasks.heads.registry.HeadModule.build`."""
    return find_head(kind).build(feature_dim, classes, hidden=hidden, dropout=dropout)


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
