"""Going on with fewer images at once where memory runs out.

What one batch asks for at once is asked for in equal parts: half as many images each time, until
they fit. The smaller number is kept, so that the next batch does not fail first.
"""

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn

from tasks.errors import RegraftError, first_line

log = logging.getLogger(__name__)

T = TypeVar("T")

# What libraries say that raise no OutOfMemoryError.
MESSAGES = (
    "can't allocate memory",  # torch on a CPU
    "not enough memory",  # torch on a CPU under Windows
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "Failed to allocate memory",  # onnxruntime
    "bad_alloc",  # any C++ library
)


def is_out_of_memory(err: Exception) -> bool:
    """Whether an error says that memory, of the GPU or the computer, ran out."""
    if isinstance(err, RegraftError):
        return False
    known = isinstance(err, (torch.OutOfMemoryError, MemoryError))
    return known or any(message in str(err) for message in MESSAGES)


@contextmanager
def explaining_memory(what: str, error: type[RegraftError], advice: str) -> Iterator[None]:
    """Say what to do where memory runs out and nothing smaller can be tried.

    Raises:
        RegraftError: Of the kind given: memory ran out.
    """
    try:
        yield
    except Exception as err:
        if not is_out_of_memory(err):
            raise
        raise error(f"{what}: memory ran out ({first_line(err)}); {advice}") from err


class MicroBatches:
    """Cuts batches into as few micro-batches as memory allows; it starts with one.

    Args:
        what: What needs the memory, for messages.
        error: Raised where memory runs out with the smallest micro-batch.
        advice: What to do then.

    Attributes:
        largest: Images that go through at once; None: as many as there are.
    """

    def __init__(self, what: str, error: type[RegraftError], advice: str) -> None:
        self._what, self._error, self._advice = what, error, advice
        self.largest: int | None = None

    def run(
        self,
        attempt: Callable[[Sequence[slice]], T],
        images: int,
        *,
        smallest: int = 1,
        undo: Callable[[], None] = lambda: None,
        remark: str = "",
    ) -> T:
        """Try a batch with ever smaller micro-batches until memory does not run out.

        Args:
            attempt: Gets the micro-batches as slices of the batch, in order.
            images: Images in the batch.
            smallest: Images that a micro-batch needs, unless the whole batch has fewer.
            undo: Puts back what a failed attempt has changed.
            remark: What else the log should say where the batch had to be cut further.

        Raises:
            RegraftError: Of the kind given: memory ran out with the smallest micro-batch.
        """
        while True:
            parts = cut_batch(images, self.largest or max(1, images), smallest)
            try:
                return attempt(parts)
            except Exception as err:
                if not is_out_of_memory(err):
                    raise
                self._halve(parts, smallest, remark, err)
            # Only here, where the error and the frames it holds are gone, tensors can be freed.
            gc.collect()
            torch.cuda.empty_cache()
            undo()

    def _halve(self, parts: Sequence[slice], smallest: int, remark: str, err: Exception) -> None:
        images, tried = parts[-1].stop, _largest(parts)
        smaller = cut_batch(images, (tried + 1) // 2, smallest)
        if len(smaller) == len(parts):
            raise self._error(
                f"{self._what}: memory ran out with {tried} image{'s' * (tried > 1)} at once, and "
                f"fewer cannot be tried ({first_line(err)}); {self._advice}"
            ) from err
        self.largest = _largest(smaller)
        log.warning(
            "%s: memory ran out with %d images at once; going on with %d at once%s",
            self._what,
            tried,
            self.largest,
            remark,
        )


def cut_batch(images: int, largest: int, smallest: int) -> list[slice]:
    """Cut a batch into the fewest parts of at most `largest` images, equal but for one image.

    No part has fewer than `smallest` images, even where that makes one larger than `largest`.
    """
    number = max(1, min(-(-images // largest), images // smallest))
    edges = [images * part // number for part in range(number + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def _largest(parts: Sequence[slice]) -> int:
    sizes: list[int] = [part.stop - part.start for part in parts]
    return max(sizes)


def remember_forward(layers: Sequence[nn.Module], device: torch.device) -> Callable[[], None]:
    """Give a function that undoes what forward passes change, beside gradients, from now on.

    That is the state of torch's generators, which dropout draws from, and the buffers of `layers`,
    such as running statistics.
    """
    generator = torch.get_rng_state()
    gpu_generator = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    buffers = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers()]

    def undo() -> None:
        torch.set_rng_state(generator)
        if gpu_generator is not None:
            torch.cuda.set_rng_state(gpu_generator, device)
        for buffer, before in buffers:
            buffer.copy_(before)

    return undo
