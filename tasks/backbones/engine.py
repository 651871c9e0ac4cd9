"""Engines run a frozen network over packed pixels: onnxruntime on a CPU, torch on a GPU.

An engine is a snapshot: training the module afterwards does not change what the engine computes.
"""

import copy
import logging
from typing import Any, Protocol

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.backbones.onnx_export import export_onnx
from tasks.backbones.runtime import find_device, normalize, single_thread
from tasks.errors import EngineError
from tasks.machine import Machine
from tasks.records import InputSpec

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # largest difference between engine and torch, relative to torch's largest value
TRACED_ROWS = 2

Pixels = NDArray[np.uint8]
Outputs = tuple[NDArray[np.float32], ...]


class Engine(Protocol):
    """Runs one frozen network."""

    name: str  # onnxruntime or torch
    parity: float | None  # largest relative difference to torch in float32; None where it is that

    def __call__(self, pixels: Pixels) -> Outputs:
        """Give the outputs of a batch: pixels uint8 (N, R, R, 3) -> float32 (N, ...) each."""


def make_engine(
    module: nn.Module, spec: InputSpec, machine: Machine, sample: NDArray[np.uint8]
) -> Engine:
    """Make the engine of a frozen network for this machine.

    With REGRAFT_ENGINE auto, a CPU gets onnxruntime if it agrees with torch on the sample within
    `TOLERANCE`, otherwise torch, with a warning; a GPU gets torch.

    Args:
        module: Normalized images -> one tensor or a tuple of tensors with N rows each.
        spec: The images it expects.
        machine: Device, threads and engine.
        sample: uint8 (n, R, R, 3), some typical images.

    Raises:
        EngineError: REGRAFT_ENGINE forces onnxruntime and it cannot run the network, or the device
            asked for is missing.
    """
    device = find_device(machine)
    wanted = machine.engine
    if wanted == "torch" or (wanted == "auto" and device.type == "cuda"):
        return _TorchEngine(module, spec, device, sample)
    try:
        return _OnnxEngine(module, spec, machine.compute_threads, sample)
    except Exception as err:  # exporter and runtime raise errors of many kinds
        reason = f"{type(err).__name__}: {str(err).partition(chr(10))[0]}"
        if wanted == "onnxruntime":
            raise EngineError(
                f"REGRAFT_ENGINE is onnxruntime, which cannot run this network ({reason}); "
                "set it to auto or torch"
            ) from err
        log.warning("onnxruntime cannot run this network (%s); torch runs it, more slowly", reason)
        return _TorchEngine(module, spec, device, sample)


class _FromPixels(nn.Module):
    """A module with the normalization of its input in front."""

    def __init__(self, module: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.module = module
        self.spec = spec

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.module(normalize(pixels, self.spec))
        return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


class _TorchEngine:
    name = "torch"

    def __init__(
        self, module: nn.Module, spec: InputSpec, device: torch.device, sample: Pixels
    ) -> None:
        whole = _FromPixels(copy.deepcopy(module), spec).eval().requires_grad_(False)
        untyped: Any = whole.to(device)
        self._module: nn.Module = untyped.to(memory_format=torch.channels_last)
        self._device = device
        self._half = device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.parity: float | None = (
            _difference(self._run(sample, half=True), self._run(sample, half=False))
            if self._half
            else None
        )

    def __call__(self, pixels: Pixels) -> Outputs:
        return self._run(pixels, half=self._half)

    def _run(self, pixels: Pixels, *, half: bool) -> Outputs:
        batch = torch.tensor(pixels, device=self._device)
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=half),
        ):
            outputs = self._module(batch)
        return tuple(
            np.ascontiguousarray(output.to("cpu", torch.float32).numpy()) for output in outputs
        )


class _OnnxEngine:
    name = "onnxruntime"

    def __init__(self, module: nn.Module, spec: InputSpec, threads: int, sample: Pixels) -> None:
        # Traced on two images and compared on at least three: a batch size that was taken for a
        # constant would show.
        rows = max(len(sample), TRACED_ROWS + 1)
        checked = np.resize(sample, (rows, *sample.shape[1:]))
        with single_thread():  # so that the measured parity does not depend on how many there are
            expected = _TorchEngine(module, spec, torch.device("cpu"), sample)(checked)
        blob = export_onnx(
            _FromPixels(module, spec),
            torch.tensor(checked[:TRACED_ROWS]),
            input_name="pixels",
            output_names=[f"output_{number}" for number in range(len(expected))],
        )
        self._session = _start_session(blob, threads)
        difference = _difference(self(checked), expected)
        if not difference <= TOLERANCE:
            raise EngineError(
                f"it differs from torch by {difference:.1e} of the largest value, allowed: "
                f"{TOLERANCE:g}"
            )
        self.parity: float | None = difference

    def __call__(self, pixels: Pixels) -> Outputs:
        return tuple(self._session.run(None, {"pixels": np.ascontiguousarray(pixels)}))


def _start_session(blob: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.use_deterministic_compute = True
    # Idle threads sleep: spinning takes the cores from whatever else this machine does.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only
    return onnxruntime.InferenceSession(blob, options, providers=["CPUExecutionProvider"])


def _difference(found: Outputs, expected: Outputs) -> float:
    """Largest absolute difference of any output, relative to that output's largest value."""
    differences = [
        np.abs(one - other).max(initial=0.0) / max(np.abs(other).max(initial=0.0), 1e-12)
        for one, other in zip(found, expected, strict=True)
    ]
    return float(max(differences))
