import numpy as np
import pytest
from ruamel.yaml import YAML

from tasks.artifacts.records import read_record
from tasks.backbones import cards, source_cards
from tasks.backbones.catalogue import load_backbone
from tasks.errors import ArtifactError, DataError
from tasks.images.listing.sources import list_images
from tasks.transferability.measure_ruler import Bench, main, make_noise, read_set, see
from tasks.transferability.mmd import measure_mmd
from tasks.transferability.ruler import Ruler


@pytest.fixture
def params_file(tiny_params, tmp_path):
    path = tmp_path / "params.yaml"
    YAML(typ="safe").dump(tiny_params.model_dump(), path)
    return path


@pytest.fixture
def backbone(tiny_params):
    return load_backbone("test_efficientnet", "random", image_px=32, seed=tiny_params.seed)


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.setenv("REGRAFT_ENGINE", "torch")
    monkeypatch.setenv("REGRAFT_DEVICE", "cpu")
    return cards.read_machine()


@pytest.fixture
def folder_of_cards(image_folder, params_file, tmp_path, machine):
    source = image_folder(classes=("a", "b"), images=10, name="source")
    out = tmp_path / "cards"
    cards.main(
        [f"--images={source}", "--name=stripes", f"--out={out / 'card.safetensors'}",
         f"--params={params_file}"]
    )  # fmt: skip
    return out


def arguments(folder_of_cards, params_file, *more):
    return [f"--cards={folder_of_cards}", f"--out={folder_of_cards / 'ruler.json'}",
            f"--params={params_file}", *more]  # fmt: skip


def test_main_measures_sets_noise_and_other_images_of_the_card(
    image_folder, folder_of_cards, params_file
):
    known = image_folder(classes=("x", "y", "z"), images=14, name="known")
    main(
        arguments(
            folder_of_cards, params_file, f"--intermediate=stripes too={known}",
            "--noise=uniform noise", "--images=36",
        )
    )  # fmt: skip
    ruler = read_record(folder_of_cards / "ruler.json", Ruler)
    sets = {known.name: known for known in ruler.sets}
    assert (ruler.source, ruler.backbone, ruler.image_px) == ("stripes", "test_efficientnet", 32)
    assert [known.distance for known in ruler.sets] == sorted(k.distance for k in ruler.sets)
    assert {name: (known.images, known.domain) for name, known in sets.items()} == {
        "stripes too": (36, "intermediate"), "uniform noise": (36, "far"),
        "other images of stripes": (10, "similar"),
    }  # fmt: skip
    assert sets["uniform noise"].distance > 4 * sets["other images of stripes"].distance


def test_provenance_is_the_command_without_paths(image_folder, folder_of_cards, params_file):
    known = image_folder(classes=("x", "y"), images=5, name="known")
    main(arguments(folder_of_cards, params_file, f"--far=my set={known}", "--images=10"))
    provenance = read_record(folder_of_cards / "ruler.json", Ruler).provenance
    assert provenance == (
        "python -m tasks.transferability.measure_ruler --far 'my set=SOURCE' "
        "--backbone test_efficientnet --weights random --images 10"
    )


def test_every_card_gets_a_ruler_of_its_size(image_folder, params_file, tmp_path, machine):
    known = image_folder(classes=("x", "y"), images=5, name="known")
    out = tmp_path / "cards"
    cards.main([f"--images={known}", "--name=stripes", f"--out={out / 'card.safetensors'}",
                "--image-px", "32", "48", f"--params={params_file}"])  # fmt: skip
    main(arguments(out, params_file, f"set={known}"))
    rulers = [read_record(path, Ruler) for path in sorted(out.glob("ruler_0??px.json"))]
    assert [ruler.image_px for ruler in rulers] == [32, 48]
    assert rulers[0].sets[0].distance != rulers[1].sets[0].distance


def bench_of(folder_of_cards, backbone, machine, params):
    card = source_cards.find_cards(folder_of_cards, backbone.weights_sha256)[0]
    return Bench(params, machine, backbone, card)


def test_a_set_is_measured_as_the_similarity_stage_measures_new_data(
    image_folder, folder_of_cards, params_file, backbone, machine, tiny_params
):
    known = image_folder(classes=("x", "y"), images=8, name="known")
    main(arguments(folder_of_cards, params_file, f"known={known}"))
    sets = {known.name: known for known in read_record(folder_of_cards / "ruler.json", Ruler).sets}
    bench = bench_of(folder_of_cards, backbone, machine, tiny_params)
    seen = see(read_set(known, tiny_params, images=99), bench)
    expected = measure_mmd(
        bench.card.features, seen, [str(i) for i in range(16)], name="card",
        params=tiny_params.similarity, seed=tiny_params.seed,
    )  # fmt: skip
    assert sets["known"].mmd == expected.value
    assert sets["known"].distance == expected.matched.value


def test_read_set_keeps_labels_beside_their_pixels(image_folder, tiny_params):
    known = image_folder(classes=("x", "y"), images=6, name="known")
    chosen = read_set(known, tiny_params, images=6)
    labels = [row.label for row in chosen.rows]
    assert sorted(labels) == ["x"] * 3 + ["y"] * 3
    red = [pixels[..., 0].mean() for pixels in chosen.pixels]  # class x is the red one
    assert {label for label, value in zip(labels, red, strict=True) if value > 110} == {"x"}
    assert len(list_images(known).images) == 12


def test_noise_is_uniform_and_the_same_each_time(tiny_params):
    first = np.stack(list(make_noise(tiny_params, images=20).pixels))
    again = np.stack(list(make_noise(tiny_params, images=20).pixels))
    np.testing.assert_array_equal(first, again)
    assert first.mean() == pytest.approx(127.5, abs=1)
    assert first.std() == pytest.approx(73.9, abs=1)


@pytest.mark.parametrize("argument", ["folder", "=folder", "name="])
def test_a_set_without_name_or_source_is_an_error(folder_of_cards, params_file, argument):
    with pytest.raises(DataError, match="expected NAME=SOURCE"):
        main(arguments(folder_of_cards, params_file, argument))


def test_without_a_card_there_is_nothing_to_measure_against(tmp_path, params_file, machine):
    with pytest.raises(ArtifactError, match=r"no source card.*tasks\.backbones\.cards"):
        main(arguments(tmp_path, params_file, "known=folder"))
