"""How torch is set up on this machine, and how packed pixels become what a backbone expects."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tasks.artifacts.records import InputSpec
from tasks.errors import EngineError
from tasks.runtime.machine import Machine


def configure_torch(machine: Machine, seed: int) -> torch.device:
    """Set threads, seed and deterministic kernels for this process; give the device to compute on.

    Operations without a deterministic kernel (only some on a GPU) warn instead of stopping the run.

    Args:
        machine: What this machine offers.
        seed: Of torch's global generator, which draws dropout masks and nothing that is saved as
            data.

    Raises:
        EngineError: REGRAFT_DEVICE is cuda and torch sees no CUDA device.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(machine.compute_threads)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Deterministic mode would also fill every new tensor before use: a pass over memory a layer.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    return find_device(machine)


def find_device(machine: Machine) -> torch.device:
    """Where torch computes on this machine.

    Raises:
        EngineError: REGRAFT_DEVICE is cuda and torch sees no CUDA device.
    """
    if machine.device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if machine.device == "cuda":
        raise EngineError(
            f"environment variable REGRAFT_DEVICE is 'cuda', but torch {torch.__version__} sees no "
            "CUDA device; install a CUDA build of torch and a driver, or set it to cpu or auto"
        )
    return torch.device("cpu")


@contextmanager
def single_thread() -> Iterator[None]:
    """Let each torch operation run in one thread.

    Sums are split by thread, so that their last bits depend on how many there are. What is written
    to a file must not.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def normalize(pixels: torch.Tensor, spec: InputSpec) -> torch.Tensor:
    """Turn pixels into a backbone's input: (pixel / 255 - mean) / std.

    Args:
        pixels: uint8 (N, R, R, 3).
        spec: Mean and standard deviation of each channel, in [0, 1].

    Returns:
        float32 (N, 3, R, R) on the same device, channels last in memory as the pixels are.
    """
    mean = torch.tensor(spec.mean, dtype=torch.float64)
    std = torch.tensor(spec.std, dtype=torch.float64)
    scale = (1 / (255 * std)).to(pixels.device, torch.float32)
    shift = (-mean / std).to(pixels.device, torch.float32)
    channels_first = pixels.permute(0, 3, 1, 2).to(torch.float32)
    return channels_first * scale[:, None, None] + shift[:, None, None]
