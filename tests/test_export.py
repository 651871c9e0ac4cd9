"""The exported model: timm gives the same logits from it, without any code of Regraft."""

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from test_conversion import deep_png, make_profile
from torch import nn

from tasks.artifacts.files import hash_file
from tasks.artifacts.records import Calibration, Conversion, Fit, HeadKind, InputSpec
from tasks.backbones.catalogue import create_architecture
from tasks.delivery.appearance import Appearance
from tasks.delivery.in_domain import InDomain
from tasks.errors import ArtifactError
from tasks.heads.registry import find_head
from tasks.images.decoding.conversion import ColorFacts, settle_conversion
from tasks.images.decoding.decode import clean_view, decode_image, frame_image
from tasks.reporting import export
from tasks.reporting.card import loading_code
from tasks.reporting.export import Exported, ShippedModel, export_model

CLASSES = ["cat", "dog", "<b>fox</b>"]
SIDE = 32
PLAIN = settle_conversion([])


def spoil(module: nn.Module) -> None:
    """Give every tensor its own values, running statistics too, so that none may be forgotten."""
    rng = np.random.default_rng(8)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            values = torch.from_numpy(rng.uniform(0.5, 1.5, tuple(tensor.shape)))
            tensor.mul_(values) if name.endswith("weight") else tensor.add_(values * 0.1)


LIMITS = {"max_pixels": 10_000_000, "min_side_px": 8}


def calibration(temperature: float = 1.0) -> Calibration:
    return Calibration(
        temperature=temperature,
        fitted_on="val",
        images=20,
        set_coverage=0.9,
        set_thresholds=[0.5] * len(CLASSES),
        in_domain=1.0,
        false_alarm=0.05,
    )


def known_features(dim: int) -> InDomain:
    means, of_one = np.zeros((len(CLASSES), dim), np.float32), np.zeros(1, np.int64)
    held_out = np.ones((1, dim), np.float32)
    looks = Appearance.unknown(len(held_out))
    return InDomain(
        means, np.eye(dim, dtype=np.float32), held_out, of_one, of_one, looks, 1.0, 0.05
    )


def shipped_model(
    name: str,
    head: Any = "linear",
    fit: Fit = "squash",
    conversion: Conversion = PLAIN,
    temperature: float = 1.0,
) -> ShippedModel:
    torch.manual_seed(3)
    backbone = create_architecture(name, image_px=SIDE)
    spoil(backbone)
    with torch.inference_mode():
        feature_dim = backbone(torch.zeros(1, 3, SIDE, SIDE)).shape[1]
    built = find_head(head).build(feature_dim, len(CLASSES), hidden=8, dropout=0.3)
    spoil(built)
    spec = InputSpec(image_px=SIDE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    known = calibration(temperature)
    return ShippedModel(
        name,
        backbone,
        built.eval(),
        spec,
        fit,
        conversion,
        CLASSES,
        known,
        known_features(feature_dim),
        LIMITS,
    )


def images(count: int = 5) -> torch.Tensor:
    rng = np.random.default_rng(4)
    return torch.from_numpy(rng.normal(size=(count, 3, SIDE, SIDE)).astype(np.float32))


def reload(folder: Path) -> Any:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_vit", "test_convnext"])
def test_timm_alone_gives_the_same_logits_for_a_linear_head(name: str, tmp_path: Path) -> None:
    shipped = shipped_model(name)
    exported = export_model(tmp_path / "model", shipped, {})
    assert exported.whole
    with torch.inference_mode():
        found = reload(tmp_path / "model")(images())
    torch.testing.assert_close(found, shipped.logits(images()), rtol=1e-5, atol=1e-5)


def test_a_head_of_its_own_lies_beside_the_backbone(tmp_path: Path) -> None:
    shipped = shipped_model("test_efficientnet", "mlp")
    exported = export_model(tmp_path / "model", shipped, {})
    assert not exported.whole
    assert [name for name, _ in exported.files] == [
        "SHA256SUMS",
        "calibration.json",
        "config.json",
        "head.json",
        "head.safetensors",
        "labels.txt",
        "model.safetensors",
        "reference.safetensors",
        "regraft.json",
    ]
    with torch.inference_mode():
        features = reload(tmp_path / "model")(images())
        torch.testing.assert_close(features, shipped.backbone(images()), rtol=1e-5, atol=1e-5)


def test_a_classifier_that_is_no_single_layer_leaves_the_head_apart(tmp_path: Path) -> None:
    exported = export_model(tmp_path / "model", distilled(), {})
    assert not exported.whole
    [layer] = json.loads((tmp_path / "model" / "head.json").read_text())["layers"]
    assert layer["kind"] == "Linear"
    assert layer["arguments"] == {"in_features": 192, "out_features": 3}


def distilled() -> ShippedModel:
    """A network with two classifiers whose mean is the answer."""
    name = "deit_tiny_distilled_patch16_224"
    backbone = create_architecture(name, image_px=SIDE)
    spec = InputSpec(image_px=SIDE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return ShippedModel(
        name,
        backbone,
        nn.Linear(192, 3).eval(),
        spec,
        "squash",
        PLAIN,
        CLASSES,
        calibration(),
        known_features(192),
        LIMITS,
    )


def run_as_printed(
    folder: Path, exported: Exported, picture: Path, capsys: Any
) -> tuple[str, float]:
    code = loading_code(whole=exported.whole)
    code = code.replace('"data/report/model"', repr(str(folder))).replace(
        '"image.jpg"', repr(str(picture))
    )
    exec(compile(code, "snippet", "exec"), {})
    name, probability = capsys.readouterr().out.rsplit(" ", 1)
    return name, float(probability)


@pytest.mark.parametrize("head", get_args(HeadKind))
def test_the_printed_code_classifies_as_the_pipeline_does(
    head: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = shipped_model("test_efficientnet", head, temperature=1.7)
    exported = export_model(tmp_path / "model", shipped, {})
    noise = np.random.default_rng(5).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    picture.save(tmp_path / "image.png")
    pixels = clean_view(frame_image(picture, image_px=SIDE, fit="squash"), SIDE)
    spec = shipped.input
    normalized = (pixels / 255.0 - spec.mean) / spec.std
    batch = torch.from_numpy(normalized.astype(np.float32)).permute(2, 0, 1)[None]
    expected = (shipped.logits(batch) / 1.7).softmax(dim=1)[0]
    name, probability = run_as_printed(tmp_path / "model", exported, tmp_path / "image.png", capsys)
    assert name == CLASSES[int(expected.argmax())]
    assert probability == pytest.approx(float(expected.max()), abs=0.0006)


@pytest.mark.parametrize("name", ["turned.jpg", "clear.png"])
def test_the_printed_code_turns_and_whitens_as_the_pipeline_does(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = shipped_model("test_efficientnet")
    exported = export_model(tmp_path / "model", shipped, {})
    # Dark above and clear: neither the picture as it lies nor black behind it looks the same.
    values = np.full((40, 48, 4), (30, 200, 90, 255), dtype=np.uint8)
    values[:20, :, :3], values[:, 24:, 3] = 5, 0
    picture, path = Image.fromarray(values), tmp_path / name
    if path.suffix == ".jpg":
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90 degrees
        picture.convert("RGB").save(path, quality=95, exif=exif)
    else:
        picture.save(path)
    decoded = decode_image(path.read_bytes(), max_pixels=10_000).image
    pixels = clean_view(frame_image(decoded, image_px=SIDE, fit="squash"), SIDE)
    normalized = ((pixels / 255.0 - shipped.input.mean) / shipped.input.std).astype(np.float32)
    batch = torch.from_numpy(normalized).permute(2, 0, 1)[None]
    expected = shipped.logits(batch).softmax(dim=1)[0]
    found, probability = run_as_printed(tmp_path / "model", exported, path, capsys)
    assert found == CLASSES[int(expected.argmax())]
    assert probability == pytest.approx(float(expected.max()), abs=0.0006)


SETS = {
    "clear.png": settle_conversion([("a", ColorFacts(hidden_on=frozenset({"white", "black"})))]),
    "deep.png": settle_conversion([("a", ColorFacts(integers=(0, 3000)))]),
    "colors.png": settle_conversion([("a", ColorFacts(integers=(0, 16000)))]),
    "float.tif": settle_conversion([("a", ColorFacts(floats=(-3.0, 9.0)))]),
    "profiled.jpg": PLAIN,
    "gray.png": PLAIN,
    "ink.tif": PLAIN,
    "damaged.tif": PLAIN,
}


def write_picture(path: Path) -> None:
    """A picture that the conversion of its set changes much."""
    rng = np.random.default_rng(9)
    values = np.asarray(Image.fromarray(rng.integers(0, 255, (5, 6, 4), np.uint8)).resize((48, 40)))
    image = Image.fromarray(values[..., :3])
    gamma = {"icc_profile": make_profile(1.0, swap=True)}
    gray = {"icc_profile": make_profile(1.0, space=b"GRAY")}
    pictures = {
        "clear": (Image.fromarray(values), {}),
        "deep": (Image.fromarray(values[..., 0].astype(np.uint16) * 14), gray),
        "float": (Image.fromarray(values[..., 0].astype(np.float32) / 16 - 3), {}),
        "profiled": (image, {"quality": 95, **gamma}),
        "gray": (image.convert("LA"), gray),
        "ink": (image.convert("CMYK"), gamma),
        "damaged": (image, {"icc_profile": b"no profile"}),
    }
    if path.stem == "colors":
        path.write_bytes(deep_png(values[..., :3].astype(np.uint16) * 60))
        return
    picture, options = pictures[path.stem]
    picture.save(path, **options)


@pytest.mark.parametrize("name", SETS)
def test_the_printed_code_converts_as_the_set_was(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = shipped_model("test_efficientnet", conversion=SETS[name])
    exported = export_model(tmp_path / "model", shipped, {})
    write_picture(tmp_path / name)
    known = decode_image((tmp_path / name).read_bytes(), max_pixels=10_000, conversion=SETS[name])
    pixels = clean_view(frame_image(known.image, image_px=SIDE, fit="squash"), SIDE)
    normalized = ((pixels / 255.0 - shipped.input.mean) / shipped.input.std).astype(np.float32)
    batch = torch.from_numpy(normalized).permute(2, 0, 1)[None]
    expected = shipped.logits(batch).softmax(dim=1)[0]
    found, probability = run_as_printed(tmp_path / "model", exported, tmp_path / name, capsys)
    assert found == CLASSES[int(expected.argmax())]
    assert probability == pytest.approx(float(expected.max()), abs=0.0006)


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_timm_prepares_images_as_the_pipeline_does(fit: Fit, tmp_path: Path) -> None:
    export_model(tmp_path / "model", shipped_model("test_efficientnet", fit=fit), {})
    settings = timm.data.resolve_data_config(model=reload(tmp_path / "model"))
    prepare: Any = timm.data.create_transform(**settings)
    coarse = np.random.default_rng(6).integers(0, 255, (5, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((40, 50), Image.Resampling.BICUBIC)
    pixels = clean_view(frame_image(picture, image_px=SIDE, fit=fit), SIDE)
    expected = (pixels / 255.0 - np.array((0.5, 0.4, 0.3))) / np.array((0.2, 0.25, 0.3))
    found = prepare(picture).permute(1, 2, 0).numpy()
    differences = np.abs(found - expected)
    if fit == "squash":
        assert differences.max() < 1e-5
    else:  # timm resizes first and crops then, at a whole pixel
        assert differences.mean() < 0.05 * expected.std()


def test_config_tells_classes_and_preprocessing(tmp_path: Path) -> None:
    export_model(tmp_path / "model", shipped_model("test_vit", fit="pad"), {})
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architecture"] == "test_vit"
    assert config["label_names"] == CLASSES
    assert config["num_classes"] == 3
    assert config["pretrained_cfg"]["mean"] == [0.5, 0.4, 0.3]
    assert config["pretrained_cfg"]["std"] == [0.2, 0.25, 0.3]
    assert config["pretrained_cfg"]["input_size"] == [3, SIDE, SIDE]
    assert config["pretrained_cfg"]["crop_mode"] == "border"
    assert config["pretrained_cfg"]["crop_pct"] == 1.0
    assert reload(tmp_path / "model").pretrained_cfg["label_names"] == CLASSES


def test_regraft_json_tells_what_timm_has_no_place_for(tmp_path: Path) -> None:
    export_model(tmp_path / "model", shipped_model("test_resnet", temperature=1.3), {"x": 7})
    about = json.loads((tmp_path / "model" / "regraft.json").read_text())
    assert about["classes"] == CLASSES
    assert about["temperature"] == 1.3
    assert about["x"] == 7
    assert about["preprocessing"]["fit"] == "squash"
    assert about["preprocessing"]["image_px"] == SIDE
    assert about["preprocessing"]["background"] == [255, 255, 255]
    assert about["preprocessing"]["integers"] == [0, 65535]
    assert about["preprocessing"]["floats"] == [0.0, 1.0]


def test_what_is_told_of_the_files_is_true(tmp_path: Path) -> None:
    exported = export_model(tmp_path / "model", shipped_model("test_resnet"), {})
    weights = tmp_path / "model" / "model.safetensors"
    assert exported.sha256 == hash_file(weights)
    assert dict(exported.files)["model.safetensors"] == weights.stat().st_size == exported.size
    assert exported.difference == 0.0


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        export_model(tmp_path / name, shipped_model("test_efficientnet"), {"x": 1})
    first, second = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        for name in ("a", "b")
    )
    assert first == second
    assert "model.safetensors" in first


def test_the_model_given_is_not_changed(tmp_path: Path) -> None:
    shipped = shipped_model("test_efficientnet")
    before = {name: tensor.clone() for name, tensor in shipped.backbone.state_dict().items()}
    export_model(tmp_path / "model", shipped, {})
    after = shipped.backbone.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("classes", [3, 4], ids=["other weights", "other classes"])
def test_an_export_that_timm_loads_otherwise_is_refused_and_the_old_one_stays(
    classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = shipped_model("test_efficientnet")
    export_model(tmp_path / "model", shipped, {})
    old = hash_file(tmp_path / "model" / "model.safetensors")
    other = timm.create_model("test_efficientnet", num_classes=classes)
    monkeypatch.setattr(export.timm, "create_model", lambda *_, **__: other)
    with pytest.raises(ArtifactError, match=r"gives other logits than the trained model"):
        export_model(tmp_path / "model", shipped, {})
    assert hash_file(tmp_path / "model" / "model.safetensors") == old
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_weights_that_timm_cannot_load_are_refused_in_one_message(tmp_path: Path) -> None:
    shipped = shipped_model("test_efficientnet")
    shipped.backbone.register_buffer("strange", torch.zeros(1))
    with pytest.raises(ArtifactError, match=r"timm .* cannot load the exported test_efficientnet"):
        export_model(tmp_path / "model", shipped, {})
    assert list(tmp_path.iterdir()) == []
