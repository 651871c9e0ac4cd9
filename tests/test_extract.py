"""The extract stage: features of every row in order, the probe, and the same bytes every time."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tells
from ruamel.yaml import YAML

from tasks.artifacts.arrays import read_array, read_tensors, read_tensors_note
from tasks.artifacts.pixels import PixelStore, StoreWriter, store_info
from tasks.artifacts.records import (
    BackboneChoice,
    BackboneInfo,
    InputSpec,
    Split,
    read_record,
    write_record,
)
from tasks.artifacts.tables import Manifest, ManifestRow, write_manifest
from tasks.backbones.catalogue import Backbone, load_backbone
from tasks.backbones.feature_files import write_features
from tasks.backbones.groups import PooledFeatures, group_numbers
from tasks.backbones.normalization import fit_running_statistics
from tasks.backbones.probe import choose_probe_images, sample_pixels
from tasks.errors import ArtifactError, WeightsError
from tasks.extract import main
from tasks.params import BackboneParams, Params
from tasks.runtime.device import normalize
from tasks.runtime.progress import progress

pytestmark = pytest.mark.usefixtures("restored_torch")

SPLITS = ("train", "val", "test")
SPEC = InputSpec(image_px=16, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


def fill_store(folder: Path, count: int, views: int, *, px: int = 32, seed: int = 0) -> PixelStore:
    folder.mkdir(parents=True)
    info = store_info(count, views=views, image_px=px)
    pixels = np.random.default_rng(seed).integers(
        0, 256, (count * (views + 1), px, px, 3), np.uint8
    )
    with StoreWriter(folder, info) as writer:
        writer.append(pixels)
    return PixelStore.open(folder)


def rows_of(count: int, split: Split = "train") -> list[ManifestRow]:
    return [
        ManifestRow(f"{i}.png", "ab"[i % 2], split, f"g{i}", f"sha{i}", 32, 32, "RGB")
        for i in range(count)
    ]


@pytest.fixture
def stores(tmp_path: Path) -> dict[str, PixelStore]:
    counts = {"train": (41, 1), "val": (9, 0), "test": (7, 0)}
    rows = [row for split in SPLITS for row in rows_of(counts[split][0], split)]
    write_manifest(tmp_path / "manifest.csv", Manifest(rows))
    return {
        split: fill_store(tmp_path / "augment" / split, *counts[split], seed=number)
        for number, split in enumerate(SPLITS)
    }


def write_params(path: Path, params: Params) -> Path:
    with path.open("w") as file:
        YAML(typ="safe").dump(params.model_dump(), file)
    return path


def write_choice(path: Path, named: BackboneParams) -> Path:
    choice = BackboneChoice(name=named.name, weights=named.weights, images=0, ranking=[])
    write_record(path, choice)
    return path


def run(tmp_path: Path, params: Params, out: str = "extract") -> Path:
    """Run the stage on the stores of the fixture; give the folder that it wrote."""
    folder = tmp_path / out
    reads = ["--manifest", str(tmp_path / "manifest.csv")]
    reads += [
        part for split in SPLITS for part in (f"--{split}", str(tmp_path / "augment" / split))
    ]
    writes = [part for split in SPLITS for part in (f"--{split}-features", str(folder / split))]
    files = [
        "--probe",
        str(folder / "probe.safetensors"),
        "--backbone",
        str(folder / "backbone.json"),
        "--choice",
        str(write_choice(tmp_path / "choice.json", params.backbone)),
    ]
    main(["--params", str(write_params(tmp_path / "params.yaml", params)), *reads, *writes, *files])
    return folder


def in_torch(backbone: Backbone, pixels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        images = normalize(torch.tensor(pixels), backbone.input)
        return PooledFeatures(backbone.model)(images).numpy()


def test_features_are_those_of_every_row_in_order(tmp_path, stores, tiny_params):
    folder = run(tmp_path, tiny_params)
    backbone = load_backbone("test_efficientnet", "random", image_px=32, seed=tiny_params.seed)
    for split, store in stores.items():
        found = read_array(folder / split / "features.npy")
        views = store.info.views + 1
        assert (found.dtype, found.shape) == (np.float32, (store.info.count, views, 256))
        expected = in_torch(backbone, store.rows(range(store.info.count * views)))
        np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-3, atol=1e-5)


def test_the_description_names_network_weights_and_engine(tmp_path, stores, tiny_params):
    info = read_record(run(tmp_path, tiny_params) / "backbone.json", BackboneInfo)
    backbone = load_backbone("test_efficientnet", "random", image_px=32, seed=tiny_params.seed)
    assert info.weights_sha256 == backbone.weights_sha256
    assert (info.name, info.weights, info.norm) == ("test_efficientnet", "random", "batch")
    assert (info.feature_dim, info.input.image_px) == (256, 32)
    assert (info.engine, len(info.groups)) == ("onnxruntime", 6)
    assert info.parity is not None
    assert info.parity < 1e-5


def test_the_probe_holds_what_the_layers_see_in_its_images(tmp_path, stores, tiny_params):
    path = run(tmp_path, tiny_params) / "probe.safetensors"
    probe, layers = read_tensors(path), json.loads(read_tensors_note(path)["layers"])
    model = load_backbone("test_efficientnet", "random", image_px=32, seed=tiny_params.seed).model
    seen: list[torch.Tensor] = []
    model.blocks[3][0].bn2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    store = stores["train"]
    in_torch_pixels = normalize(
        torch.tensor(store.rows(store.row_of(probe["rows"]))),
        load_backbone("test_efficientnet", "random", image_px=32, seed=0).input,
    )
    with torch.inference_mode():
        model(in_torch_pixels)
    number = layers.index(["blocks.3.0.bn2", group_numbers(model)["blocks.3.0.bn2.weight"]])
    var, mean = torch.var_mean(seen[0].double(), (0, 2, 3), correction=0)
    np.testing.assert_allclose(probe[f"bn.{number:03d}.mean"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(probe[f"bn.{number:03d}.var"], var, rtol=1e-4)
    assert len(layers) * 6 + 3 == len(probe)
    assert np.bincount(probe["parts"]).tolist() == [2] * 12 + [1] * 8


def test_random_features_are_those_of_the_untrained_network_with_fitted_statistics(
    tmp_path, stores, tiny_params
):
    probe = read_tensors(run(tmp_path, tiny_params) / "probe.safetensors")
    store = stores["train"]
    images = choose_probe_images(store, rows_of(41), tiny_params.extract, tiny_params.seed)
    untrained = load_backbone("test_efficientnet", "random", image_px=32, seed=tiny_params.seed)
    fit_running_statistics(untrained.model, images.mixed_up(untrained.input))
    expected = in_torch(untrained, store.rows(store.row_of(probe["rows"])))
    np.testing.assert_allclose(probe["random_features"], expected, rtol=1e-3, atol=1e-4)


def test_probe_images_hardly_change_when_images_are_appended(tmp_path, tiny_params):
    small = fill_store(tmp_path / "small", 100, 0, px=16)
    large = fill_store(tmp_path / "large", 110, 0, px=16)
    params = tiny_params.extract
    first, second = (
        choose_probe_images(store, rows_of(store.info.count), params, 3).rows
        for store in (small, large)
    )
    assert len(first) == params.shift_images == 32
    assert first.tolist() == sorted(set(first.tolist()))
    assert len(np.intersect1d(first, second)) >= 25
    assert choose_probe_images(small, rows_of(100), params, 4).rows.tolist() != first.tolist()


def test_images_of_one_group_lie_in_one_part(tmp_path, tiny_params):
    store = fill_store(tmp_path / "grouped", 30, 0, px=16)
    rows = [replace(row, group=f"g{number // 3}") for number, row in enumerate(rows_of(30))]
    images = choose_probe_images(store, rows, tiny_params.extract, 0)
    parts = images.parts.reshape(10, 3)
    assert sorted(parts[:, 0]) == list(range(10))
    assert (parts == parts[:, :1]).all()


def test_a_manifest_of_other_images_is_refused(tmp_path, stores, tiny_params):
    write_manifest(tmp_path / "manifest.csv", Manifest(rows_of(40)))
    with pytest.raises(ArtifactError, match="train: 41 images, the manifest lists 40"):
        run(tmp_path, tiny_params)


def test_a_small_set_is_probed_whole(stores, tiny_params):
    images = choose_probe_images(stores["val"], rows_of(9), tiny_params.extract, 0)
    assert images.rows.tolist() == list(range(9))
    assert sorted(images.mixed.tolist()) == list(range(9))


def test_untrained_statistics_are_never_fitted_on_a_single_image(tmp_path, tiny_params):
    store = fill_store(tmp_path / "odd", 33, 0, px=16)
    wide = tiny_params.extract.model_copy(update={"shift_images": 100})
    assert wide.batch_size == 16
    images = choose_probe_images(store, rows_of(33), wide, 0)
    assert len(images.rows) == 33
    sizes = [len(batch) for batch in images.mixed_up(SPEC)]
    assert sizes == [16, 16]


def test_engine_samples_are_clean_views_from_the_whole_store(stores):
    store = stores["train"]
    sample = sample_pixels(store)
    assert len(sample) == 8
    np.testing.assert_array_equal(sample[0], store.rows([0])[0])
    np.testing.assert_array_equal(sample[-1], store.rows([80])[0])
    assert len(sample_pixels(stores["test"])) == 7


def test_two_runs_give_the_same_bytes_whatever_the_threads(
    tmp_path, stores, tiny_params, monkeypatch
):
    first = run(tmp_path, tiny_params, "one")
    monkeypatch.setenv("REGRAFT_THREADS", "2")
    second = run(tmp_path, tiny_params, "two")
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) == 5
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_the_batch_size_changes_nothing_but_rounding(tmp_path, stores, tiny_params):
    first = run(tmp_path, tiny_params, "one")
    extract = tiny_params.extract.model_copy(update={"batch_size": 5})
    second = run(tmp_path, tiny_params.model_copy(update={"extract": extract}), "two")
    for split in SPLITS:
        one, two = (read_array(folder / split / "features.npy") for folder in (first, second))
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


def test_features_that_are_not_finite_stop_the_stage_and_leave_nothing(
    tmp_path, stores, tiny_params
):
    def engine(pixels):
        features = np.ones((len(pixels), 2), np.float32)
        features[-1] = np.nan
        return (features,)

    with (
        progress("test", 1) as meter,
        pytest.raises(WeightsError, match=r"NaN or infinite .*image 7, view 1 of"),
    ):
        write_features(tmp_path / "out", stores["train"], engine, tiny_params.extract, meter)
    assert not (tmp_path / "out").exists()


def test_stores_of_different_sizes_are_refused(tmp_path, tiny_params):
    rows = [row for split in SPLITS for row in rows_of(3, split)]
    write_manifest(tmp_path / "manifest.csv", Manifest(rows))
    for split, px in zip(SPLITS, (32, 32, 48), strict=True):
        fill_store(tmp_path / "augment" / split, 3, 0, px=px)
    with pytest.raises(ArtifactError, match=r"test: 3 images of 48 px, expected .* 32 px"):
        run(tmp_path, tiny_params)


def test_the_log_says_what_was_found(tmp_path, stores, tiny_params, caplog):
    with caplog.at_level("INFO", logger="tasks"):
        run(tmp_path, tiny_params)
    assert tells(caplog.text, "256 features", "98 rows", "test_efficientnet", "onnx")
    assert tells(caplog.text, "32 images", "13 batch-norm layers")
