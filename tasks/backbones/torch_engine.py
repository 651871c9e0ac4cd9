"""Torch as an engine: float32 as it stands, which is the reference of all others, or compiled.

On a GPU the compiled one computes in bfloat16, with channels last in memory.
"""

import copy
import logging
from typing import Any

import numpy as np
import torch
from torch import nn

from tasks.backbones.parity import (
    HALF_TOLERANCE,
    TOLERANCE,
    Outputs,
    Pixels,
    difference,
    refuse_difference,
)
from tasks.backbones.runtime import normalize
from tasks.records import InputSpec

log = logging.getLogger(__name__)

COMPILED_ROWS = 100_000  # images below which compiling (tens of seconds) takes longer than it saves


class FromPixels(nn.Module):
    """A module with the normalization of its input in front."""

    def __init__(self, module: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.module = module
        self.spec = spec

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Normalize uint8 (N, R, R, 3) and give the module's outputs as a tuple."""
        outputs = self.module(normalize(pixels, self.spec))
        return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


class TorchEngine:
    """Runs a frozen network in torch.

    Args:
        module: Normalized images -> one tensor or a tuple of tensors; it is copied.
        spec: The images it expects.
        device: Where it runs.
        half: Whether it computes in bfloat16 (autocast).
        compiled: Whether torch.compile makes kernels for it, at the first call.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: InputSpec,
        device: torch.device,
        *,
        half: bool = False,
        compiled: bool = False,
    ) -> None:
        whole = FromPixels(copy.deepcopy(module), spec).eval().requires_grad_(False)
        untyped: Any = whole.to(device)
        self._module: Any = untyped.to(memory_format=torch.channels_last)
        if compiled:  # kernels that are chosen by timing them would differ from run to run
            self._module = torch.compile(self._module, options={"deterministic": True})
        self.half, self._device, self._compiled = half, device, compiled
        self.name = "torch" + "-compiled" * compiled + "-bfloat16" * half
        self.parity: float | None = None

    def __call__(self, pixels: Pixels) -> Outputs:
        """Give the outputs of a batch: pixels uint8 (N, R, R, 3) -> float32 (N, ...) each."""
        batch = torch.tensor(pixels, device=self._device)
        if self._compiled:
            torch._dynamo.maybe_mark_dynamic(batch, 0)  # one compilation for batches of all sizes
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self.half),
        ):
            outputs = self._module(batch)
        return tuple(
            np.ascontiguousarray(output.to("cpu", torch.float32).numpy()) for output in outputs
        )


def make_gpu_engine(
    module: nn.Module, spec: InputSpec, device: torch.device, sample: Pixels, *, rows: int
) -> tuple[TorchEngine, str]:
    """Make the fastest torch engine of a GPU that agrees with torch in float32 on a sample.

    What cannot run, or differs, gives way with a warning: compiled to plain, bfloat16 to float32.

    Args:
        module: Normalized images -> one tensor or a tuple of tensors.
        spec: The images it expects.
        device: The GPU.
        sample: uint8 (n, R, R, 3), some typical images.
        rows: Images it will run over; few are not worth compiling for.

    Returns:
        The engine, and why this one.
    """
    reference = TorchEngine(module, spec, device)
    half, pays = torch.cuda.is_bf16_supported(), rows >= COMPILED_ROWS
    for compiled in [True] * pays + [False] * half:
        engine = TorchEngine(module, spec, device, half=half, compiled=compiled)
        try:
            engine.parity = measure_parity(engine, reference, sample)
        except Exception as err:  # compilers raise errors of many kinds
            log.warning("%s cannot run this network (%s)", engine.name, first_line(err))
        else:
            return engine, f"compiling {'pays' if pays else 'does not pay'} for {rows:,} images"
    return reference, "no faster engine can run it"


def measure_parity(engine: TorchEngine, reference: TorchEngine, sample: Pixels) -> float:
    """Measure how far an engine is from the reference, relative to the largest value.

    Raises:
        EngineError: Further than allowed.
        Exception: Whatever torch raises where it cannot compile the network.
    """
    found = difference(engine(sample), reference(sample))
    refuse_difference(found, HALF_TOLERANCE if engine.half else TOLERANCE)
    return found


def first_line(err: Exception) -> str:
    """Say in one line what went wrong."""
    return f"{type(err).__name__}: {str(err).partition(chr(10))[0]}"
