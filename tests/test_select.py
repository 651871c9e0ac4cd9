"""A later candidate must be better beyond doubt; a named backbone is taken as it is named."""

from pathlib import Path

import numpy as np
import pytest
from conftest import tells, with_values
from pydantic import ValidationError
from test_extract import fill_store, in_torch, write_params

from tasks.artifacts.records import BackboneChoice, read_record
from tasks.artifacts.sampling import choose_rows
from tasks.artifacts.tables import Manifest, ManifestRow, write_manifest
from tasks.backbones.catalogue import load_backbone
from tasks.params import Params
from tasks.select import main, say_choice, select
from tasks.transferability.leave_one_out import classify_by_ridge
from tasks.transferability.ranking import rank_backbones
from tasks.transferability.sampling import Sample

pytestmark = pytest.mark.usefixtures("restored_torch")

AUTO = {"backbone.name": "auto", "backbone.weights": "packaged"}


def sample(worth: float, *, images: int = 200, size: int = 1, seed: int = 0) -> Sample:
    """Features that tell the class the better, the more they are worth; in groups of a size."""
    labels = np.arange(images) // size % 2
    noise = np.random.default_rng(seed).normal(size=(images // size, 6)).repeat(size, axis=0)
    noise[:, 0] += worth * labels
    groups = [str(image // size) for image in range(images)]
    return Sample(noise.astype(np.float32), labels, groups)


def ranked(params: Params, *samples: Sample) -> list[bool]:
    names = {str(number): one for number, one in enumerate(samples)}
    return [one.better for one in rank_backbones(names, params.similarity, seed=1)]


def test_a_better_candidate_takes_over_and_the_next_must_beat_it(default_params: Params):
    weak, strong, middle = sample(0.5), sample(4.0), sample(2.0)
    assert ranked(default_params, weak, strong, middle) == [True, True, False]
    assert ranked(default_params, strong, weak, middle) == [True, False, False]


def test_what_is_within_noise_leaves_the_cheaper_one(default_params: Params):
    same = [sample(1.0, seed=seed) for seed in range(5)]
    assert sum(ranked(default_params, *same)) <= 2
    assert ranked(default_params, sample(1.0), sample(1.0)) == [True, False]


def test_images_of_one_group_are_one_witness(default_params: Params):
    """What is a sure gain over 200 images is none over eight groups of 25."""
    apart = ranked(default_params, sample(1.0), sample(2.5, seed=1))
    together = ranked(default_params, sample(1.0, size=25), sample(2.5, size=25, seed=1))
    assert (apart, together) == ([True, True], [True, False])


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(
        [
            ManifestRow(f"{i}.png", "ab"[i % 2], "train", f"g{i}", f"{i:064x}", 32, 32, "RGB")
            for i in range(24)
        ]
    )


def test_a_named_backbone_is_taken_as_it_is_named(
    tmp_path: Path, manifest: Manifest, tiny_params: Params
):
    choice = select(manifest, fill_store(tmp_path / "train", 24, 0), tiny_params)
    named = tiny_params.backbone
    assert choice == BackboneChoice(name=named.name, weights=named.weights, images=0, ranking=[])
    assert named.name in say_choice(choice)


def test_candidates_are_measured_on_their_own_features_of_clean_views(
    tmp_path: Path, manifest: Manifest, tiny_params: Params
):
    store = fill_store(tmp_path / "train", 24, 1)
    names = ["tf_efficientnet_lite0", "tf_efficientnet_lite1"]
    params = with_values(tiny_params, {**AUTO, "select.candidates": names, "select.images": 20})
    write_manifest(tmp_path / "manifest.csv", manifest)
    arguments = [
        f"--params={write_params(tmp_path / 'params.yaml', params)}",
        f"--manifest={tmp_path / 'manifest.csv'}",
        f"--train={tmp_path / 'train'}",
        f"--choice={tmp_path / 'choice.json'}",
    ]
    main(arguments)
    written = (tmp_path / "choice.json").read_bytes()
    choice = read_record(tmp_path / "choice.json", BackboneChoice)
    assert [one.name for one in choice.ranking] == names
    assert choice.images == 20
    assert tells(say_choice(choice), choice.name, *names, "20 training images")
    rows = choose_rows(manifest.of("train"), 20, seed=params.seed).tolist()
    labels = manifest.labels("train")[rows]
    for one in choice.ranking:
        backbone = load_backbone(one.name, "packaged", image_px=32, seed=params.seed)
        features = in_torch(backbone, store.rows(store.row_of(np.array(rows))))
        predicted = classify_by_ridge(features, labels, [f"g{row}" for row in rows])
        assert one.ridge_accuracy.value == np.mean(predicted == labels)
    main(arguments)
    assert (tmp_path / "choice.json").read_bytes() == written


@pytest.mark.parametrize("weights", ["random", "data/weights/mine.safetensors"])
def test_candidates_have_weights_of_their_own(tiny_params, weights):
    with pytest.raises(ValidationError, match=r"name is auto; allowed then: packaged \| hub"):
        with_values(tiny_params, {**AUTO, "backbone.weights": weights})
