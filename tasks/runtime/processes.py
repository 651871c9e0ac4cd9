"""Several processes of one stage: this one's place, and the little that they tell one another.

torchrun starts them and says in the environment who is who. One process is the case of a world of
one: it needs no process group, and nothing here does anything.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from tasks.errors import EngineError, PeerError
from tasks.runtime.device import configure_torch, find_device
from tasks.runtime.machine import Machine, Place, read_place

SILENCE = timedelta(hours=1)  # a process waits for the others; one that ended is noticed at once


class Processes:
    """All processes of a stage, as one of them sees them.

    Every method but `share` must be called by all of them, in the same order.

    Args:
        rank: Which one this is, from 0; 0 decides and writes.
        world: How many there are.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Give this one's part of `count` things; the parts differ by one thing at most.

        Where there are fewer things than processes some parts are empty, never the first.
        """
        bounds = [math.ceil(place * count / self.world) for place in (self.rank, self.rank + 1)]
        return slice(*bounds)

    def add(self, tensor: Tensor) -> Tensor:
        """Replace a tensor, in place, by the sum of those of all processes, the same bits in each.

        Raises:
            PeerError: Another process has ended or is silent.
        """
        if self.world > 1:
            with _noticing_ends():
                dist.all_reduce(tensor)
        return tensor

    def any(self, mine: bool) -> bool:
        """Give whether it is so for one process at least.

        Raises:
            PeerError: Another process has ended or is silent.
        """
        return bool(self.add(torch.tensor([float(mine)])) > 0)

    def tell(self, text: str | None) -> str | None:
        """Give what the first process says.

        Raises:
            PeerError: Another process has ended or is silent.
        """
        said = [text]
        if self.world > 1:
            with _noticing_ends():
                dist.broadcast_object_list(said, src=0, device=torch.device("cpu"))
        return said[0]

    def wait(self) -> None:
        """Wait until all processes are here.

        Raises:
            PeerError: Another process has ended or is silent.
        """
        self.add(torch.zeros(1))


ALONE = Processes()


@contextmanager
def join_processes(machine: Machine, *, seed: int) -> Iterator[Processes]:
    """Meet the other processes of this stage, each on a GPU of its own where there are GPUs.

    torch is set up then, as `configure_torch` does.

    Raises:
        EngineError: There are more processes than GPUs on this host.
        PeerError: The others cannot be reached.
        ParamsError: One of torchrun's variables has a value that is not allowed.
    """
    place = read_place()
    if place.world_size == 1:
        configure_torch(machine, seed)
        yield ALONE
        return
    if dist.is_torchelastic_launched():
        threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    gpu = find_device(machine).type == "cuda"
    if gpu:
        _take_gpu(place)
    with _noticing_ends():
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=SILENCE)
    configure_torch(machine, seed)
    yield Processes(place.rank, place.world_size)
    dist.destroy_process_group()  # not after an error: the others may not answer any more


def speak_first() -> bool:
    """Whether this process is the first of its stage to ask, and so the one to show its error."""
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "0")
    try:
        wait = timedelta(seconds=10)
        store = dist.TCPStore(address, int(port), timeout=wait)  # type: ignore[attr-defined]
        return bool(store.add("regraft: errors", 1) == 1)
    except (ValueError, RuntimeError):  # whoever kept count has ended
        return True


def _end_with(parent: int) -> None:
    """Kill this process when the one that started it is gone.

    torchrun puts its processes into sessions of their own: what kills it does not reach them, and
    they would go on training beside the next run.
    """
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


def _take_gpu(place: Place) -> None:
    """Let `cuda` mean this process's GPU."""
    found = torch.cuda.device_count()
    if place.local_world_size > found:
        raise EngineError(
            f"{place.local_world_size} processes on this host, but torch sees {found} CUDA "
            "devices; lower REGRAFT_PROCESSES or torchrun's --nproc-per-node, or set "
            "REGRAFT_DEVICE to cpu"
        )
    torch.cuda.set_device(place.local_rank)


@contextmanager
def _noticing_ends() -> Iterator[None]:
    """Turn the errors of a broken connection, which torch raises as RuntimeErrors, into one."""
    try:
        yield
    except RuntimeError as err:
        raise PeerError(
            "another process of this stage has ended or cannot be reached "
            f"({str(err).partition(chr(10))[0]})"
        ) from err
