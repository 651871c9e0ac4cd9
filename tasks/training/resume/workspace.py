"""Where an interrupted training leaves what the next goes on from, named by all it depends on."""

import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TextIO

import timm
import torch

import tasks
from tasks.artifacts.words import listed
from tasks.errors import ArtifactError, TrainingError
from tasks.runtime.processes import ALONE, Processes
from tasks.training.resume.checkpoints import CheckpointFolder

log = logging.getLogger(__name__)

TASKS = Path(tasks.__file__).parent
CONSTRAINTS = TASKS.parent / "constraints.txt"  # versions of all libraries
IMPORTED = ("artifacts", "backbones", "heads", "judging", "runtime", "training")
SAMPLED_BYTES = 64 << 20  # of a larger file only blocks are read: pixel stores can be huge
BLOCK_BYTES = 1 << 16
BLOCKS = 256


def fingerprint(inputs: Sequence[Path], values: Sequence[str], code: Sequence[Path]) -> str:
    """Give 16 hexadecimal digits that change with inputs, values, code and libraries.

    Of files over 64 MiB, evenly spaced blocks count: the manifest beside them tells other images.

    Args:
        inputs: Files and folders that training reads, in an order that stays.
        values: Parameters, as text.
        code: Source files, and folders of which every .py file counts.
    """
    digest = hashlib.sha256()
    for text in [*values, torch.__version__, timm.__version__]:
        digest.update(f"{len(text)}:{text}".encode())
    for paths, pattern in ((inputs, "*"), (code, "*.py")):
        for path in paths:
            for name, file in _files(path, pattern):
                digest.update(f"{len(name)}:{name}".encode() + _hash_file(file))
    return digest.hexdigest()[:16]


def _files(path: Path, pattern: str) -> list[tuple[str, Path]]:
    """Give every file of a folder, or the file itself, by its name from there."""
    files = [path] if path.is_file() else path.rglob(pattern)
    return sorted((f.relative_to(path.parent).as_posix(), f) for f in files if f.is_file())


def _hash_file(path: Path) -> bytes:
    digest = hashlib.sha256(str(path.stat().st_size).encode())
    for block in _blocks(path):
        digest.update(block)
    return digest.digest()


def _blocks(path: Path) -> Iterator[bytes]:
    """Yield the whole file, or evenly spaced blocks of a large one."""
    size = path.stat().st_size
    spacing = BLOCK_BYTES if size <= SAMPLED_BYTES else size // BLOCKS
    with path.open("rb") as file:
        for start in range(0, size, spacing):
            file.seek(start)
            yield file.read(BLOCK_BYTES)


LOCK = "lock"  # in the folder of checkpoints
PATIENCE_SECONDS = 10.0  # for what is left of a killed run: its processes end within seconds
PAUSE_SECONDS = 0.2  # between two looks


@dataclass(frozen=True)
class Workspace:
    """Folders for what an interrupted run can go on from.

    Both are named by the fingerprint of the training; beside them lie those of other trainings.
    """

    checkpoints: Path
    activations: Path

    @classmethod
    def of(cls, scratch: Path, inputs: Sequence[Path], values: Sequence[str], stage: Path) -> Self:
        """Name the folders of a training in the scratch folder.

        Args:
            scratch: Where interrupted trainings leave what they have.
            inputs: Files and folders that it reads.
            values: Its parameters, as text.
            stage: The module that runs it; with it count the packages that it imports, and no
                other: an edit of the report costs no training that is half done.
        """
        code = [stage, *(TASKS / name for name in IMPORTED)]
        key = fingerprint(inputs, values, [*code, *([CONSTRAINTS] if CONSTRAINTS.exists() else [])])
        return cls(scratch / "checkpoints" / key, scratch / "activations" / key)

    def open_checkpoints(self, processes: Processes = ALONE) -> CheckpointFolder:
        """Give the checkpoints of the training."""
        return CheckpointFolder(self.checkpoints, processes)

    def remove(self) -> None:
        """Delete both."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        shutil.rmtree(self.activations, ignore_errors=True)

    @contextmanager
    def holding(self, *, first: bool = True, patience: float = PATIENCE_SECONDS) -> Iterator[None]:
        """Keep the first process of any other run of this very training out of the folders.

        The kernel lets go of the lock when its holder ends, however it ends.

        Raises:
            ArtifactError: The folder of checkpoints cannot be written.
            TrainingError: Another run holds them for longer than `patience` seconds.
        """
        if not first:
            yield
            return
        give_up = time.monotonic() + patience
        while (lock := _try_lock(self.checkpoints)) is None:
            if time.monotonic() >= give_up:
                raise TrainingError(
                    f"{self.checkpoints}: another run is training the same from the same inputs; "
                    "wait until it has ended, or set REGRAFT_SCRATCH to a folder of this run's own"
                )
            time.sleep(PAUSE_SECONDS)
        with lock:
            yield

    def mention_others(self) -> None:
        """Say what other trainings have left: it is never used here, and never deleted."""
        own = (self.checkpoints, self.activations)
        beside = [path for one in own for path in sorted(one.parent.glob("*")) if path not in own]
        others = [path for path in beside if _size(path)]
        if others:
            log.info(
                "%s: left behind by trainings of other inputs, values or code, %.1f MB in all; not "
                "used here, and may be deleted if none of them is still running",
                listed([str(path) for path in others]),
                sum(map(_size, others)) / 1e6,
            )

    @contextmanager
    def saying_where_to_go_on(self, *, first: bool = True) -> Iterator[None]:
        """When a signal stops the training, the first process says where the next run goes on."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            if first:
                log.warning("stopped; the next run goes on %s", self._place())
            raise

    def _place(self) -> str:
        newest = self.open_checkpoints().newest()
        if newest is None:
            return "from the start: no epoch was finished"
        phase, epoch, step = newest
        if step:
            return f"after step {step} of epoch {epoch + 1} of phase {phase}"
        if epoch == 0:
            return f"from the start of phase {phase}"
        return f"from the end of epoch {epoch} of phase {phase}"


def _try_lock(folder: Path) -> TextIO | None:
    """Lock a folder; None where another process holds it, or has just deleted it."""
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as err:
        raise ArtifactError(
            f"{folder}: cannot be written ({err.strerror or err}); set REGRAFT_SCRATCH to a "
            "folder that can"
        ) from err
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError as err:  # a network disk that knows no locks
        log.warning(
            "%s: cannot be locked (%s); let no other run train the same at the same time",
            folder,
            err.strerror or err,
        )
        return file
    file.close()
    return None


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # a training that is running deletes files of its own
            total += path.stat().st_size if path.is_file() else 0
    return total
