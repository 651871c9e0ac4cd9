"""Facts of the machine that change no result: device, threads, decode workers, engine, allocator.

They come from REGRAFT_ environment variables, never from params.yaml.
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
    """What this machine offers: REGRAFT_DEVICE, _THREADS, _WORKERS, _ENGINE and _SCRATCH."""

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
        """Threads that computing may use: REGRAFT_THREADS, else the cores this process may use."""
        return self.threads or _usable_cores()

    @property
    def decode_workers(self) -> int:
        """Threads that decode images: REGRAFT_WORKERS, else as many as compute."""
        return self.workers or self.compute_threads


def _usable_cores() -> int:
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
        lines = [
            f"environment variable REGRAFT_{'_'.join(map(str, detail['loc'])).upper()} is "
            f"{detail['input']!r}; {detail['msg']}"
            for detail in err.errors()
        ]
        raise ParamsError("\n".join(lines)) from err


def prepare_memory() -> None:
    """Let large tensors live in huge pages and keep freed memory for the next batch.

    Convolutions on a CPU allocate and free tens of megabytes a layer. With glibc's defaults each of
    them is mapped, zeroed page by page and given back; huge pages and a heap that is not trimmed
    made torch eager three to four times faster (README, Speed). All threads share the first arena:
    others hold no block above 64 MB. Works when called before the first large tensor is allocated.
    Values the user has set stay. Does nothing where the C library is not glibc.
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
