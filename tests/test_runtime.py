"""How torch is set up, and how pixels become a backbone's input."""

import os

import numpy as np
import pytest
import torch

from tasks.artifacts.records import InputSpec
from tasks.errors import EngineError
from tasks.runtime.device import configure_torch, find_device, normalize
from tasks.runtime.machine import Machine

pytestmark = pytest.mark.usefixtures("restored_torch")

SPEC = InputSpec(image_px=4, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def test_normalized_pixels_follow_the_formula_channel_by_channel():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    found = normalize(torch.tensor(pixels), SPEC).numpy()
    expected = (pixels / 255 - np.array(SPEC.mean)) / np.array(SPEC.std)
    np.testing.assert_allclose(found, expected.transpose(0, 3, 1, 2), rtol=0, atol=1e-6)
    assert found.dtype == np.float32


def test_normalized_pixels_lie_channels_last_in_memory():
    images = normalize(torch.zeros((2, 4, 4, 3), dtype=torch.uint8), SPEC)
    assert images.shape == (2, 3, 4, 4)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_the_seed_decides_what_torch_draws():
    configure_torch(Machine(device="cpu", threads=1), 3)
    first = torch.rand(5)
    configure_torch(Machine(device="cpu", threads=1), 3)
    assert torch.equal(torch.rand(5), first)
    configure_torch(Machine(device="cpu", threads=1), 4)
    assert not torch.equal(torch.rand(5), first)


def test_threads_and_deterministic_kernels_are_set():
    device = configure_torch(Machine(device="cpu", threads=1), 0)
    assert device == torch.device("cpu")
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_missing_gpu_is_named_only_if_it_was_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device(Machine(device="auto")) == torch.device("cpu")
    with pytest.raises(EngineError, match=r"REGRAFT_DEVICE is 'cuda'.*sees no CUDA device"):
        find_device(Machine(device="cuda"))


def test_a_gpu_is_used_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device(Machine(device="auto")) == torch.device("cuda")
    assert find_device(Machine(device="cpu")) == torch.device("cpu")
