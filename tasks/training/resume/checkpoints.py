"""Checkpoints: a file after every epoch, and within it where it is long or training is stopped.

They are outside DVC, which clears a stage's outs before it runs.

A file is written whole or not at all and carries a digest of its content. Its folder is named by a
fingerprint of all that training depends on: only the same training goes on from it.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from tasks.artifacts.arrays import Array, read_tensors, read_tensors_note, write_tensors
from tasks.artifacts.records import Phase, Record
from tasks.artifacts.tables import HistoryRow
from tasks.errors import ArtifactError
from tasks.runtime.processes import ALONE, Processes
from tasks.training.resume.state import Snapshot, Tally, Tensors, TrainState

log = logging.getLogger(__name__)

KEPT = 2  # newest files; the older one is for when the newer one is damaged
LOGITS = "logits"  # of a snapshot, beside its weights


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

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

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
