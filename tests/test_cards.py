"""Source cards: what is written is read, found by weights, and made from any folder of images."""

import logging
from pathlib import Path

import numpy as np
import pytest
from conftest import tells
from PIL import Image

from tasks.artifacts.arrays import read_tensors, write_tensors
from tasks.artifacts.records import InputSpec
from tasks.backbones.cards import list_source_images, main
from tasks.backbones.catalogue import load_backbone
from tasks.backbones.groups import PooledFeatures
from tasks.backbones.source_cards import CardOrigin, SourceCard, find_card, read_card, write_card
from tasks.errors import ArtifactError, DataError
from tasks.images.decoding.decode import read_clean_view
from tasks.runtime.device import normalize

ROOT = Path(__file__).parent.parent
SPEC = InputSpec(image_px=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def make_card(sha256: str = "a" * 64, rows: int = 4) -> SourceCard:
    features = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float16)
    provenance = CardOrigin(
        name="photographs",
        source="four photographs",
        license=None,
        images=rows,
        backbone="test_resnet",
        weights_sha256=sha256,
        weights_license="MIT",
        input=SPEC,
        fit="crop",
        command="python -m tasks.backbones.cards",
    )
    return SourceCard(features.astype(np.float32), provenance)


def test_a_card_is_read_as_it_was_written(tmp_path):
    card = make_card()
    write_card(tmp_path / "c.safetensors", card)
    found = read_card(tmp_path / "c.safetensors")
    np.testing.assert_array_equal(found.features, card.features)
    assert found.features.dtype == np.float32
    assert found.provenance == card.provenance
    assert (found.name, found.image_px, found.weights_sha256) == ("photographs", 32, "a" * 64)


def test_features_take_two_bytes_a_value_on_disk(tmp_path):
    write_card(tmp_path / "c.safetensors", make_card())
    assert read_tensors(tmp_path / "c.safetensors")["features"].dtype == np.float16


def test_a_card_is_found_by_the_weights(tmp_path):
    for name, sha256 in (("a", "1" * 64), ("b", "2" * 64)):
        write_card(tmp_path / f"{name}.safetensors", make_card(sha256))
    found = find_card(tmp_path, "2" * 64)
    assert found is not None
    assert found.weights_sha256 == "2" * 64
    assert find_card(tmp_path, "3" * 64) is None
    assert find_card(tmp_path / "none", "2" * 64) is None


def test_of_two_cards_of_one_backbone_the_first_by_name_is_used_and_the_log_says_so(
    tmp_path, caplog
):
    for name, rows in (("b", 5), ("a", 4)):
        write_card(tmp_path / f"{name}.safetensors", make_card(rows=rows))
    with caplog.at_level(logging.WARNING):
        found = find_card(tmp_path, "a" * 64)
    assert found is not None
    assert len(found.features) == 4
    assert tells(caplog.text, "a.safetensors is used", "not b.safetensors")


@pytest.mark.parametrize("damage", ["no note", "bad note", "no features", "too few rows"])
def test_a_file_that_is_no_card_is_named(tmp_path, damage):
    card, path = make_card(), tmp_path / "c.safetensors"
    note = {"card": card.provenance.model_dump_json()}
    tensors = {"features": card.features}
    if damage == "no note":
        note = {}
    elif damage == "bad note":
        note = {"card": "{}"}
    elif damage == "no features":
        tensors = {"other": card.features}
    else:
        tensors = {"features": card.features[:2]}
    write_tensors(path, tensors, note)
    with pytest.raises(ArtifactError, match=r"c\.safetensors: (is no source card|its features)"):
        find_card(tmp_path, "a" * 64)


def test_images_are_listed_below_all_folders_by_code_point(image_folder, tmp_path):
    root = image_folder(classes=("b", "B", "a"), images=2)
    (root / "a" / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_bytes(b"")
    listed = [path.relative_to(root).as_posix() for path in list_source_images(root)]
    assert listed == [f"{label}/{number:03d}.png" for label in ("B", "a", "b") for number in (0, 1)]
    with pytest.raises(DataError, match="holds no image files"):
        list_source_images(tmp_path / "none")


def run_main(images: Path, out: Path, *more: str) -> None:
    main(
        [
            *("--images", str(images), "--name", "my photographs", "--out", str(out)),
            *("--backbone", "test_resnet", "--weights", "random", "--image-px", "32"),
            *("--params", str(ROOT / "params.yaml"), *more),
        ]
    )


def test_the_command_makes_features_of_every_image(image_folder, tmp_path, default_params):
    root, out = image_folder(images=13), tmp_path / "card.safetensors"
    run_main(root, out, "--source", "noise", "--license", "cc0", "--fit", "squash")
    card = read_card(out)
    backbone = load_backbone("test_resnet", "random", image_px=32, seed=default_params.seed)
    views = [
        read_clean_view(path.read_bytes(), image_px=32, fit="squash", max_pixels=10**6)
        for path in list_source_images(root)
    ]
    pixels = normalize(backbone.model.conv1[0].weight.new_tensor(np.stack(views)), backbone.input)
    expected = PooledFeatures(backbone.model)(pixels).detach().numpy()
    np.testing.assert_allclose(card.features, expected, rtol=2e-3, atol=1e-4)
    assert card.weights_sha256 == backbone.weights_sha256
    assert card.provenance.images == 39


def test_the_command_writes_its_provenance_without_paths(image_folder, tmp_path):
    root, out = image_folder(images=3), tmp_path / "card.safetensors"
    run_main(root, out, "--source", "noise", "--license", "cc0")
    found = read_card(out).provenance
    assert (found.source, found.license, found.fit) == ("noise", "cc0", "crop")
    assert found.input == load_backbone("test_resnet", "random", image_px=32, seed=0).input
    assert "--name 'my photographs' --backbone test_resnet" in found.command
    assert str(tmp_path).encode() not in out.read_bytes()


def test_the_command_gives_the_same_bytes_for_any_number_of_threads(
    image_folder, tmp_path, monkeypatch
):
    root = image_folder(images=5)
    for workers in ("1", "3"):
        monkeypatch.setenv("REGRAFT_WORKERS", workers)
        run_main(root, tmp_path / f"{workers}.safetensors")
    first, second = (tmp_path / f"{workers}.safetensors" for workers in ("1", "3"))
    assert first.read_bytes() == second.read_bytes()


def test_images_that_cannot_be_decoded_are_all_counted_and_the_first_named(image_folder, tmp_path):
    root = image_folder(images=3)
    for number in range(12):
        (root / "fox" / f"bad{number}.jpg").write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        run_main(root, tmp_path / "card.safetensors")
    message = str(caught.value)
    assert message.startswith("12 of 21 images cannot be used")
    assert message.count("bad") == 10
    assert message.endswith("... and 2 more")
    assert not (tmp_path / "card.safetensors").exists()


def test_an_image_that_cannot_be_read_is_named(image_folder, tmp_path, monkeypatch):
    root = image_folder(images=2)
    Image.new("RGB", (8, 8)).save(root / "locked.png")
    real = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name == "locked.png":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(DataError, match=r"locked\.png: Permission denied"):
        run_main(root, tmp_path / "card.safetensors")


def test_committed_cards_belong_to_the_packaged_backbones():
    cards = [read_card(path) for path in sorted((ROOT / "data/cards").glob("*.safetensors"))]
    names = [card.provenance.backbone for card in cards]
    assert names == [f"tf_efficientnet_lite{number}" for number in range(3)]
    for card in cards:
        backbone = load_backbone(card.provenance.backbone, "packaged", image_px=224, seed=0)
        assert card.weights_sha256 == backbone.weights_sha256
        assert card.provenance.input == backbone.input
        assert card.features.shape == (1000, backbone.feature_dim)
        assert np.isfinite(card.features).all()
