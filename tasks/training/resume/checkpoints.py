"""Checkpoints: a file after every epoch, and within it where it is long or training is stopped.

They are outside DVC, which clears a stage's outs before it runs.

A file is written whole or not at all and carries a digest of its content. Its folder is named by a
fingerprint of all that training depends on: only the same training goes on from it.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Protocol

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer

from tasks.artifacts.arrays import Array, Logits, read_tensors, read_tensors_note, write_tensors
from tasks.artifacts.records import Phase, Record
from tasks.artifacts.tables import HistoryRow
from tasks.errors import ArtifactError
from tasks.runtime.processes import ALONE, Processes

log = logging.getLogger(__name__)

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
        judged: Logits on val (N_val, C) by which each of these was kept or rolled back.
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
    judged: tuple[Logits, ...]
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


KEPT = 2  # newest files; the older one is for when the newer one is damaged
LOGITS = "logits"  # of a snapshot, beside its weights
JUDGED = "judged/"  # logits of the phases that are over


class _Position(Record):
    """What a state holds beside tensors."""

    phase: int
    epoch: int
    best_epoch: int | None
    history: list[HistoryRow]
    finished: list[Phase]
    micro_batch: int | None
    tally: Tally


class CheckpointFolder:
    """Keeps the newest states of one training in a folder.

    Of several processes, which are all in the same state, the first one writes and deletes.

    Args:
        folder: Its name is the fingerprint of the training; all processes can read it.
        processes: Save and ask for the latest state together.
    """

    def __init__(self, folder: Path, processes: Processes = ALONE) -> None:
        self._folder, self._processes = folder, processes

    def save(self, state: TrainState) -> None:
        """Write a state and delete all but the newest two.

        Raises:
            ArtifactError: The file cannot be written, for example because the disk is full.
        """
        if not self._processes.first:
            return
        write_state(self._folder / f"{_name(state)}.safetensors", state)
        for path in self._newest_first()[KEPT:]:
            path.unlink(missing_ok=True)

    def latest(self) -> TrainState | None:
        """Read the newest state that is whole; None where there is none.

        The first process finds it; the others read the same one.

        Raises:
            ArtifactError: This is not the first process, and it cannot read the first one's file.
        """
        name, state = self._newest_whole() if self._processes.first else (None, None)
        name = self._processes.tell(name)
        if name is not None and state is None:
            state = read_train_state(self._folder / name)
        self._processes.wait()  # before the first one can delete it
        return state

    def newest(self) -> tuple[int, int, int] | None:
        """Phase, epochs and steps after them in the newest file; None where there is no file."""
        for path in self._newest_first()[:1]:
            _, phase, _, epoch, *step = path.stem.split("-")
            return int(phase), int(epoch), int(step[1]) if step else 0
        return None

    def _newest_whole(self) -> tuple[str | None, TrainState | None]:
        paths = self._newest_first()
        for path, before in zip_longest(paths, paths[1:]):
            try:
                return path.name, read_train_state(path)
            except ArtifactError as err:
                damaged = path.with_suffix(".damaged")
                path.replace(damaged)  # so that it is not counted among the newest
                log.warning(
                    "%s; it is now %s; going on from %s",
                    err,
                    damaged.name,
                    before.stem if before else "the start of training",
                )
        return None, None

    def _newest_first(self) -> list[Path]:
        paths = self._folder.glob("phase-*.safetensors")
        return sorted(paths, key=lambda path: path.stem, reverse=True)


def _name(state: TrainState) -> str:
    """Name a state so that later ones sort after it: steps are those after the epoch named."""
    steps = f"-step-{state.tally.steps:09d}" if state.tally.steps else ""
    return f"phase-{state.phase:03d}-epoch-{state.epoch:06d}{steps}"


def write_state(path: Path, state: TrainState) -> None:
    """Write a state as one safetensors file whose note holds the rest of it and a digest."""
    arrays = {
        **_named("weights", state.weights),
        **_named("moments", state.moments),
        **_named("phase-average", state.phase_average),
        **{f"{JUDGED}{number:03d}": logits for number, logits in enumerate(state.judged)},
        **_named_snapshot("start", state.start),
        **(_named_snapshot("best", state.best) if state.best else {}),
    }
    position = _Position(
        phase=state.phase,
        epoch=state.epoch,
        best_epoch=state.best.epoch if state.best else None,
        history=list(state.history),
        finished=list(state.finished),
        micro_batch=state.micro_batch,
        tally=state.tally,
    ).model_dump_json()
    note = {"position": position, "digest": _digest(arrays, position)}
    write_tensors(path, arrays, note)


def read_train_state(path: Path) -> TrainState:
    """Read a state.

    Raises:
        ArtifactError: The file is missing, or not one byte of it may be trusted.
    """
    arrays, note = read_tensors(path), read_tensors_note(path)
    position_text = note.get("position", "")
    if note.get("digest") != _digest(arrays, position_text):
        raise ArtifactError(f"{path}: is damaged (its content does not match its digest)")
    try:
        position = _Position.model_validate_json(position_text)
    except ValidationError as err:
        raise ArtifactError(f"{path}: is no checkpoint ({err.errors()[0]['msg']})") from err
    best_epoch = position.best_epoch
    return TrainState(
        phase=position.phase,
        epoch=position.epoch,
        start=_snapshot(arrays, "start", 0),
        best=None if best_epoch is None else _snapshot(arrays, "best", best_epoch),
        weights=_tensors(arrays, "weights"),
        moments=_tensors(arrays, "moments"),
        history=tuple(position.history),
        finished=tuple(position.finished),
        judged=tuple(arrays[name] for name in sorted(arrays) if name.startswith(JUDGED)),
        phase_average=_tensors(arrays, "phase-average"),
        micro_batch=position.micro_batch,
        tally=position.tally,
    )


def _named(kind: str, tensors: Tensors) -> dict[str, Array]:
    return {f"{kind}/{name}": tensor.numpy() for name, tensor in tensors.items()}


def _named_snapshot(kind: str, snapshot: Snapshot) -> dict[str, Array]:
    return {f"{kind}-{LOGITS}/": snapshot.val_logits, **_named(kind, snapshot.weights)}


def _tensors(arrays: Mapping[str, Array], kind: str) -> dict[str, Tensor]:
    prefix = f"{kind}/"
    return {
        name.removeprefix(prefix): torch.from_numpy(array)
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _snapshot(arrays: Mapping[str, Array], kind: str, epoch: int) -> Snapshot:
    return Snapshot(epoch, _tensors(arrays, kind), arrays[f"{kind}-{LOGITS}/"])


def _digest(arrays: Mapping[str, Array], position: str) -> str:
    digest = hashlib.sha256(position.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
