"""Source cards: what is written is read, found by weights, and made from any folder of images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.artifacts.arrays import read_tensors, read_tensors_note, write_tensors
from tasks.artifacts.records import InputSpec
from tasks.backbones.cards import list_source_images, main
from tasks.backbones.catalogue import load_backbone
from tasks.backbones.groups import PooledFeatures
from tasks.backbones.normalization import measure_inputs
from tasks.backbones.source_cards import (
    CardOrigin,
    LayerMoments,
    SourceCard,
    find_cards,
    nearest_size,
    read_card,
    write_card,
)
from tasks.errors import ArtifactError, DataError
from tasks.images.texture import (
    STATISTICS,
    gray_share,
    measure_textures,
    mostly_even_share,
    tabulate,
    unpadded,
)
from tasks.images.views import read_view
from tasks.runtime.device import normalize

ROOT = Path(__file__).parent.parent
SPEC = InputSpec(image_px=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def make_card(sha256: str = "a" * 64, rows: int = 4, image_px: int = 32) -> SourceCard:
    features = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float16)
    provenance = CardOrigin(
        name="photographs",
        source="four photographs",
        license=None,
        images=rows,
        backbone="test_resnet",
        weights_sha256=sha256,
        weights_license="MIT",
        input=SPEC.model_copy(update={"image_px": image_px}),
        fit="crop",
        command="python -m tasks.backbones.cards",
    )
    return SourceCard(features.astype(np.float32), provenance)


def test_a_card_is_read_as_it_was_written(tmp_path):
    card = make_card()
    write_card(tmp_path / "c.safetensors", card)
    found = read_card(tmp_path / "c.safetensors")
    spread = np.ptp(card.features, axis=0)
    assert np.all(np.abs(found.features - card.features) <= spread / 255 / 2 * 1.01)
    assert found.features.dtype == np.float32
    assert found.provenance == card.provenance
    assert (found.name, found.image_px, found.weights_sha256) == ("photographs", 32, "a" * 64)


def test_moments_of_layers_are_read_as_they_were_written(tmp_path):
    rng, path = np.random.default_rng(1), tmp_path / "c.safetensors"
    drawn = {
        name: LayerMoments(*rng.uniform(size=(2, width)).astype(np.float32))
        for name, width in (("b.norm", 3), ("a.norm", 5))
    }
    write_card(path, replace(make_card(), moments=drawn))
    found = read_card(path).moments
    assert list(found) == list(drawn)
    for name, layer in found.items():
        np.testing.assert_array_equal(layer.mean, drawn[name].mean)
        np.testing.assert_array_equal(layer.var, drawn[name].var)


def test_a_card_without_moments_is_as_before_there_were_any(tmp_path):
    path = tmp_path / "c.safetensors"
    write_card(path, make_card())
    assert set(read_tensors(path)) == {"codes", "least", "step"}
    assert set(read_tensors_note(path)) == {"card"}
    assert read_card(path).moments == {}


def test_a_feature_takes_one_byte_on_disk_and_one_that_never_varies_is_kept(tmp_path):
    card = make_card()
    card.features[:, 1] = 7
    write_card(tmp_path / "c.safetensors", card)
    assert read_tensors(tmp_path / "c.safetensors")["codes"].dtype == np.uint8
    np.testing.assert_array_equal(read_card(tmp_path / "c.safetensors").features[:, 1], 7)


def test_cards_are_found_by_the_weights(tmp_path):
    for name, sha256 in (("a", "1" * 64), ("c", "2" * 64), ("b", "2" * 64)):
        write_card(tmp_path / f"{name}.safetensors", make_card(sha256, rows=ord(name)))
    found = find_cards(tmp_path, "2" * 64)
    assert [len(card.features) for card in found] == [ord("b"), ord("c")]
    assert find_cards(tmp_path, "3" * 64) == []
    assert find_cards(tmp_path / "none", "2" * 64) == []


@pytest.mark.parametrize(
    ("image_px", "nearest"),
    [(224, 224), (200, 224), (188, 160), (240, 224), (280, 224), (281, None), (100, None)],
)
def test_the_card_of_the_nearest_size_is_used_within_a_quarter(image_px, nearest):
    cards = [make_card(image_px=size) for size in (160, 224)]
    found = nearest_size(cards, image_px)
    assert (found and found.image_px) == nearest


@pytest.mark.parametrize("damage", ["no note", "bad note", "no features", "too few rows"])
def test_a_file_that_is_no_card_is_named(tmp_path, damage):
    card, path = make_card(), tmp_path / "c.safetensors"
    note = {"card": card.provenance.model_dump_json()}
    tensors = {"codes": np.zeros((4, 3), np.uint8)}
    if damage == "no note":
        note = {}
    elif damage == "bad note":
        note = {"card": "{}"}
    elif damage == "no features":
        tensors = {"other": card.features}
    else:
        tensors = {"codes": np.zeros((2, 3), np.uint8)}
    write_tensors(path, tensors, note)
    with pytest.raises(ArtifactError, match=r"c\.safetensors: (is no source card|its features)"):
        find_cards(tmp_path, "a" * 64)


def test_images_are_listed_below_all_folders_by_code_point(image_folder, tmp_path):
    root = image_folder(classes=("b", "B", "a"), images=2)
    (root / "a" / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_bytes(b"")
    listed = [path.relative_to(root).as_posix() for path in list_source_images(root)]
    assert listed == [f"{label}/{number:03d}.png" for label in ("B", "a", "b") for number in (0, 1)]
    with pytest.raises(DataError, match="holds no image files"):
        list_source_images(tmp_path / "none")


def run_main(images: Path, out: Path, *more: str, backbone: str = "test_resnet") -> None:
    main(
        [
            *("--images", str(images), "--name", "my photographs", "--out", str(out)),
            *("--backbone", backbone, "--weights", "random", "--image-px", "32"),
            *("--params", str(ROOT / "params.yaml"), *more),
        ]
    )


def test_the_command_makes_features_of_every_image(image_folder, tmp_path, default_params):
    root, out = image_folder(images=13), tmp_path / "card.safetensors"
    run_main(root, out, "--source", "noise", "--license", "cc0", "--fit", "squash")
    card = read_card(out)
    backbone = load_backbone("test_resnet", "random", image_px=32, seed=default_params.seed)
    views = [
        read_view(path.read_bytes(), image_px=32, fit="squash", max_pixels=10**6).pixels
        for path in list_source_images(root)
    ]
    pixels = normalize(backbone.model.conv1[0].weight.new_tensor(np.stack(views)), backbone.input)
    expected = PooledFeatures(backbone.model)(pixels).detach().numpy()
    np.testing.assert_allclose(card.features, expected, atol=np.ptp(expected, axis=0).max() / 400)
    assert card.weights_sha256 == backbone.weights_sha256
    assert card.provenance.images == 39


@pytest.mark.parametrize("name", ["test_vit", "convnext_atto"])
def test_the_card_of_a_network_without_statistics_tells_what_its_layers_see(
    image_folder, tmp_path, default_params, name
):
    root, out = image_folder(images=13), tmp_path / "card.safetensors"
    run_main(root, out, backbone=name)
    backbone = load_backbone(name, "random", image_px=32, seed=default_params.seed)
    views = [
        read_view(path.read_bytes(), image_px=32, fit="crop", max_pixels=10**6).pixels
        for path in list_source_images(root)
    ]
    images = normalize(torch.from_numpy(np.stack(views)), backbone.input)
    expected = measure_inputs(backbone.model, [[images]])
    found = read_card(out).moments
    assert list(found) == [layer.name for layer in expected]
    for layer in expected:
        scale = np.sqrt(layer.var.max())
        np.testing.assert_allclose(found[layer.name].mean, layer.mean, rtol=1e-4, atol=1e-5 * scale)
        np.testing.assert_allclose(found[layer.name].var, layer.var, rtol=1e-3)
    assert sum(2 * 4 * len(layer.mean) for layer in expected) < 250_000


def test_the_command_makes_cards_of_several_sizes(image_folder, tmp_path):
    root, out = image_folder(images=3), tmp_path / "card.safetensors"
    run_main(root, out, "--image-px", "32", "48")
    found = {path.name: read_card(path) for path in sorted(tmp_path.glob("*.safetensors"))}
    assert list(found) == ["card_032px.safetensors", "card_048px.safetensors"]
    assert [card.image_px for card in found.values()] == [32, 48]
    assert all("--image-px 32 48" in card.provenance.command for card in found.values())
    assert not np.allclose(*(card.features for card in found.values()))


def test_a_card_tells_the_texture_of_its_images_unless_they_were_enlarged(image_folder, tmp_path):
    root, out = image_folder(images=4), tmp_path / "card.safetensors"  # of 40 x 32 px
    run_main(root, out)
    views = [
        read_view(path.read_bytes(), image_px=32, fit="crop", max_pixels=10**6).pixels
        for path in list_source_images(root)
    ]
    textures, found = measure_textures(views), read_card(out).provenance
    assert found.textures == tabulate(textures)
    assert (found.gray, found.even) == (gray_share(textures), mostly_even_share(textures))
    run_main(root, out, "--image-px", "48")
    found = read_card(out).provenance
    assert found.textures == {}
    assert found.gray is found.even is None


@pytest.mark.parametrize(
    ("sizes", "fit", "told"),
    [
        ([32, 40, 40], "crop", True),  # the median counts, not the smallest
        ([32, 32, 40], "crop", False),
        ([(90, 34)] * 3, "crop", False),  # the shorter side counts
        ([(90, 36)] * 3, "pad", True),  # the longer one where it fills the square
    ],
)
def test_most_images_must_fill_the_size_of_a_card_that_tells_texture(tmp_path, sizes, fit, told):
    (tmp_path / "raw").mkdir()
    rng = np.random.default_rng(3)
    for number, size in enumerate(sizes):
        width, height = (size, size) if isinstance(size, int) else size
        noise = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"raw/{number}.png")
    run_main(tmp_path / "raw", tmp_path / "c", "--image-px", "36" if fit == "crop" else "90",
             "--fit", fit)  # fmt: skip
    found = read_card(tmp_path / "c").provenance
    assert bool(found.textures) == told
    if fit == "pad":
        views = [
            read_view(path.read_bytes(), image_px=90, fit="pad", max_pixels=10**6).pixels
            for path in list_source_images(tmp_path / "raw")
        ]
        assert found.textures == tabulate(measure_textures(unpadded(v, 90, 36) for v in views))


@pytest.mark.parametrize("values", [[0.5] * 20, [0.5] * 22, [0.5] * 20 + [0.4]])
def test_a_card_with_another_table_is_named(tmp_path, values):
    card, path = make_card(), tmp_path / "c.safetensors"
    write_card(path, card)
    broken = card.provenance.model_copy(update={"textures": {"even": values}})
    write_tensors(path, read_tensors(path), {"card": broken.model_dump_json()})
    with pytest.raises(ArtifactError, match=r"c\.safetensors: is no source card .*21 ascending"):
        read_card(path)


def test_a_card_without_textures_is_still_read(tmp_path):
    card, path = make_card(), tmp_path / "c.safetensors"
    write_card(path, card)
    old = card.provenance.model_dump_json(exclude={"textures"})
    write_tensors(path, read_tensors(path), {"card": old})
    assert read_card(path).provenance == card.provenance


def test_the_command_writes_its_provenance_without_paths(image_folder, tmp_path):
    root, out = image_folder(images=3), tmp_path / "card.safetensors"
    run_main(root, out, "--source", "noise", "--license", "cc0")
    found = read_card(out).provenance
    assert (found.source, found.license, found.fit) == ("noise", "cc0", "crop")
    assert found.input == load_backbone("test_resnet", "random", image_px=32, seed=0).input
    assert "--name 'my photographs' --backbone test_resnet" in found.command
    assert str(tmp_path).encode() not in out.read_bytes()


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_the_command_gives_the_same_bytes_for_any_number_of_threads(
    image_folder, tmp_path, monkeypatch, name
):
    root = image_folder(images=5)
    for workers in ("1", "3"):
        monkeypatch.setenv("REGRAFT_WORKERS", workers)
        run_main(root, tmp_path / f"{workers}.safetensors", backbone=name)
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
    sizes = {
        name: [card.image_px for card in cards if card.provenance.backbone == name]
        for name in (f"tf_efficientnet_lite{number}" for number in range(3))
    }
    assert list(sizes.values()) == [
        [64, 96, 128, 160, 224, 288, 384], [160, 224], [160, 224],
    ]  # fmt: skip
    for card in cards:
        backbone = load_backbone(
            card.provenance.backbone, "packaged", image_px=card.image_px, seed=0
        )
        assert card.weights_sha256 == backbone.weights_sha256
        assert card.provenance.input == backbone.input
        assert card.features.shape == (1000, backbone.feature_dim)
        assert np.isfinite(card.features).all()
        told = card.provenance.textures
        assert set(told) == (set(STATISTICS) if card.image_px <= 256 else set())
        assert (card.provenance.gray is None) == (card.provenance.even is None) == (not told)
