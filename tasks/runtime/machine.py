"""Facts of the machine: device, threads, processes, engine, allocator.

They change results by rounding, as other processors do, and by what dropout draws where several
processes or micro-batches share a batch.

They come from REGRAFT_ environment variables, never from params.yaml; torchrun tells each of
several processes its place.
"""

import ctypes
import os
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from tasks.errors import ParamsError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8  # glibc's malloc.h


class Machine(BaseSettings):
    """What this machine offers: REGRAFT_DEVICE, _THREADS, _WORKERS, _PROCESSES and so on."""

    model_config = SettingsConfigDict(env_prefix="REGRAFT_", frozen=True, extra="ignore")

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where torch computes."
    )
    threads: int = Field(
        default=0, ge=0, le=1024, description="Compute threads; 0: as many as cores."
    )
    workers: int = Field(
        default=0, ge=0, le=1024, description="Image decoding threads; 0: as threads."
    )
    processes: int = Field(
        default=1, ge=1, le=1024, description="Processes of extract and finetune on this host."
    )
    engine: Literal["auto", "onnxruntime", "compiled", "torch"] = Field(
        default="auto",
        description="What runs frozen networks; auto: onnxruntime on a CPU, torch on a GPU, in "
        "bfloat16 and compiled where that pays; torch: as it stands, in float32.",
    )
    scratch: Path = Field(
        default=Path(".regraft"),
        description="Folder of checkpoints, cached activations and timings.",
    )

    @property
    def compute_threads(self) -> int:
        """Threads that computing may use in this process.

        REGRAFT_THREADS, else as many as cores it may use, shared by a stage's processes on this
        host.
        """
        return max(1, (self.threads or usable_cores()) // read_place().local_world_size)

    @property
    def decode_workers(self) -> int:
        """Threads that decode images: REGRAFT_WORKERS, else as many as compute."""
        return self.workers or self.compute_threads


class Place(BaseSettings):
    """The place of this process among those of its stage, as torchrun tells it; else the only one.

    The names are those of torchrun's environment variables.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    rank: int = Field(default=0, ge=0, description="Among all processes; the first writes.")
    world_size: int = Field(default=1, ge=1, description="Processes in all, on all hosts.")
    local_rank: int = Field(default=0, ge=0, description="On this host; also its GPU.")
    local_world_size: int = Field(default=1, ge=1, description="Processes on this host.")

    @property
    def launched(self) -> bool:
        """Whether something like torchrun started this process."""
        return "rank" in self.model_fields_set


def usable_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_machine() -> Machine:
    """Read the REGRAFT_ environment variables.

    Raises:
        ParamsError: A variable has a value that is not allowed; one line for each.
    """
    try:
        return Machine()
    except ValidationError as err:
        raise _name_variables(err, "REGRAFT_") from err


def read_place() -> Place:
    """Read torchrun's environment variables.

    Raises:
        ParamsError: A variable has a value that is not allowed; one line for each.
    """
    try:
        return Place()
    except ValidationError as err:
        raise _name_variables(err, "") from err


def _name_variables(error: ValidationError, prefix: str) -> ParamsError:
    lines = [
        f"environment variable {prefix}{'_'.join(map(str, detail['loc'])).upper()} is "
        f"{detail['input']!r}; {detail['msg']}"
        for detail in error.errors()
    ]
    return ParamsError("\n".join(lines))


def prepare_memory() -> None:
    """Let large tensors live in huge pages and keep freed memory for the next batch.

    Convolutions on a CPU allocate and free tens of megabytes a layer. With glibc's defaults each of
    them is mapped, zeroed page by page and given back; huge pages and a heap that is not trimmed
    made torch in eager mode about three times faster (README, Speed). All threads share the first
    arena: others hold no block above 64 MB. Works when called before the first large tensor is
    allocated. Values the user has set stay. Does nothing where the C library is not glibc.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if any(
        name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "LD_PRELOAD")
    ):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, 1 << 30)
    mallopt(M_TRIM_THRESHOLD, 1 << 30)
    mallopt(M_TOP_PAD, 64 << 20)
    mallopt(M_ARENA_MAX, 1)
