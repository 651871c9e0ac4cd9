"""Backbones by name: every source of weights, and every way in which it can be wrong."""

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import huggingface_hub.errors
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from tasks.backbones import weights as weights_module
from tasks.backbones.catalogue import create_architecture, load_backbone
from tasks.backbones.groups import PooledFeatures
from tasks.backbones.packaged import PACKAGED, Packaged, find_packaged
from tasks.backbones.weights import (
    fetch_from_hub,
    hash_state,
    match_by_order,
    read_packaged,
    read_safetensors,
)
from tasks.errors import EngineError, ParamsError, WeightsError


def load(name="test_resnet", weights="random", *, image_px=32, seed=0):
    return load_backbone(name, str(weights), image_px=image_px, seed=seed)


def save_state(path: Path, model: nn.Module, **changes: torch.Tensor | None) -> Path:
    """Write a model's tensors, some of them changed or (None) left out."""
    state = {
        **model.state_dict(),
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    save_file({key: value.contiguous() for key, value in state.items() if value is not None}, path)
    return path


# random ------------------------------------------------------------------------------------------


def test_random_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = load(seed=5)
    torch.manual_seed(2)
    assert load(seed=5).weights_sha256 == first.weights_sha256
    assert load(seed=6).weights_sha256 != first.weights_sha256


def test_random_weights_leave_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load()
    assert torch.equal(torch.rand(3), expected)


def test_a_random_backbone_has_no_license():
    backbone = load("test_efficientnet")
    assert backbone.feature_dim == 256
    assert (backbone.license, backbone.source) == (None, None)
    assert not backbone.model.training


# architectures -----------------------------------------------------------------------------------


def test_a_vision_transformer_is_built_for_the_size_of_the_images():
    backbone = load("test_vit", image_px=48)
    assert backbone.input.image_px == 48
    assert backbone.model.pretrained_cfg["input_size"] == (3, 48, 48)
    assert PooledFeatures(backbone.model)(torch.zeros(2, 3, 48, 48)).shape == (2, 64)


def test_an_architecture_gives_pooled_features_of_the_loaded_backbone(tmp_path):
    source = timm.create_model("test_convnext").eval()
    loaded = load("test_convnext", save_state(tmp_path / "w.safetensors", source))
    bare = create_architecture("test_convnext", image_px=32)
    state = loaded.model.state_dict()
    bare.load_state_dict({name: state[name] for name in bare.state_dict()})
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(bare(images), PooledFeatures(loaded.model)(images))


def test_an_unknown_name_is_answered_with_near_ones():
    with pytest.raises(ParamsError, match=r"knows no backbone 'tf_efficientnet_light0'.*_lite0"):
        load("tf_efficientnet_light0")
    with pytest.raises(ParamsError, match=r"see timm.list_models"):
        load("zzzzzzzz")


def test_an_unknown_tag_is_answered_with_the_known_ones():
    with pytest.raises(ParamsError, match=r"allowed: tf_efficientnet_lite0.in1k"):
        load("tf_efficientnet_lite0.nope")


def test_a_size_that_the_network_cannot_take_is_named():
    with pytest.raises(EngineError, match=r"test_vit .*30 px"):
        load("test_vit", image_px=30)


def test_a_network_without_one_feature_vector_is_refused(monkeypatch):
    monkeypatch.setattr(
        "timm.models.resnet.ResNet.forward_head", lambda self, x, pre_logits=False: x
    )
    with pytest.raises(EngineError, match="no single vector of pooled features"):
        load("test_resnet")


def test_a_classifier_that_does_not_act_on_pooled_features_is_no_obstacle(tmp_path):
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32)
    path = save_state(tmp_path / "w.safetensors", model)
    assert load("deit_tiny_distilled_patch16_224", path).feature_dim == 192


# packaged ----------------------------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A package with the weights of a tiny network under other names, as the wheels have them."""
    model = timm.create_model("test_resnet")
    state = {
        f"layer{number}.{name.rpartition('.')[2]}": tensor
        for number, (name, tensor) in enumerate(model.state_dict().items())
    }
    folder = tmp_path / "tiny_pytorch_model"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    torch.save(state, folder / "tiny.pth")
    monkeypatch.syspath_prepend(str(tmp_path))
    digest = hashlib.sha256((folder / "tiny.pth").read_bytes()).hexdigest()
    packaged = Packaged(
        package="tiny_pytorch_model",
        file="tiny.pth",
        sha256=digest,
        license="MIT",
        source="here",
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
    )
    monkeypatch.setitem(PACKAGED, "test_resnet", packaged)
    return model, packaged, folder / "tiny.pth"


def test_packaged_weights_are_loaded_by_position_with_what_belongs_to_them(wheel):
    model, packaged, _ = wheel
    backbone = load(weights="packaged")
    assert backbone.weights_sha256 == hash_state(model.state_dict())
    assert (backbone.input.mean, backbone.input.std) == (packaged.mean, packaged.std)
    assert (backbone.license, backbone.source) == ("MIT", "here")


def test_the_tag_of_a_name_does_not_hide_packaged_weights(wheel):
    assert find_packaged("test_resnet.r160_in1k") is wheel[1]


def test_a_packaged_file_that_is_not_the_pinned_one_is_not_opened(wheel):
    _, _, path = wheel
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(WeightsError, match=r"sha256 is .*expected .*was not opened"):
        load(weights="packaged")


def test_a_packaged_file_that_is_gone_is_named(wheel):
    wheel[2].unlink()
    with pytest.raises(WeightsError, match=r"tiny\.pth: cannot be read"):
        load(weights="packaged")


def test_a_wheel_that_is_not_installed_is_named_with_the_command(wheel):
    missing = replace(wheel[1], package="no_such_pytorch_model")
    with pytest.raises(WeightsError, match=r"pip install no-such-pytorch-model==0.1.0"):
        read_packaged(missing, {})


def test_a_backbone_without_packaged_weights_is_told_which_have_them():
    with pytest.raises(
        WeightsError, match=r"no packaged weights of 'resnet50'; .*tf_efficientnet_lite0"
    ):
        load("resnet50", "packaged")


@pytest.mark.parametrize("change", ["number", "kind", "shape"])
def test_tensors_that_do_not_stand_where_they_should_are_refused(change):
    names = {"a.weight": torch.zeros(2, 3), "b.bias": torch.zeros(2)}
    tensors = {"x.weight": torch.ones(2, 3), "y.bias": torch.ones(2)}
    assert list(match_by_order(tensors, names, where="f")) == list(names)
    if change == "number":
        del tensors["y.bias"]
    elif change == "kind":
        tensors["y.weight"] = tensors.pop("y.bias")
    else:
        tensors["x.weight"] = torch.ones(3, 2)
    with pytest.raises(WeightsError, match=r"f: (holds 1 tensors|tensor [xy])"):
        match_by_order(tensors, names, where="f")


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite2"])
def test_the_bundled_wheels_fit(name):
    pytest.importorskip(PACKAGED[name].package)
    backbone = load_backbone(name, "packaged", image_px=64, seed=0)
    assert backbone.feature_dim == 1280
    assert backbone.input.mean == (127 / 255,) * 3
    assert backbone.license == "Apache-2.0"


# files -------------------------------------------------------------------------------------------


def test_a_file_gives_the_features_of_the_model_that_wrote_it(tmp_path):
    model = timm.create_model("test_efficientnet", num_classes=7).eval()
    backbone = load("test_efficientnet", save_state(tmp_path / "w.safetensors", model))
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        features = PooledFeatures(backbone.model)(images)
        assert torch.equal(model.get_classifier()(features), model(images))
    assert features.shape == (2, backbone.feature_dim)
    assert backbone.source == "w.safetensors"


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "_orig_mod.", "backbone.", "module._orig_mod.model.backbone."]
)
def test_what_wrappers_put_before_every_name_is_taken_off(tmp_path, prefix):
    model = timm.create_model("test_resnet").eval()
    plain = load(weights=save_state(tmp_path / "plain.safetensors", model)).model.state_dict()
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    found = load(weights=tmp_path / "w.safetensors").model.state_dict()
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_a_prefix_of_some_names_only_stays(tmp_path):
    state = timm.create_model("test_resnet").state_dict()
    first, *others = state
    save_file(
        {f"module.{first}": state[first], **{name: state[name] for name in others}},
        tmp_path / "w.safetensors",
    )
    with pytest.raises(WeightsError, match=r"1 tensor unexpected \(module\."):
        load(weights=tmp_path / "w.safetensors")


def test_half_precision_weights_become_float32(tmp_path):
    model = timm.create_model("test_resnet", num_classes=0).half()
    backbone = load("test_resnet", save_state(tmp_path / "w.safetensors", model))
    assert backbone.model.conv1[0].weight.dtype == torch.float32


def test_mean_and_std_come_from_the_config_beside_the_file(tmp_path):
    path = save_state(tmp_path / "w.safetensors", timm.create_model("test_resnet"))
    assert load(weights=path).input.mean == (0.5, 0.5, 0.5)
    settings = {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "license": "cc0"}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": settings}))
    backbone = load(weights=path)
    assert (backbone.input.mean, backbone.input.std) == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    assert backbone.license == "cc0"


@pytest.mark.parametrize("content", ["{", "[1]", '{"pretrained_cfg": 3}'])
def test_a_damaged_config_beside_the_file_is_named(tmp_path, content):
    path = save_state(tmp_path / "w.safetensors", timm.create_model("test_resnet"))
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(WeightsError, match=r"config\.json: is no timm config"):
        load(weights=path)


def test_every_misfit_of_a_file_is_listed(tmp_path):
    model = timm.create_model("test_resnet")
    path = save_state(
        tmp_path / "w.safetensors",
        model,
        layer1__0__conv1__weight=None,
        extra=torch.zeros(1),
        layer2__0__conv1__weight=torch.zeros(1, 2),
    )
    with pytest.raises(WeightsError) as caught:
        load(weights=path)
    message = str(caught.value)
    assert "1 tensor missing (layer1.0.conv1.weight)" in message
    assert "1 tensor unexpected (extra)" in message
    assert "layer2.0.conv1.weight (1, 2) for" in message
    assert "Set backbone.name" in message


def test_only_the_first_five_misfits_are_named(tmp_path):
    path = save_state(tmp_path / "w.safetensors", timm.create_model("test_convnext"))
    with pytest.raises(WeightsError, match=r"tensors missing \(([\w.]+, ){5}[\w.]+ and \d+ more\)"):
        load("test_resnet", path)


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".PKL"])
def test_a_pickle_is_refused_and_never_opened(tmp_path, suffix):
    path, marker = tmp_path / f"weights{suffix}", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(WeightsError, match=r"is a pickle, .*refused.*save_file"):
        load(weights=path)
    assert not marker.exists()


def test_a_pickle_named_safetensors_is_not_run_either(tmp_path):
    path, marker = tmp_path / "weights.safetensors", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(WeightsError, match="no readable safetensors file"):
        load(weights=path)
    assert not marker.exists()


def test_other_words_are_answered_with_the_allowed_ones():
    with pytest.raises(WeightsError, match="'imagenet'; allowed: packaged, hub, random or"):
        load(weights="imagenet")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"none\.safetensors: no such file"):
        load(weights=tmp_path / "none.safetensors")


@pytest.mark.parametrize("damage", ["truncated", "header", "empty"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = save_state(tmp_path / "w.safetensors", timm.create_model("test_resnet"))
    content = path.read_bytes()
    bad = {
        "truncated": content[:-100],
        "header": (2**60).to_bytes(8, "little") + content[8:],
        "empty": b"",
    }
    path.write_bytes(bad[damage])
    with pytest.raises(WeightsError, match=r"w\.safetensors: is no readable safetensors file"):
        read_safetensors(path)


# hub ---------------------------------------------------------------------------------------------


def test_hub_weights_come_from_the_safetensors_file_alone(tmp_path, monkeypatch):
    model = timm.create_model("test_resnet").eval()
    path = save_state(tmp_path / "model.safetensors", model)
    asked = []

    def download(repository, file):
        asked.append((repository, file))
        return str(path)

    monkeypatch.setattr(weights_module, "hf_hub_download", download)
    backbone = load(weights="hub")
    assert asked == [("timm/test_resnet.r160_in1k", "model.safetensors")]
    assert backbone.weights_sha256 == hash_state(model.state_dict())
    assert backbone.license == "apache-2.0"
    assert backbone.source == "https://huggingface.co/timm/test_resnet.r160_in1k"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            huggingface_hub.errors.LocalEntryNotFoundError("offline"),
            "weights for test_resnet not in cache and no network .*put a .safetensors file",
        ),
        (OSError("disk quota\nmore"), r"cannot be had .*\(disk quota\); put a .safetensors file"),
        (huggingface_hub.errors.EntryNotFoundError(), r"cannot be had .*\(EntryNotFoundError\)"),
    ],
    ids=["offline", "disk", "no such file"],
)
def test_weights_that_cannot_be_fetched_are_named_with_a_way_out(monkeypatch, error, words):
    def fail(*_):
        raise error

    monkeypatch.setattr(weights_module, "hf_hub_download", fail)
    with pytest.raises(WeightsError, match=words):
        load(weights="hub")


@pytest.mark.parametrize(("repository", "file"), [(None, None), ("a/b", "pytorch_model.bin")])
def test_weights_offered_only_as_pickle_are_not_fetched(repository, file):
    with pytest.raises(WeightsError, match=r"knows no .safetensors weights of x on the hub"):
        fetch_from_hub("x", repository, file)


def test_hub_weights_of_another_network_are_named(tmp_path, monkeypatch):
    path = save_state(tmp_path / "model.safetensors", timm.create_model("test_convnext"))
    monkeypatch.setattr(weights_module, "hf_hub_download", lambda *_: str(path))
    with pytest.raises(WeightsError, match=r"model\.safetensors: does not fit test_resnet"):
        load(weights="hub")


# identity ----------------------------------------------------------------------------------------


def test_the_hash_of_a_state_depends_on_names_types_shapes_and_values_only():
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "c": torch.empty(0)}
    expected = hash_state(state)
    reordered = {"c": state["c"], "b": state["b"], "a": state["a"].T.contiguous().T}
    assert hash_state(reordered) == expected
    others = [
        {**state, "a": state["a"] + 1},
        {**state, "a": state["a"].reshape(3, 2)},
        {**state, "a": state["a"].double()},
        {"a": state["a"], "b": state["b"], "d": state["c"]},
    ]
    assert len({expected, *map(hash_state, others)}) == 5


def test_the_hash_of_a_state_follows_its_definition():
    state = {"w": torch.tensor([[1.0, 2.0]])}
    content = b"w\0torch.float32\0(1, 2)\0" + np.array([1, 2], dtype="<f4").tobytes()
    assert hash_state(state) == hashlib.sha256(content).hexdigest()
