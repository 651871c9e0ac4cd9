"""The classifier of the pretraining: taken off where its classes are known, and what it says."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from tasks.artifacts.arrays import read_tensors, read_tensors_note
from tasks.backbones.catalogue import load_backbone
from tasks.backbones.groups import PooledFeatures
from tasks.backbones.probe import Probe, find_source_head, write_probe
from tasks.backbones.source_head import read_source_head


@pytest.fixture(scope="module")
def packaged():
    return load_backbone("tf_efficientnet_lite0", "packaged", image_px=64, seed=0)


def test_the_head_says_what_the_whole_network_says(packaged):
    head = find_source_head(packaged)
    images = torch.randn((3, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        features = PooledFeatures(packaged.model)(images).numpy()
        expected = packaged.model(images).softmax(dim=1).numpy()
    np.testing.assert_allclose(head.probabilities(features), expected, rtol=1e-3, atol=1e-7)
    assert head.source == "ImageNet-1k"
    assert len(head.names) == 1000
    assert (head.names[0], head.names[207]) == ("tench", "golden retriever")
    assert (head.keys[0], head.keys[207]) == ("n01440764", "n02099601")


def test_every_class_has_a_name_of_its_own(packaged):
    names = find_source_head(packaged).names
    assert len({name.lower() for name in names}) == 1000
    assert names[264] == "Cardigan, Cardigan Welsh corgi"
    assert names[639] == "maillot, tank suit"
    assert names[134] == "crane: large long-necked wading bird of marshes\N{HORIZONTAL ELLIPSIS}"
    assert names[517].startswith("crane: lifts and moves heavy objects")


@pytest.mark.parametrize("rows", [5, 0])
def test_answers_in_blocks_are_those_of_the_whole(packaged, monkeypatch, rows):
    head = find_source_head(packaged)
    features = np.random.default_rng(2).normal(size=(rows, head.weight.shape[1]))
    features = features.astype(np.float32)
    whole = head.probabilities(features)
    monkeypatch.setattr("tasks.artifacts.arrays.ROWS_AT_ONCE", 2)
    seen, sure = head.answers(features)
    np.testing.assert_array_equal(seen, whole.argmax(axis=1))
    np.testing.assert_allclose(sure, whole.max(axis=1), rtol=1e-5)


def test_a_head_is_read_as_the_probe_holds_it(packaged, tmp_path):
    head, rows = find_source_head(packaged), np.arange(2)
    write_probe(tmp_path / "p", Probe(rows, rows, np.zeros((2, 3), np.float32), [], head))
    found = read_source_head(read_tensors(tmp_path / "p"), read_tensors_note(tmp_path / "p"))
    np.testing.assert_array_equal(found.weight, head.weight)
    np.testing.assert_array_equal(found.bias, head.bias)
    assert (found.names, found.keys) == (head.names, head.keys)
    assert found.source == head.source
    write_probe(tmp_path / "q", Probe(rows, rows, np.zeros((2, 3), np.float32), [], None))
    assert read_source_head(read_tensors(tmp_path / "q"), read_tensors_note(tmp_path / "q")) is None


def doubled(model):
    """A network that does more to its features than its classifier says."""
    changed = deepcopy(model)
    changed.register_forward_hook(lambda module, images, logits: 2 * logits)
    return changed


@pytest.mark.parametrize("case", ["random", "file", "count", "two heads", "scaled"])
def test_without_known_classes_or_one_linear_layer_there_is_no_head(packaged, case):
    backbone = {
        "random": lambda: load_backbone("test_efficientnet", "random", image_px=64, seed=0),
        "file": lambda: replace(packaged, weights="data/weights/own.safetensors"),
        "count": lambda: replace(packaged, model=timm.create_model("resnet10t", num_classes=7)),
        "two heads": lambda: replace(
            packaged, model=timm.create_model("levit_128s").eval(),
            input=packaged.input.model_copy(update={"image_px": 224}),
        ),
        "scaled": lambda: replace(packaged, model=doubled(packaged.model)),
    }[case]()  # fmt: skip
    assert find_source_head(backbone) is None
