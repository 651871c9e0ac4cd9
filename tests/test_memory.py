"""Where memory runs out, fewer images at once give the same answer; other errors stay errors."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from conftest import tells
from torch import nn

from tasks.artifacts.records import InputSpec
from tasks.backbones import engine as engine_module
from tasks.backbones.engine import make_engine
from tasks.errors import EngineError, TrainingError
from tasks.runtime.machine import Machine
from tasks.runtime.memory import (
    MicroBatches,
    cut_batch,
    explaining_memory,
    is_out_of_memory,
    remember_forward,
)

CPU_MESSAGE = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 70368744177664 bytes. Error code 12 (Cannot allocate memory)"
)
SHORTAGES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError(CPU_MESSAGE),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    MemoryError(),
]


@pytest.mark.parametrize("err", SHORTAGES, ids=lambda err: f"{type(err).__name__} {err}"[:40])
def test_errors_that_mean_a_lack_of_memory_are_known(err: Exception):
    assert is_out_of_memory(err)


@pytest.mark.parametrize(
    "err",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("no images"),
        EngineError("frozen layers: not enough memory"),  # has been tried with fewer images
    ],
    ids=["shapes", "value", "own"],
)
def test_other_errors_are_not(err: Exception):
    assert not is_out_of_memory(err)


def test_an_allocation_that_no_computer_can_make_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("images", "largest", "smallest", "sizes"),
    [
        (8, 8, 1, [8]),
        (8, 4, 1, [4, 4]),
        (9, 4, 1, [3, 3, 3]),
        (7, 3, 1, [2, 2, 3]),
        (3, 1, 1, [1, 1, 1]),
        (5, 2, 2, [2, 3]),
        (3, 2, 2, [3]),
        (1, 1, 2, [1]),
        (4, 100, 2, [4]),
        (0, 1, 1, [0]),
    ],
)
def test_a_batch_is_cut_into_equal_parts(
    images: int, largest: int, smallest: int, sizes: list[int]
):
    parts = cut_batch(images, largest, smallest)
    assert [part.stop - part.start for part in parts] == sizes
    assert [number for part in parts for number in range(images)[part]] == list(range(images))


def hungry(room: int, err: Exception, tried: list[int]) -> Callable[[Sequence[slice]], list[slice]]:
    """An attempt that fails wherever more images than there is room for come at once."""

    def attempt(parts: Sequence[slice]) -> list[slice]:
        for part in parts:
            tried.append(part.stop - part.start)
            if tried[-1] > room:
                raise err
        return list(parts)

    return attempt


@pytest.mark.parametrize("err", SHORTAGES[:2], ids=["CUDA", "CPU"])
def test_halving_goes_on_until_it_fits_and_is_remembered(
    err: Exception, caplog: pytest.LogCaptureFixture
):
    batches, tried, undone = MicroBatches("training step", TrainingError, "help"), [], []
    found = batches.run(hungry(3, err, tried), 8, undo=lambda: undone.append(len(tried)))
    assert found == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8)]
    assert tried == [8, 4, 2, 2, 2, 2]
    assert undone == [1, 2]
    facts = ("8 images", "with 4 at once"), ("4 images", "with 2 at once")
    for message, told in zip(caplog.messages, facts, strict=True):
        assert tells(message, "training step", "memory", *told)
    tried.clear()
    batches.run(hungry(3, err, tried), 4)
    assert tried == [2, 2]


@pytest.mark.parametrize(
    ("images", "smallest", "last"), [(8, 1, 1), (8, 2, 2), (5, 2, 3), (1, 1, 1)]
)
def test_the_smallest_micro_batch_that_fails_says_what_to_do(images: int, smallest: int, last: int):
    batches = MicroBatches("training step", TrainingError, "use another machine")
    with pytest.raises(TrainingError, match=rf"ran out with {last} image.*; use another machine"):
        batches.run(hungry(0, SHORTAGES[0], []), images, smallest=smallest)


def test_other_errors_are_raised_at_once():
    tried: list[int] = []
    with pytest.raises(ValueError, match="no images"):
        MicroBatches("x", TrainingError, "").run(hungry(0, ValueError("no images"), tried), 8)
    assert tried == [8]


def test_tensors_of_a_failed_attempt_are_freed_before_the_next():
    class Tracked:
        alive = 0

        def __init__(self) -> None:
            Tracked.alive += 1

        def __del__(self) -> None:
            Tracked.alive -= 1

    def attempt(parts: Sequence[slice]) -> int:
        before = Tracked.alive
        activation = Tracked()
        if len(parts) < 4:
            raise MemoryError(activation)
        return before

    assert MicroBatches("x", TrainingError, "").run(attempt, 8) == 0


def test_a_lack_that_cannot_be_helped_says_what_to_do():
    with (
        pytest.raises(TrainingError, match=r"optimizer: .*MemoryError.*; buy more"),
        explaining_memory("optimizer", TrainingError, "buy more"),
    ):
        raise MemoryError("9 bytes")


def test_a_failed_forward_pass_leaves_no_trace():
    layer = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    images = torch.randn(8, 3)
    torch.manual_seed(1)
    undo = remember_forward(list(layer), torch.device("cpu"))
    first, statistics = layer(images), layer[0].running_mean.clone()
    undo()
    assert torch.equal(layer(images), first)
    assert torch.equal(layer[0].running_mean, statistics)
    assert layer[0].num_batches_tracked == 1


# engines -----------------------------------------------------------------------------------------


class Features(nn.Module):
    """Two outputs, without room for more than two images beside the sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = self.layer(images)
        return maps, maps.mean(dim=(2, 3))


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_an_engine_without_room_gives_the_same_outputs_in_parts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, engine: str
):
    caplog.set_level(logging.WARNING)
    pixels = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    spec = InputSpec(image_px=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    machine = Machine(device="cpu", threads=1, engine=engine)
    made = make_engine(Features(), spec, machine, pixels[:2])
    expected = made(pixels)
    kind = engine_module.TorchEngine if engine == "torch" else engine_module._OnnxEngine
    real, room = kind.__call__, 2

    def call(self: object, given: np.ndarray) -> tuple[np.ndarray, ...]:
        if len(given) > room:
            raise RuntimeError(CPU_MESSAGE)
        return real(self, given)

    monkeypatch.setattr(kind, "__call__", call)
    for found, wanted in zip(made(pixels), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    assert "going on with 2 at once" in caplog.text
    room = 0
    with pytest.raises(EngineError, match=r"frozen layers: .* 1 image at once.*augment\.image_px"):
        made(pixels)
