"""Modules to named arrays and back, with names and shapes checked: what a model file holds."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from tasks.artifacts import Array
from tasks.errors import ArtifactError


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
