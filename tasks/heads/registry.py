"""Heads, raw pooled features to logits: their kinds, how one is built, kept and applied.

A new one is a module of this package, named like its kind, and that word in
`tasks.artifacts.records.HeadKind`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.artifacts.arrays import Array, read_tensors, write_tensors
from tasks.artifacts.records import Baseline, Finetuned, HeadKind
from tasks.errors import ArtifactError
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
    strength: float | None = None  # L2, of a linear head


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


def build_head(summary: Baseline | Finetuned) -> nn.Module:
    """Build the untrained head that a summary describes, see `HeadModule.build`."""
    return find_head(summary.head).build(
        summary.feature_dim, len(summary.classes), hidden=summary.hidden, dropout=summary.dropout
    )


def write_head(path: Path, head: nn.Module) -> None:
    """Write the weights of a head as safetensors."""
    write_tensors(path, to_arrays(head))


def soften_head(head: nn.Module, temperature: float) -> None:
    """Divide the logits of a head by a temperature, in its last layer; not by one below 1.

    It answers as before. Fine-tuning that starts from a head that is far too sure of itself, as
    few images make it, is thrown over by the first image that it has wrong: of five images a class
    of omniglot, accuracy fell from 41 to 19 % so, and rose to 48 % from the softened head.
    """
    if temperature <= 1:
        return
    last = [layer for layer in head.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.div_(temperature)


def load_head(path: Path, summary: Baseline) -> nn.Module:
    """Read the head that a baseline chose, in eval mode.

    Raises:
        ArtifactError: The file is missing, damaged or holds another head than the summary says.
    """
    head = build_head(summary)
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
