"""The look at the images: against planted classes, a naive loop and ranges made by hand."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import CONVERSION, tells
from test_extract import fill_store, rows_of
from test_similarity import CARD

from tasks.artifacts.tables import LikenessRow, Manifest, read_rows
from tasks.backbones.source_cards import SourceCard
from tasks.backbones.source_head import SourceHead, read_source_head
from tasks.errors import ArtifactError
from tasks.images.texture import STATISTICS
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
TOLD = SourceCard(CARD.features, CARD.provenance.model_copy(update={"textures": RANGES}))


def sample_of(seen, labels, sure=5.0):
    features = sure * np.eye(D, dtype=np.float32)[np.array(seen)]
    return Sample(features, np.array(labels), [str(row) for row in range(len(labels))])


def pictured(textures, deep=0):
    return Pictured(np.array(textures, dtype=float), deep)


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
        (0.85, 0.1, "unsure"),
        (0.85, 9.0, "about as sure as at home"),
        (0.85, 2.9, "less sure"),
        (0.3, 9.0, "mean little"),
    ],
)
def test_words_say_how_far_the_head_is_to_be_believed(right, sure, told):
    origin = CARD.provenance.model_copy(update={"head_accuracy": right})
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
    assert told == sorted(told)
    assert told[-1] == f"c{MOST_CLASSES + 4:03d}"


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
    assert look.source is look.source_gray is look.semantics is None
    assert tells(look.words, "50% are gray", "3 of the set have more than 8 bits", "not measured")
    assert tells(look.words, "not compared", "look drawn, flatly rendered or cut out")


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
    assert tells(words, "`class 03`", "16 more")
    assert "class 04" not in words


# the nearest and the farthest --------------------------------------------------------------------


def test_likeness_is_the_mean_cosine_of_a_naive_loop():
    rng = np.random.default_rng(5)
    features, source = rng.normal(size=(7, D)).astype(np.float32), CARD.features[:9]
    center = source.astype(float).mean(axis=0)

    def cosine(x, y):
        return (x - center) @ (y - center) / np.linalg.norm(x - center) / np.linalg.norm(y - center)

    expected = [np.mean(sorted(cosine(x, y) for y in source)[-NEIGHBORS:]) for x in features]
    np.testing.assert_allclose(measure_likeness(features, source), expected, rtol=1e-5)


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
    assert choose_ends(np.array([0.3, 0.4]), ["a", "a"], 6) == ([], [])


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


def test_pixels_are_looked_at_once_each_and_clean(tmp_path):
    store, manifest = fill_store(tmp_path / "pixels", 20, 1), Manifest(rows_of(20))
    found = see_pixels(store, manifest, CONVERSION, limit=12, seed=1)
    assert found.textures.shape == (12, 5)
    whole = see_pixels(store, manifest, CONVERSION, limit=99, seed=1)
    assert len(np.unique(whole.textures[:, 0])) == 20


def test_pixels_of_another_manifest_are_refused(tmp_path):
    store = fill_store(tmp_path / "pixels", 20, 1)
    with pytest.raises(ArtifactError, match=r"20 images, the manifest lists 21"):
        see_pixels(store, Manifest(rows_of(21)), CONVERSION, limit=12, seed=1)
