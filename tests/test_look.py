"""The look at the images: against planted classes, a naive loop and ranges made by hand."""

from dataclasses import replace

import numpy as np
import pytest
from bench import look as bench
from conftest import CONVERSION, ROOT, tells
from PIL import Image
from test_extract import fill_store, rows_of
from test_similarity import CARD

from tasks.artifacts.tables import LikenessRow, Manifest, read_rows
from tasks.backbones.catalogue import load_backbone
from tasks.backbones.source_cards import SourceCard
from tasks.backbones.source_head import SourceHead, read_source_head
from tasks.images.texture import STATISTICS, measure_textures
from tasks.params_file import load_params
from tasks.transferability.look import (
    MOST_CLASSES,
    Pictured,
    compare_textures,
    look_at,
    name_seen,
)
from tasks.transferability.pictures import (
    NEIGHBORS,
    choose_ends,
    measure_likeness,
    see_pixels,
    write_pictures,
)
from tasks.transferability.sampling import Sample

D = 6
NAMES = ["tench", "solar dish", "radiator", "fox", "quill", "kite"]
KEYS = [f"n{number}" for number in range(D)]
HEAD = SourceHead(np.eye(D, dtype=np.float32), np.zeros(D, np.float32), NAMES, KEYS, "ImageNet-1k")
RANGES = {name: [float(step) for step in range(21)] for name in STATISTICS}
TOLD = SourceCard(
    CARD.features,
    CARD.provenance.model_copy(update={"textures": RANGES, "gray": 0.25, "even": 0.125}),
)


def sample_of(seen, labels, sure=5.0):
    features = sure * np.eye(D, dtype=np.float32)[np.array(seen)]
    return Sample(features, np.array(labels), [str(row) for row in range(len(labels))])


def pictured(textures, left_out=0, classes=2, classes_total=2, deep=0):
    textures = np.array(textures, dtype=float).reshape(-1, len(STATISTICS))
    return Pictured(textures, left_out, classes, classes_total, deep)


def words_of(textures, sample=None, names=("all",), card=None, head=None, **counts):
    return look_at(
        pictured(textures, **counts), sample or sample_of([0], [0]), names, card=card, head=head
    ).words


# what the head sees ------------------------------------------------------------------------------


def test_planted_classes_are_seen_with_their_shares():
    sample = sample_of([1, 1, 1, 2, 3, 4, 4, 4], [0, 0, 0, 0, 1, 1, 1, 1])
    found = name_seen(sample, ["defective", "functional"], HEAD, None)
    first, second = found.classes
    assert (first.name, first.images) == ("defective", 4)
    assert [(one.name, one.share) for one in first.seen] == [
        ("solar dish", 0.75),
        ("radiator", 0.25),
    ]
    assert [one.name for one in second.seen] == ["quill", "fox"]
    expected = np.exp(5) / (np.exp(5) + D - 1)
    assert found.sure == pytest.approx(expected, rel=1e-5)
    assert found.source_sure is None


def test_the_bias_of_the_head_counts():
    bias = np.array([0, 0, 9, 0, 0, 0], np.float32)
    head = replace(HEAD, bias=bias)
    found = name_seen(sample_of([1, 3], [0, 0]), ["all"], head, None)
    assert [one.name for one in found.classes[0].seen] == ["radiator"]


def test_sureness_stands_beside_that_on_the_images_of_the_source():
    own = SourceCard(9 * np.eye(D, dtype=np.float32), CARD.provenance)
    found = name_seen(sample_of([0, 1], [0, 0], sure=0.1), ["all"], HEAD, own)
    assert found.source_sure == pytest.approx(np.exp(9) / (np.exp(9) + D - 1), rel=1e-5)
    assert found.sure < 0.2


@pytest.mark.parametrize(
    ("right", "sure", "told"),
    [
        (0.85, 0.1, "is far less sure than on the images of a photo at 40 px: median"),
        (0.85, 9.0, "about as sure as on the images of a photo at 40 px"),
        (0.85, 2.9, "is less sure than on"),
        (0.6, 9.0, "about as sure"),
        (0.59, 9.0, "words mean little: of the images of a photo at 40 px"),
    ],
)
def test_words_say_how_far_the_head_is_to_be_believed(right, sure, told):
    size = CARD.provenance.input.model_copy(update={"image_px": 40})
    told_by = {"head_accuracy": right, "name": "a `photo", "input": size}
    origin = CARD.provenance.model_copy(update=told_by)
    card = SourceCard(9 * np.eye(D, dtype=np.float32), origin)
    sample = sample_of([0, 1], [0, 0], sure=sure)
    look = look_at(pictured([[0] * 5]), sample, ["all"], card=card, head=HEAD)
    assert look.semantics.source_right == right
    assert tells(look.words, told, f"{right:.0%} rightly")


def test_the_accuracy_of_the_head_needs_folders_called_as_its_classes():
    features = np.eye(D, dtype=np.float32)[[0, 1, 2, 3]]
    assert HEAD.accuracy(features, ["n0", "n1", "n2", "n5"]) == 0.75
    assert HEAD.accuracy(features, ["n0", "n1", "n2", "cats"]) is None


def test_of_many_classes_the_largest_are_told_in_their_order():
    labels = np.repeat(np.arange(MOST_CLASSES + 5), 2)
    labels = np.concatenate([labels, [MOST_CLASSES + 4]])
    found = name_seen(
        sample_of([0] * len(labels), labels), [f"c{n:03d}" for n in range(99)], HEAD, None
    )
    assert len(found.classes) == MOST_CLASSES
    told = [one.name for one in found.classes]
    assert told == [*(f"c{n:03d}" for n in range(MOST_CLASSES - 1)), f"c{MOST_CLASSES + 4:03d}"]
    assert found.classes_total == MOST_CLASSES + 5


def test_without_a_note_there_is_no_head():
    assert read_source_head({}, {"layers": "[]"}) is None


# texture and color -------------------------------------------------------------------------------


def test_images_within_the_range_of_the_source_are_counted():
    columns = np.array([[0, 1, 19, 20, 5]] * 5, dtype=float).T
    found = compare_textures(columns, RANGES)[0]
    assert (found.source_low, found.source_median, found.source_high) == (1, 10, 19)
    assert found.inside == pytest.approx(3 / 5)
    assert found.median == 5


def test_without_ranges_there_is_nothing_to_compare_with():
    found = compare_textures(np.ones((4, 5)), {})
    assert {one.inside for one in found} == {None}
    assert {one.median for one in found} == {1}


def test_what_no_picture_has_is_left_out():
    textures = np.ones((4, 5))
    textures[:, 0] = np.nan
    assert [one.name for one in compare_textures(textures, RANGES)] == list(STATISTICS[1:])


def test_gray_and_even_pictures_are_counted():
    textures = [[-2, 3, 1, 0, 0.0], [-2, 3, 1, 1.9, 0.1], [-2, 3, 1, 30, 0.9], [-2, 3, 1, 30, 0.5]]
    look = look_at(pictured(textures, deep=3), sample_of([0], [0]), ["a"], card=None, head=None)
    assert (look.images, look.gray, look.even, look.deep) == (4, 0.5, 0.5, 3)
    assert look.source is look.source_gray is look.source_even is look.semantics is None
    assert tells(look.words, "Gray: 50%.", "with more than 8 bits: 3.", "not measured")
    assert tells(look.words, "not compared", "look drawn, flatly rendered or cut out")


def test_shares_of_the_source_are_those_of_its_card():
    look = look_at(pictured([[0] * 5]), sample_of([0], [0]), ["a"], card=TOLD, head=None)
    assert (look.source_gray, look.source_even) == (0.25, 0.125)
    assert tells(look.words, "Gray: 100% (of photographs: 25%).", "0% (of photographs: 12%).")


def test_a_card_made_before_its_shares_were_kept_tells_none():
    old = TOLD.provenance.model_copy(update={"gray": None, "even": None})
    card = SourceCard(CARD.features, old)
    assert tells(words_of([[0] * 5], card=card), "Gray: 100%.", "even areas: 0%.")


@pytest.mark.parametrize(
    ("drawn", "told"), [(50, "They look drawn"), (49, "Some look drawn"), (11, "Some look drawn"),
                        (10, "They look photographic")],
)  # fmt: skip
def test_what_looks_drawn_is_told_whatever_the_source_looks_like(drawn, told):
    origin = TOLD.provenance.model_copy(update={"even": 0.4})
    textures = [[10, 10, 10, 30, even] for even in [0.9] * drawn + [0.1] * (100 - drawn)]
    words = words_of(textures, card=SourceCard(CARD.features, origin))
    assert tells(words, told, f"{drawn}% (of photographs: 40%)")


def test_nearly_all_is_not_all_and_nearly_none_not_none():
    textures = [[10, 10, 10, 0, 0.1]] * 511 + [[10, 10, 10, 30, 0.9]]
    words = words_of(textures)
    assert tells(words, "Gray: more than 99%.", "even areas: less than 1%.", "512 training images")


def test_one_image_is_one():
    words = words_of([[0] * 5], sample_of([0] * 5, range(5)), NAMES, head=HEAD, left_out=1)
    assert tells(words, "1 training image;", "1 image, of which padding", "for 1 more class.")


def test_of_how_many_classes_the_images_are_is_told():
    assert tells(
        words_of([[0] * 5] * 9, classes=6, classes_total=1000), "of 6 of the 1,000 classes"
    )
    assert "classes" not in words_of([[0] * 5] * 9).split("What")[0]


def test_where_no_image_could_be_looked_at_only_that_is_said():
    look = look_at(pictured([], left_out=3), sample_of([0], [0]), ["a"], card=TOLD, head=None)
    assert (look.images, look.texture, look.gray) == (0, [], 0)
    assert look.words.startswith("Looked at: 0 training images; left out: 3 images")
    assert "photographic" not in look.words


def test_low_and_high_are_quantiles_of_5_and_95_percent():
    found = compare_textures(np.arange(101.0)[:, None].repeat(5, axis=1), RANGES)[0]
    assert (found.low, found.median, found.high) == (5, 50, 95)


def test_images_on_both_sides_of_the_source_vary_more():
    textures = [[one, 10, 10, 30, 0] for one in [-9] * 30 + [10] * 40 + [40] * 30]
    assert tells(words_of(textures, card=TOLD), "They vary more than photographs: slope", "40% of")


@pytest.mark.parametrize(("value", "word"), [(30.0, "finer or noisier"), (-30.0, "coarser")])
def test_words_say_on_which_side_of_the_source_the_texture_lies(value, word):
    textures = [[value, 10, 10, 30, 0]] * 4
    look = look_at(pictured(textures), sample_of([1], [0]), ["a`b"], card=TOLD, head=HEAD)
    assert look.source == "photographs"
    assert tells(look.words, word, "Local entropy and sharpness lie in the range of photographs")
    assert tells(look.words, "in `ab` solar dish 100%", "photographic")


def test_words_name_few_classes_and_count_the_others():
    sample = sample_of([0] * 40, list(range(20)) * 2)
    names = [f"class {number:02d}" for number in range(20)]
    words = look_at(pictured([[0] * 5]), sample, names, card=None, head=HEAD).words
    assert tells(words, "`class 03`", "16 more classes")
    assert "class 04" not in words


def test_words_name_the_largest_classes_and_count_all_others():
    labels = [*range(40), *([39] * 3), *([7] * 2), 20, 12]
    names = [f"class {number:02d}" for number in range(40)]
    words = words_of([[0] * 5], sample_of([0] * len(labels), labels), names, head=HEAD)
    assert tells(words, "36 more classes")
    places = [words.index(f"`class {number}`") for number in ("39", "07", "12", "20")]
    assert places == sorted(places)


def test_a_name_of_marks_alone_leaves_no_hole():
    words = words_of([[0] * 5], sample_of([0, 1], [0, 1]), ["```", "a\n`b"], head=HEAD)
    assert tells(words, "in `?` tench", "in `a\\nb` solar dish")


# the nearest and the farthest --------------------------------------------------------------------


def test_likeness_is_the_mean_cosine_of_a_naive_loop(monkeypatch):
    rng = np.random.default_rng(5)
    features, source = rng.normal(size=(7, D)).astype(np.float32), CARD.features[:9]
    center = source.astype(float).mean(axis=0)

    def cosine(x, y):
        return (x - center) @ (y - center) / np.linalg.norm(x - center) / np.linalg.norm(y - center)

    expected = [np.mean(sorted(cosine(x, y) for y in source)[-NEIGHBORS:]) for x in features]
    np.testing.assert_allclose(measure_likeness(features, source), expected, rtol=1e-5)
    monkeypatch.setattr("tasks.artifacts.arrays.ROWS_AT_ONCE", 2)
    np.testing.assert_allclose(measure_likeness(features, source), expected, rtol=1e-5)
    center = source[:3].astype(float).mean(axis=0)
    few = [np.mean([cosine(x, y) for y in source[:3]]) for x in features]
    np.testing.assert_allclose(measure_likeness(features, source[:3]), few, rtol=1e-4)


def test_an_image_of_the_source_is_nearer_than_a_dull_and_a_foreign_one():
    source = np.repeat(np.eye(4, 6, dtype=np.float32), NEIGHBORS, axis=0)
    center = source.mean(axis=0)
    dull, foreign = center + 0.01 * np.eye(6)[5], 3 * np.eye(6)[4]
    near, other, far = measure_likeness(np.float32([source[0], dull, foreign]), source)
    assert near == pytest.approx(1)
    assert max(other, far) < 0.5


def test_the_ends_are_ordered_from_the_outside_and_one_of_each_group():
    likeness = np.array([0.5, 0.9, 0.8, 0.1, 0.2, 0.7])
    near, far = choose_ends(likeness, ["a", "b", "b", "c", "c", "d"], 2)
    assert (near, far) == ([1, 5], [3, 0])


def test_no_group_stands_at_both_ends():
    near, far = choose_ends(np.array([0.9, 0.1, 0.5]), ["a", "a", "b"], 6)
    assert (near, far) == ([0], [2])
    assert choose_ends(np.empty(0), [], 6) == ([], [])


def test_where_all_share_one_group_each_image_stands_for_itself():
    assert choose_ends(np.array([0.3, 0.4, 0.2]), ["a"] * 3, 6) == ([1], [2])


def test_pictures_and_their_table_are_written(tmp_path):
    store, manifest = fill_store(tmp_path / "pixels", 9, 1), Manifest(rows_of(9))
    rows = np.array([0, 2, 3, 5, 8])
    write_pictures(tmp_path / "out", np.array([0.5, 0.9, 0.1, 0.4, 0.6]), rows, manifest, store)
    found = read_rows(tmp_path / "out/index.csv", LikenessRow)
    assert [(row.side, row.path) for row in found] == [
        ("nearest", "2.png"), ("nearest", "8.png"), ("farthest", "3.png"), ("farthest", "5.png"),
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["index.csv", *(row.file for row in found)]
    )
    for row in found:  # of noise no other one is as near
        number = int(row.path.removesuffix(".png"))
        pixels = np.asarray(Image.open(tmp_path / "out" / row.file)).astype(int)
        errors = [
            np.abs(pixels - store.rows([store.row_of(other)])[0]).mean() for other in range(9)
        ]
        assert np.argmin(errors) == number
        assert manifest.of("train")[number].label == row.label


def test_pixels_are_looked_at_once_each_and_clean(tmp_path):
    store, manifest = fill_store(tmp_path / "pixels", 20, 1), Manifest(rows_of(20))
    deep = CONVERSION.model_copy(update={"deep": 7})
    rows = np.arange(1, 20, 2)
    found = see_pixels(store, manifest, deep, rows, fit="crop")
    expected = measure_textures(store.rows(store.row_of(rows)))
    np.testing.assert_array_equal(found.textures, expected)
    assert (found.left_out, found.classes, found.classes_total, found.deep) == (0, 1, 2, 7)


def test_of_padded_pictures_the_part_within_is_looked_at(tmp_path):
    store = fill_store(tmp_path / "pixels", 3, 1, px=72)
    sizes = [(200, 100), (100, 300), (50, 50)]
    rows = [
        replace(row, width=width, height=height)
        for row, (width, height) in zip(rows_of(3), sizes, strict=True)
    ]
    numbers = np.arange(3)
    found = see_pixels(store, Manifest(rows), CONVERSION, numbers, fit="pad")
    first, _, third = store.rows(store.row_of(numbers))
    np.testing.assert_array_equal(found.textures, measure_textures([first[20:-20, 20:-20], third]))
    assert found.left_out == 1
    assert len(see_pixels(store, Manifest(rows), CONVERSION, numbers, fit="crop").textures) == 3


# the bench ---------------------------------------------------------------------------------------


def test_the_bench_looks_at_a_folder_as_the_stage_does(image_folder, monkeypatch):
    monkeypatch.setattr(bench, "CARDS", ROOT / "data/cards")
    backbone = load_backbone("tf_efficientnet_lite0", "packaged", image_px=64, seed=0)
    params = load_params(ROOT / "params.yaml")
    textures, look = bench.see(image_folder(classes=("fox", "owl")), backbone, params, 4)
    assert textures.shape == (4, len(STATISTICS))
    assert (look.images, look.source, look.classes) == (4, "ImageNet-1k", 2)
    assert [(one.name, one.images) for one in look.semantics.classes] == [("fox", 2), ("owl", 2)]
