"""The state of training as plain values: all that an interrupted run needs to go on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tasks.artifacts.arrays import Logits
from tasks.artifacts.records import Phase
from tasks.artifacts.tables import HistoryRow

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Snapshot:
    """Weights of the trained layers and their logits (N_val, C); epoch 0: before the phase."""

    epoch: int
    weights: Tensors
    val_logits: Logits


@dataclass(frozen=True)
class Tally:
    """Sums over the steps of an epoch so far.

    Attributes:
        steps: How many there were.
        shares: Of the peak rates, at which they were taken.
        loss: Of their images.
        right: Images that the model got right.
        images: Images seen.
    """

    steps: int = 0
    shares: float = 0.0
    loss: float = 0.0
    right: int = 0
    images: int = 0


@dataclass(frozen=True)
class TrainState:
    """Where training is: before the first epoch of a phase (epoch 0), after one, or within one.

    Attributes:
        phase: Number of the phase, from 1.
        epoch: Epochs done in it.
        start: As the phase began: what a rollback returns to.
        best: The epoch with the lowest val loss so far; None before the first.
        weights: The trained layers now.
        moments: The optimizer's memory, `<parameter>.<name>`.
        history: All epochs of all phases.
        finished: Records of the phases before this one.
        phase_average: Uniform average of what the kept ones among them ended with.
        micro_batch: Images that memory allows at once in a step; None: all of a batch.
        tally: Sums over the steps taken since those epochs. Where there are any, `weights` and
            `moments` are those after the last one of them.
    """

    phase: int
    epoch: int
    start: Snapshot
    best: Snapshot | None
    weights: Tensors
    moments: Tensors
    history: tuple[HistoryRow, ...]
    finished: tuple[Phase, ...]
    phase_average: Tensors
    micro_batch: int | None = None
    tally: Tally = Tally()

    @property
    def place(self) -> str:
        """Say where that is."""
        if self.tally.steps:
            return f"phase {self.phase}, step {self.tally.steps} of epoch {self.epoch + 1}"
        return f"phase {self.phase}, epoch {self.epoch}"


class Checkpoints(Protocol):
    """Where states are kept."""

    def save(self, state: TrainState) -> None:
        """Keep a state."""

    def latest(self) -> TrainState | None:
        """Give the newest state that is whole."""


def copy_tensors(module: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Copy parameters and buffers of a module by name, to the CPU."""
    state = module.state_dict()
    return {name: state[name].detach().to("cpu", copy=True) for name in names}


@torch.no_grad()
def load_tensors(module: nn.Module, tensors: Tensors) -> None:
    """Set parameters and buffers of a module by name, in place: they stay the same objects."""
    state = module.state_dict()
    for name, tensor in tensors.items():
        state[name].copy_(tensor)


def copy_moments(module: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Copy the optimizer's memory of every parameter it has stepped, as `<parameter>.<name>`."""
    return {
        f"{name}.{key}": value.detach().to("cpu", copy=True)
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_moments(module: nn.Module, optimizer: Optimizer, moments: Tensors) -> None:
    """Replace the optimizer's memory; parameters that `moments` does not name are forgotten."""
    optimizer.state.clear()
    parameters = dict(module.named_parameters())
    for name, value in moments.items():
        owner, _, key = name.rpartition(".")
        parameter = parameters[owner]
        memory = torch.zeros_like(parameter) if value.shape == parameter.shape else value.clone()
        optimizer.state[parameter][key] = memory.detach().copy_(value)
