"""Engines run a frozen network over packed pixels: onnxruntime on a CPU, compiled torch on a GPU.

Torch in float32 is the reference: another engine is used only where it answers the same, within a
tolerance. An engine is a snapshot: training the module afterwards changes nothing in it.
"""

import copy
import logging
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.artifacts.arrays import Pixels
from tasks.artifacts.records import InputSpec
from tasks.backbones.onnx_export import export_onnx
from tasks.backbones.session import start_session
from tasks.errors import EngineError, first_line
from tasks.runtime.device import find_device, normalize, single_thread
from tasks.runtime.machine import Machine
from tasks.runtime.memory import MicroBatches

TOLERANCE = 1e-4  # largest difference between engine and torch, relative to torch's largest value
HALF_TOLERANCE = 0.05  # the same in bfloat16
Outputs = tuple[NDArray[np.float32], ...]


def refuse_difference(found: float, tolerance: float) -> None:
    """Refuse an engine that differs from torch.

    Raises:
        EngineError: The difference is larger than allowed, or not a number.
    """
    if not found <= tolerance:
        raise EngineError(
            f"it differs from torch by {found:.1e} of the largest value, allowed: {tolerance:g}"
        )


def difference(found: Outputs, expected: Outputs) -> float:
    """Largest absolute difference of any output, relative to that output's largest value."""
    differences = [
        np.abs(one - other).max(initial=0.0) / max(np.abs(other).max(initial=0.0), 1e-12)
        for one, other in zip(found, expected, strict=True)
    ]
    return float(max(differences))


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


TRACED_ROWS = 2


class Engine(Protocol):
    """Runs one frozen network."""

    name: str  # onnxruntime; or torch, with what it was speeded up by
    parity: float | None  # largest relative difference to torch in float32; None where it is that

    def __call__(self, pixels: Pixels) -> Outputs:
        """Give the outputs of a batch: pixels uint8 (N, R, R, 3) -> float32 (N, ...) each."""


def make_engine(
    module: nn.Module,
    spec: InputSpec,
    machine: Machine,
    sample: NDArray[np.uint8],
    *,
    rows: int = 0,
) -> Engine:
    """Make the engine of a frozen network for this machine.

    With REGRAFT_ENGINE auto, a CPU gets onnxruntime and a GPU torch in bfloat16, compiled where
    that pays, if they agree with torch in float32 on the sample; otherwise the next slower one,
    with a warning. The log says which one runs and why. Where memory runs out later, it takes fewer
    images at once.

    Args:
        module: Normalized images -> one tensor or a tuple of tensors with N rows each.
        spec: The images it expects.
        machine: Device, threads and engine.
        sample: uint8 (n, R, R, 3), some typical images.
        rows: Images that it will run over, as far as known.

    Raises:
        EngineError: REGRAFT_ENGINE forces an engine that cannot run the network, or the device
            asked for is missing.
    """
    device = find_device(machine)
    if machine.engine != "auto":
        engine = _force(module, spec, machine, sample)
        why = "as REGRAFT_ENGINE says"
    elif device.type == "cpu":
        engine, why = _choose_on_cpu(module, spec, machine, sample)
    else:
        engine, why = make_gpu_engine(module, spec, device, sample, rows=rows)
    parity = "" if engine.parity is None else f"; within {engine.parity:.0e} of torch in float32"
    log.info("frozen layers run in %s on %s: %s%s", engine.name, device.type, why, parity)
    return _PatientEngine(engine)


def _choose_on_cpu(
    module: nn.Module, spec: InputSpec, machine: Machine, sample: Pixels
) -> tuple[Engine, str]:
    try:
        return _OnnxEngine(module, spec, machine.compute_threads, sample), "the fastest on a CPU"
    except Exception as err:  # exporter and runtime raise errors of many kinds
        log.warning(
            "onnxruntime cannot run this network (%s); torch runs it, more slowly", first_line(err)
        )
        return TorchEngine(module, spec, torch.device("cpu")), "no faster engine can run it"


def _force(module: nn.Module, spec: InputSpec, machine: Machine, sample: Pixels) -> Engine:
    """Make the engine that REGRAFT_ENGINE names, or fail."""
    device = find_device(machine)
    reference = TorchEngine(module, spec, device)
    if machine.engine == "torch":
        return reference
    try:
        if machine.engine == "onnxruntime":
            return _OnnxEngine(module, spec, machine.compute_threads, sample)
        half = device.type == "cuda" and torch.cuda.is_bf16_supported()
        engine = TorchEngine(module, spec, device, half=half, compiled=True)
        engine.parity = measure_parity(engine, reference, sample)
        return engine
    except Exception as err:
        raise EngineError(
            f"REGRAFT_ENGINE is {machine.engine}, which cannot run this network "
            f"({first_line(err)}); set it to auto or torch"
        ) from err


class _PatientEngine:
    """Runs an engine over fewer images at once where memory runs out."""

    def __init__(self, engine: Engine) -> None:
        self.name, self.parity = engine.name, engine.parity
        self._engine = engine
        self._batches = MicroBatches(
            "frozen layers", EngineError, "lower augment.image_px or use a machine with more memory"
        )

    def __call__(self, pixels: Pixels) -> Outputs:
        return self._batches.run(lambda parts: self._run(pixels, parts), len(pixels))

    def _run(self, pixels: Pixels, parts: Sequence[slice]) -> Outputs:
        first, *rest = [self._engine(pixels[part]) for part in parts]
        if not rest:
            return first
        return tuple(np.concatenate(outputs) for outputs in zip(first, *rest, strict=True))


class _OnnxEngine:
    name = "onnxruntime"

    def __init__(self, module: nn.Module, spec: InputSpec, threads: int, sample: Pixels) -> None:
        # Traced on two images and compared on at least three: a batch size that was taken for a
        # constant would show.
        rows = max(len(sample), TRACED_ROWS + 1)
        checked = np.resize(sample, (rows, *sample.shape[1:]))
        with single_thread():  # so that the measured parity does not depend on how many there are
            expected = TorchEngine(module, spec, torch.device("cpu"))(checked)
        blob = export_onnx(
            FromPixels(module, spec),
            torch.tensor(checked[:TRACED_ROWS]),
            input_name="pixels",
            output_names=[f"output_{number}" for number in range(len(expected))],
        )
        self._session = start_session(blob, threads)
        self.parity: float | None = difference(self(checked), expected)
        refuse_difference(self.parity, TOLERANCE)

    def __call__(self, pixels: Pixels) -> Outputs:
        return tuple(self._session.run(None, {"pixels": np.ascontiguousarray(pixels)}))
