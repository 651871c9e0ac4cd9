"""Engines: equal to torch, to themselves, at every batch size; loud when one cannot be used."""

import itertools
import logging

import numpy as np
import onnx
import pytest
import timm
import torch
from timm.layers import Conv2dSame
from torch import nn

from tasks.backbones import engine as engine_module
from tasks.backbones.engine import make_engine
from tasks.backbones.features import FeaturesAndLogits, PooledFeatures
from tasks.backbones.onnx_export import export_onnx
from tasks.backbones.runtime import normalize
from tasks.backbones.split import prefixes_at, split_at
from tasks.errors import EngineError
from tasks.machine import Machine
from tasks.records import InputSpec

ONNX = Machine(device="cpu", threads=1, engine="onnxruntime")
TORCH = Machine(device="cpu", threads=1, engine="torch")
AUTO = Machine(device="cpu", threads=1)


def spec_of(side: int) -> InputSpec:
    return InputSpec(image_px=side, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def draw(count: int, side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def build(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **options).eval()


def in_torch(module: nn.Module, pixels: np.ndarray) -> torch.Tensor:
    with torch.inference_mode():
        return module(normalize(torch.tensor(pixels), spec_of(pixels.shape[1])))


@pytest.mark.parametrize("machine", [ONNX, TORCH, AUTO], ids=["onnxruntime", "torch", "auto"])
def test_an_engine_gives_features_and_logits_of_torch(machine):
    module = FeaturesAndLogits(build("test_efficientnet"))
    pixels = draw(7, 32)
    engine = make_engine(module, spec_of(32), machine, draw(4, 32, seed=1))
    for found, expected in zip(engine(pixels), in_torch(module, pixels), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_cpu_gets_onnxruntime_with_a_measured_parity():
    engine = make_engine(PooledFeatures(build("test_resnet")), spec_of(32), AUTO, draw(2, 32))
    assert engine.name == "onnxruntime"
    assert 0 <= engine.parity < 1e-5


def test_torch_is_its_own_measure():
    engine = make_engine(PooledFeatures(build("test_resnet")), spec_of(32), TORCH, draw(2, 32))
    assert (engine.name, engine.parity) == ("torch", None)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_other_architectures_run_in_onnxruntime(name):
    options = {"img_size": 32} if name == "test_vit" else {}
    module = PooledFeatures(build(name, **options))
    engine = make_engine(module, spec_of(32), ONNX, draw(3, 32))
    expected = in_torch(module, draw(5, 32, seed=2))
    np.testing.assert_allclose(engine(draw(5, 32, seed=2))[0], expected, rtol=1e-3, atol=1e-5)


def test_the_frozen_part_of_a_cut_backbone_runs_in_onnxruntime():
    prefix, _ = split_at(build("test_efficientnet"), 3)
    engine = make_engine(prefix, spec_of(32), ONNX, draw(3, 32))
    pixels = draw(5, 32, seed=2)
    np.testing.assert_allclose(engine(pixels)[0], in_torch(prefix, pixels), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("machine", [ONNX, TORCH], ids=["onnxruntime", "torch"])
@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext"])
def test_two_cuts_in_one_pass_give_the_bytes_of_each_alone(name, machine):
    model = build(name)
    pixels = draw(6, 32)
    together = make_engine(prefixes_at(model, [4, 2]), spec_of(32), machine, pixels)(pixels)
    for cut, found in zip([4, 2], together, strict=True):
        alone = make_engine(split_at(model, cut)[0], spec_of(32), machine, pixels)(pixels)
        assert found.tobytes() == alone[0].tobytes(), cut


@pytest.mark.parametrize("machine", [ONNX, TORCH], ids=["onnxruntime", "torch"])
def test_the_same_pixels_give_the_same_bytes(machine):
    module = PooledFeatures(build("test_efficientnet"))
    pixels = draw(6, 32)
    first = make_engine(module, spec_of(32), machine, draw(2, 32))
    second = make_engine(module, spec_of(32), machine, draw(2, 32))
    assert first(pixels)[0].tobytes() == second(pixels)[0].tobytes() == first(pixels)[0].tobytes()


def test_training_the_module_does_not_change_its_engine():
    module = PooledFeatures(build("test_resnet"))
    for machine in (ONNX, TORCH):
        engine = make_engine(module, spec_of(32), machine, draw(2, 32))
        before = engine(draw(2, 32))[0]
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1)
        np.testing.assert_array_equal(engine(draw(2, 32))[0], before)


def test_making_an_engine_leaves_modes_and_gradients_of_the_module_alone():
    module = PooledFeatures(build("test_efficientnet")).train()
    module.model.blocks.eval()
    before = [inner.training for inner in module.modules()]
    make_engine(module, spec_of(32), AUTO, draw(2, 32))
    assert [inner.training for inner in module.modules()] == before
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_read_only_pixels_are_fine():
    pixels = draw(2, 32)
    pixels.setflags(write=False)
    engine = make_engine(PooledFeatures(build("test_resnet")), spec_of(32), TORCH, pixels)
    assert engine(pixels)[0].shape == (2, 96)


class Drifting(nn.Module):
    """Gives other values each time, as a network that cannot be exported faithfully would."""

    calls = itertools.count(1)  # of the class: copies count on

    def forward(self, images):
        return images.mean((2, 3)) * float(next(self.calls))


class FixedBatch(nn.Module):
    def forward(self, images):
        return images.reshape(int(images.shape[0]), -1).sum(1, keepdim=True)


class NotExportable(nn.Module):
    def forward(self, images):
        return torch.special.bessel_j0(images).mean((2, 3))


def test_an_engine_that_differs_from_torch_gives_way_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        engine = make_engine(Drifting(), spec_of(8), AUTO, draw(2, 8))
    assert engine.name == "torch"
    assert "differs from torch by" in caplog.text
    assert "torch runs it" in caplog.text


def test_a_network_that_cannot_be_exported_runs_in_torch_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        engine = make_engine(NotExportable(), spec_of(8), AUTO, draw(2, 8))
    assert engine.name == "torch"
    assert "onnxruntime cannot run this network" in caplog.text


@pytest.mark.parametrize("module", [Drifting(), NotExportable()], ids=["drifting", "no export"])
def test_a_forced_engine_that_cannot_run_stops(module):
    with pytest.raises(EngineError, match="REGRAFT_ENGINE is onnxruntime, which cannot run"):
        make_engine(module, spec_of(8), ONNX, draw(2, 8))


def test_a_batch_size_taken_for_a_constant_would_be_noticed(monkeypatch, caplog):
    real = export_onnx

    def frozen_batch(module, example, **names):
        blob = onnx.load_from_string(real(module, example, **names))
        blob.graph.input[0].type.tensor_type.shape.dim[0].dim_value = len(example)
        return blob.SerializeToString()

    monkeypatch.setattr(engine_module, "export_onnx", frozen_batch)
    with caplog.at_level(logging.WARNING):
        assert make_engine(FixedBatch(), spec_of(8), AUTO, draw(1, 8)).name == "torch"
    assert "onnxruntime cannot run this network" in caplog.text


@pytest.mark.parametrize("side", [15, 16, 17, 18])
@pytest.mark.parametrize("options", [(3, 2, False), (5, 2, True), (2, 3, True), (4, 1, False)])
def test_same_padding_is_exported_exactly_for_even_and_odd_sizes(side, options):
    kernel, stride, bias = options
    torch.manual_seed(0)
    module = nn.Sequential(
        Conv2dSame(3, 4, kernel, stride=stride, bias=bias),
        nn.ReLU(),
        Conv2dSame(4, 4, 3, stride=2, groups=4, dilation=2),
    ).eval()
    engine = make_engine(module, spec_of(side), ONNX, draw(3, side))
    pixels = draw(3, side, seed=1)
    np.testing.assert_allclose(engine(pixels)[0], in_torch(module, pixels), rtol=1e-4, atol=1e-5)


def test_no_padding_is_left_in_the_exported_graph():
    module = PooledFeatures(build("tf_efficientnet_lite0"))
    blob = export_onnx(
        module, torch.randn(2, 3, 64, 64), input_name="images", output_names=["features"]
    )
    graph = onnx.load_from_string(blob).graph
    kinds = {node.op_type for node in graph.node}
    assert "Conv" in kinds
    assert not kinds & {"Pad", "Slice", "Shape", "BatchNormalization"}
    assert [graph.input[0].name, graph.output[0].name] == ["images", "features"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
