"""Engines: equal to torch, to themselves, at every batch size; loud when one cannot be used."""

import itertools
import logging

import numpy as np
import onnx
import pytest
import timm
import torch
from conftest import tells
from timm.layers import Conv2dSame
from torch import nn

from tasks.artifacts.records import InputSpec
from tasks.backbones import engine as engine_module
from tasks.backbones.cuts import prefixes_at, split_at
from tasks.backbones.engine import COMPILED_ROWS, make_engine, make_gpu_engine
from tasks.backbones.groups import PooledFeatures
from tasks.backbones.onnx_export import export_onnx
from tasks.errors import EngineError
from tasks.runtime.device import normalize
from tasks.runtime.machine import Machine

ONNX = Machine(device="cpu", threads=1, engine="onnxruntime")
COMPILED = Machine(device="cpu", threads=1, engine="compiled")
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
def test_an_engine_gives_all_outputs_of_torch(machine):
    module = prefixes_at(build("test_efficientnet"), [2, 6])
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


# compiled, and on a GPU --------------------------------------------------------------------------


@pytest.fixture
def bfloat16(monkeypatch):
    """As on a GPU that computes in bfloat16."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)


def on_gpu(module: nn.Module, rows: int) -> tuple:
    """Make the engine of a GPU; torch computes bfloat16 on a CPU too, slowly."""
    return make_gpu_engine(module, spec_of(32), torch.device("cpu"), draw(4, 32), rows=rows)


def fail_to_compile(module, **options):
    def run(pixels):
        raise RuntimeError("no compiler here\nand more")

    return run


@pytest.mark.usefixtures("bfloat16")
def test_a_gpu_computes_in_bfloat16_and_measures_how_far_that_is_off(caplog):
    module = PooledFeatures(build("test_efficientnet"))
    engine, why = on_gpu(module, rows=1000)
    assert engine.name == "torch-bfloat16"
    assert tells(why, "not pay", "1,000 images")
    assert 1e-4 < engine.parity < 0.05
    pixels = draw(5, 32, seed=2)
    expected = in_torch(module, pixels).numpy()
    np.testing.assert_allclose(engine(pixels)[0], expected, atol=0.05 * np.abs(expected).max())
    assert engine(pixels)[0].dtype == np.float32
    assert caplog.text == ""


@pytest.mark.usefixtures("bfloat16")
def test_a_gpu_compiles_where_many_images_pay_for_it(monkeypatch):
    compiled = []

    def compile_nothing(module, **options):
        compiled.append(options)
        return module

    monkeypatch.setattr(torch, "compile", compile_nothing)
    engine, why = on_gpu(PooledFeatures(build("test_resnet")), rows=COMPILED_ROWS)
    assert engine.name == "torch-compiled-bfloat16"
    assert tells(why, "pays", "100,000 images")
    assert compiled == [{"options": {"deterministic": True}}]


@pytest.mark.usefixtures("bfloat16")
def test_a_network_that_cannot_be_compiled_runs_as_it_stands_with_one_warning(monkeypatch, caplog):
    monkeypatch.setattr(torch, "compile", fail_to_compile)
    engine, _ = on_gpu(PooledFeatures(build("test_resnet")), rows=COMPILED_ROWS)
    assert engine.name == "torch-bfloat16"
    (warning,) = caplog.messages
    assert tells(warning, "torch-compiled-bfloat16 cannot", "RuntimeError: no compiler here")
    assert "and more" not in warning


@pytest.mark.usefixtures("bfloat16")
def test_a_network_that_bfloat16_distorts_runs_in_float32_with_a_warning(caplog):
    engine, why = on_gpu(Drifting(), rows=10)
    assert (engine.name, engine.parity) == ("torch", None)
    assert "no faster engine" in why
    assert tells(caplog.text, "torch-bfloat16 cannot", "EngineError", "differs")


@pytest.mark.parametrize(("machine", "name"), [(AUTO, "onnxruntime"), (TORCH, "torch")])
def test_the_log_says_which_engine_runs_and_why(machine, name, caplog):
    caplog.set_level(logging.INFO)
    make_engine(PooledFeatures(build("test_resnet")), spec_of(32), machine, draw(2, 32))
    reason = "fastest on a CPU" if machine is AUTO else "REGRAFT_ENGINE"
    assert tells(caplog.text, f"{name} on cpu", reason)


def test_a_forced_compiler_that_fails_stops(monkeypatch):
    monkeypatch.setattr(torch, "compile", fail_to_compile)
    with pytest.raises(EngineError, match=r"REGRAFT_ENGINE is compiled, .*no compiler here\)"):
        make_engine(PooledFeatures(build("test_resnet")), spec_of(32), COMPILED, draw(2, 32))


@pytest.mark.slow
def test_a_compiled_network_gives_the_values_of_torch():
    module = PooledFeatures(build("test_resnet"))
    engine = make_engine(module, spec_of(32), COMPILED, draw(4, 32))
    assert (engine.name, engine.parity < 1e-4) == ("torch-compiled", True)
    for count in (1, 5, 8):
        pixels = draw(count, 32, seed=2)
        np.testing.assert_allclose(
            engine(pixels)[0], in_torch(module, pixels), rtol=1e-4, atol=1e-5
        )


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_convnext"])
def test_a_gpu_engine_is_near_torch_in_float32_compiled_or_not(name):
    options = {"img_size": 32} if name == "test_vit" else {}
    module = PooledFeatures(build(name, **options))
    gpu, pixels = Machine(device="cuda"), draw(32, 32)
    expected = in_torch(module, pixels).numpy()
    for rows, kind in ((1000, "torch-bfloat16"), (COMPILED_ROWS, "torch-compiled-bfloat16")):
        engine = make_engine(module, spec_of(32), gpu, pixels[:4], rows=rows)
        assert engine.name == kind
        for count in (32, 7):
            found = engine(pixels[:count])[0]
            np.testing.assert_allclose(
                found, expected[:count], atol=0.05 * np.abs(expected).max(), rtol=0.05
            )


@pytest.mark.gpu
def test_a_gpu_gives_the_same_bytes_twice():
    module = PooledFeatures(build("test_efficientnet"))
    for rows in (1000, COMPILED_ROWS):
        first, second = (
            make_engine(module, spec_of(32), Machine(device="cuda"), draw(4, 32), rows=rows)
            for _ in range(2)
        )
        assert first(draw(8, 32))[0].tobytes() == second(draw(8, 32))[0].tobytes()
