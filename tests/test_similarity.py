import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from conftest import CONVERSION, POLICY, ROOT, make_origin, tells
from test_extract import fill_store

from tasks import similarity
from tasks.artifacts.arrays import write_array, write_tensors
from tasks.artifacts.records import (
    BackboneInfo,
    InputSpec,
    KnownSet,
    LayerGroup,
    Marks,
    Similarity,
    read_record,
    write_record,
)
from tasks.artifacts.sampling import choose_rows
from tasks.artifacts.tables import (
    LikenessRow,
    Manifest,
    ManifestRow,
    PlaneRow,
    read_rows,
    write_manifest,
)
from tasks.backbones.source_cards import (
    CardOrigin,
    LayerMoments,
    SourceCard,
    read_card,
    write_card,
)
from tasks.errors import ArtifactError
from tasks.similarity import (
    Reference,
    choose_used,
    main,
    measure_similarity,
    project,
    usable_moments,
)
from tasks.transferability import leave_one_out
from tasks.transferability.mmd import measure_mmd
from tasks.transferability.ruler import Ruler
from tasks.transferability.sampling import Target
from tasks.transferability.shift import LayerShift

D, IMAGES = 6, 90
SPEC = InputSpec(image_px=32, mean=(0, 0, 0), std=(1, 1, 1))
INFO = BackboneInfo(
    name="small",
    weights="packaged",
    weights_sha256="aa",
    weights_license=None,
    weights_source=None,
    input=SPEC,
    groups=[LayerGroup(name=name, parameters=10, blocks=1) for name in ("stem", "top")],
    feature_dim=D,
    norm="batch",
    engine="torch",
    parity=None,
)
OTHER = INFO.model_copy(update={"norm": "other"})
CARD = SourceCard(
    np.random.default_rng(1).normal(size=(40, D)).astype(np.float16).astype(np.float32),
    CardOrigin(
        name="photographs", source="", license=None, images=40, backbone="small",
        weights_sha256="aa", weights_license=None, input=SPEC, fit="crop", command="",
    ),
)  # fmt: skip
MARKS = Marks(similar=0.01, far=0.1)
RULER = Ruler(
    backbone="small", weights_sha256="aa", image_px=32, source="photographs", provenance="",
    sets=[KnownSet(name="letters", images=500, mmd=0.001, distance=0.001, domain="far")],
    marks=MARKS,
)  # fmt: skip


def manifest_of(images=IMAGES, per_group=1):
    train = [
        ManifestRow(
            f"{i}.png", "abc"[i % 3], "train", f"g{i // per_group}", f"sha{i}", 32, 32, "RGB"
        )
        for i in range(images)
    ]
    return Manifest([ManifestRow("v.png", "a", "val", "v", "v", 32, 32, "RGB"), *train])


def features_of(images=IMAGES, views=2, seed=0):
    rng = np.random.default_rng(seed)
    centers = rng.normal(0.3, 0.8, (3, D))
    features = rng.normal(size=(images, views, D)) + centers[np.arange(images) % 3][:, None]
    return features.astype(np.float32)


def target_of(**changes):
    rng = np.random.default_rng(2)
    values = {
        "manifest": manifest_of(),
        "features": features_of(),
        "probe_rows": np.arange(0, IMAGES, 2),
        "random_features": rng.normal(size=(IMAGES // 2, D)).astype(np.float32),
        "layers": [
            LayerShift("stem.bn", 0, 0.2, [0.1, 0.3]),
            LayerShift("top.bn", 1, 0.4, [0.3, 0.5]),
        ],
    }
    return Target(**{**values, **changes})


@pytest.fixture
def params(tiny_params):
    return tiny_params.similarity.model_copy(update={"max_images": 1000})


def measured(params, target=None, card=CARD, ruler=RULER, seed=3, info=INFO):
    reference = Reference(card=card, ruler=ruler, sizes=[224, 384])
    target = target or target_of()
    chosen = choose_used(target.manifest, params.max_images, seed=seed)
    return measure_similarity(target, reference, info, chosen, params=params, seed=seed)


# what is measured --------------------------------------------------------------------------------


def test_mmd_compares_clean_views_with_the_card(params):
    found = measured(params)
    clean = features_of()[:, 0]
    groups = [f"g{i}" for i in range(IMAGES)]
    expected = measure_mmd(CARD.features, clean, groups, name="photographs", params=params, seed=3)
    assert (found.mmd.value, found.mmd.low, found.mmd.high) == (
        expected.value, expected.low, expected.high,
    )  # fmt: skip
    assert (found.mmd.source, found.mmd.source_rows, found.mmd.n) == ("photographs", 40, IMAGES)
    assert found.mmd.estimator == "full"


def test_augmented_views_change_nothing(params):
    features = features_of()
    other = features.copy()
    other[:, 1] += 100
    assert measured(params, target_of(features=other)) == measured(
        params, target_of(features=features)
    )


def test_shift_is_reported_overall_and_by_group(params):
    found = measured(params)
    assert found.shift.value == pytest.approx(0.3)
    assert [(item.group, item.value) for item in found.shift_groups] == [
        ("stem", 0.2),
        ("top", 0.4),
    ]


def test_the_shift_of_other_layers_is_a_profile_of_its_own(params):
    batch, other = measured(params), measured(params, info=OTHER)
    assert (other.shift, other.shift_groups) == (None, [])
    assert (other.moments.shift, other.moments.groups) == (batch.shift, batch.shift_groups)
    assert other.moments.source == "photographs"
    words = "depart most", "photographs in top", "0.400", "no vote"
    assert tells(other.notes[-1], *words)
    assert batch.moments is None
    assert "moments" not in batch.model_dump(mode="json")
    assert Similarity.model_validate(other.model_dump(mode="json")) == other


def test_gain_uses_the_images_of_the_probe(params):
    found = measured(params)
    assert found.transfer_gain.n == found.random_ridge_accuracy.n == IMAGES // 2
    assert found.ridge_accuracy.n == IMAGES
    assert found.transfer_gain.low > 0


def test_gain_pairs_each_image_with_its_own_random_features(params):
    clean = features_of()[:, 0]
    rows = np.array([4, 7, 20, 33, 41, 60, 61, 62, 70, 71, 80, 81])
    target = target_of(probe_rows=rows, random_features=clean[rows])
    assert measured(params, target).transfer_gain.value == 0


def test_renaming_the_classes_changes_no_score(params):
    renamed = Manifest(
        [
            ManifestRow(row.path, {"a": "z", "b": "y", "c": "x"}[row.label], row.split, row.group,
                        row.sha256, 32, 32, "RGB")
            for row in manifest_of().rows
        ]
    )  # fmt: skip
    plain, other = measured(params), measured(params, target_of(manifest=renamed))
    assert other.ridge_accuracy == plain.ridge_accuracy
    assert other.mmd == plain.mmd


def test_a_large_set_is_sampled_by_class(params):
    limited = params.model_copy(update={"max_images": 64})
    found = measured(limited)
    assert found.images == found.mmd.n == found.ridge_accuracy.n == 64
    assert any("64 of 90 training images" in note for note in found.notes)
    rows = choose_rows(manifest_of().of("train"), 64, seed=3)
    expected = measure_mmd(
        CARD.features, features_of()[rows, 0], [f"g{row}" for row in rows],
        name="photographs", params=limited, seed=3,
    )  # fmt: skip
    assert found.mmd.value == expected.value


def test_scores_use_fewer_images_than_the_mmd_of_a_huge_set(params, monkeypatch):
    monkeypatch.setattr("tasks.similarity.SCORED_IMAGES", 30)
    found = measured(params)
    assert (found.mmd.n, found.ridge_accuracy.n) == (IMAGES, 30)
    assert any("measured on 30 of these images" in note for note in found.notes)


def test_images_are_chosen_once_each_part_of_the_one_before():
    chosen = choose_used(manifest_of(6000), 5500, seed=3)
    parts = [chosen.measured, chosen.scored, chosen.shown, chosen.looked]
    assert [len(rows) for rows in parts] == [5500, 5000, 2000, 512]
    assert all(set(part) < set(whole) for whole, part in pairwise(parts))
    assert all(rows.tolist() == sorted(rows) for rows in parts)
    expected = choose_rows(manifest_of(6000).of("train"), 5500, seed=3)
    np.testing.assert_array_equal(chosen.measured, expected)
    assert np.bincount(chosen.looked % 3).min() == 170  # each class by its share
    few = choose_used(manifest_of(), 1000, seed=3)
    assert few.measured.tolist() == few.looked.tolist() == list(range(IMAGES))


def test_of_padded_images_only_what_was_not_padded_is_looked_at(stage, tmp_path):
    write_record(tmp_path / "policy.json", POLICY.model_copy(update={"fit": "pad"}))
    rows = [replace(row, width=64) for row in manifest_of().rows]
    write_manifest(tmp_path / "manifest.csv", Manifest([*rows[:-1], replace(rows[-1], width=32)]))
    main(stage)
    look = read_record(tmp_path / "out/similarity.json", Similarity).look
    assert (look.images, look.left_out) == (1, IMAGES - 1)


def test_groups_reach_every_score(params, monkeypatch):
    seen = []
    original = leave_one_out.classify_by_ridge

    def spy(features, labels, groups):
        seen.append(len(set(groups)))
        return original(features, labels, groups)

    for module in (similarity, leave_one_out):
        monkeypatch.setattr(module, "classify_by_ridge", spy)
    found = measured(params, target_of(manifest=manifest_of(per_group=3)))
    assert seen == [30, 30, 30]
    assert any("one group" in note for note in found.notes)
    assert not any("one group" in note for note in measured(params).notes)


# what is missing ---------------------------------------------------------------------------------


def test_without_a_card_there_is_a_note_and_no_mmd(params):
    found = measured(params, card=None, ruler=None)
    assert found.mmd is None
    assert any("no source card" in note and "tasks.backbones.cards" in note for note in found.notes)
    assert found.summary.startswith("Without a source card")


def test_without_batch_norm_there_is_a_note_and_no_shift(params):
    found = measured(params, target_of(layers=[]))
    assert found.shift is None
    assert found.shift_groups == []
    assert any(tells(note, "small", "no batch-norm layer", "shift") for note in found.notes)


def card_of(image_px):
    spec = SPEC.model_copy(update={"image_px": image_px})
    moments = {"norm": LayerMoments(np.zeros(3, np.float32), np.ones(3, np.float32))}
    return SourceCard(CARD.features, CARD.provenance.model_copy(update={"input": spec}), moments)


@pytest.mark.parametrize(
    ("card", "facts"),
    [
        (None, ("no source card near 32 px",)),
        (card_of(36), ("at 36 px, not at 32 px", "make one")),
        (CARD, ("'photographs'", "older version", "make it again")),
    ],
    ids=["no card", "another size", "older version"],
)
def test_why_other_layers_have_no_profile_is_said(params, card, facts):
    found = measured(params, target_of(layers=[], unlearned=5), card=card, info=OTHER)
    assert (found.shift, found.moments) == (None, None)
    assert any(tells(note, "small", "no shift profile", *facts) for note in found.notes)


def test_moments_are_used_at_the_very_size_of_the_card():
    assert list(usable_moments(card_of(32), 32)) == ["norm"]
    assert usable_moments(card_of(36), 32) == usable_moments(None, 32) == {}


def test_another_image_size_is_noted(params):
    other = CARD.provenance.model_copy(update={"input": SPEC.model_copy(update={"image_px": 40})})
    notes = measured(params, card=SourceCard(CARD.features, other)).notes
    assert any(tells(note, "card", "40 px", "32 px", "small part") for note in notes)
    assert not any("32 px" in note for note in measured(params).notes)


def test_where_cards_of_other_sizes_exist_the_note_names_them(params):
    notes = measured(params, card=None).notes
    assert any(tells(note, "near 32 px", "cards at 224 px and 384 px") for note in notes)


def test_marks_come_from_the_ruler_and_without_them_a_note_says_so(params):
    assert measured(params).marks == MARKS
    for ruler in (None, RULER.model_copy(update={"marks": None})):
        found = measured(params, ruler=ruler)
        assert found.marks is None
        assert any("measure_ruler" in note for note in found.notes)


def test_distance_and_narrowness_add_up_to_the_mmd(params):
    found = measured(params).mmd
    assert found.matched.value + found.narrowness == pytest.approx(found.value)
    assert found.matched.low <= found.matched.value <= found.matched.high < found.value


def test_known_sets_are_carried_along_and_named(params):
    found = measured(params)
    assert found.known == RULER.sets
    assert tells(found.summary, "farther than letters", "(0.001)")


def test_a_card_of_another_backbone_is_an_error(params):
    wide = SourceCard(np.zeros((5, D + 1), np.float32), CARD.provenance)
    with pytest.raises(ArtifactError, match=r"'photographs' .*7 columns.* 6"):
        measured(params, card=wide)


def test_features_of_another_backbone_are_an_error(params):
    with pytest.raises(ArtifactError, match=r"4 columns, small .*6; rerun extract"):
        measured(params, target_of(features=features_of()[..., :4]))


def test_features_that_are_not_finite_are_an_error(params):
    broken = features_of()
    broken[5, 0, 2] = np.nan
    with pytest.raises(ArtifactError, match="not finite"):
        measured(params, target_of(features=broken))


# the plane and the files -------------------------------------------------------------------------


def test_plane_shows_source_and_target():
    rows = np.arange(30, IMAGES)
    points = project(target_of(), CARD, rows)
    sets = [point.set for point in points]
    assert sets == ["source"] * 40 + ["target"] * 60
    assert {point.label for point in points if point.set == "target"} == {"a", "b", "c"}
    assert np.mean([[point.x, point.y] for point in points], axis=0) == pytest.approx(
        [0, 0], abs=1e-9
    )
    assert len(project(target_of(), None, rows)) == 60


def test_plane_holds_the_directions_of_largest_variance():
    points = project(target_of(), None, np.arange(IMAGES))
    features = target_of().features[:, 0].astype(np.float64)
    singular = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
    plane = np.array([[point.x, point.y] for point in points])
    np.testing.assert_allclose(np.linalg.norm(plane, axis=0), singular[:2])


@pytest.fixture
def stage(tmp_path):
    """The files that the stage reads, and its arguments."""
    target = target_of()
    write_manifest(tmp_path / "manifest.csv", target.manifest)
    write_array(tmp_path / "train/features.npy", target.features)
    write_record(tmp_path / "backbone.json", INFO)
    tensors = {
        "rows": target.probe_rows,
        "parts": np.arange(len(target.probe_rows)) % 2,
        "random_features": target.random_features,
    }
    for number, moved in enumerate((0.5, 1.0)):
        tensors[f"bn.{number:03d}.mean"] = np.full(4, moved, np.float32)
        tensors[f"bn.{number:03d}.part_means"] = np.full((2, 4), moved, np.float32)
        tensors[f"bn.{number:03d}.part_vars"] = np.ones((2, 4), np.float32)
        tensors[f"bn.{number:03d}.running_mean"] = np.zeros(4, np.float32)
        tensors[f"bn.{number:03d}.var"] = tensors[f"bn.{number:03d}.running_var"] = np.ones(
            4, np.float32
        )
    layers = [["stem.bn", 0], ["top.bn", 1]]
    write_tensors(tmp_path / "probe.safetensors", tensors, {"layers": json.dumps(layers)})
    write_card(tmp_path / "cards/card.safetensors", CARD)
    write_record(tmp_path / "cards/ruler.json", RULER)
    write_record(tmp_path / "source.json", make_origin("known"))
    write_record(tmp_path / "conversion.json", CONVERSION)
    write_record(tmp_path / "policy.json", POLICY)
    fill_store(tmp_path / "pixels", IMAGES, 1)
    names = {
        "manifest": "manifest.csv", "origin": "source.json", "conversion": "conversion.json",
        "policy": "policy.json", "train": "pixels", "features": "train",
        "probe": "probe.safetensors", "backbone": "backbone.json", "cards": "cards",
        "similarity": "out/similarity.json",
        "profile": "out/shift_profile.csv", "projection": "out/projection.csv",
        "pictures": "out/pictures",
    }  # fmt: skip
    arguments = [f"--{name}={tmp_path / file}" for name, file in names.items()]
    return [f"--params={ROOT / 'params.yaml'}", *arguments]


def test_main_writes_what_it_measured(stage, tmp_path, default_params):
    main(stage)
    found = read_record(tmp_path / "out/similarity.json", Similarity)
    target = target_of(
        layers=[LayerShift("stem.bn", 0, 0.25, [0.25] * 2), LayerShift("top.bn", 1, 1.0, [1.0] * 2)]
    )
    card = read_card(tmp_path / "cards/card.safetensors")
    plain = measured(default_params.similarity, target, card=card, seed=default_params.seed)
    assert found.model_copy(update={"look": None}) == plain
    assert found.look.words
    assert (found.look.images, found.look.left_out) == (IMAGES, 0)
    pictures = read_rows(tmp_path / "out/pictures/index.csv", LikenessRow)
    assert [row.side for row in pictures] == ["nearest"] * 6 + ["farthest"] * 6
    assert (tmp_path / "out/shift_profile.csv").read_text() == (
        "layer,group,index,shift\nstem.bn,stem,0,0.25\ntop.bn,top,1,1.0\n"
    )
    assert (tmp_path / "out/projection.csv").read_text().startswith("x,y,set,label\n")
    assert len(read_rows(tmp_path / "out/projection.csv", PlaneRow)) == 40 + IMAGES


def test_same_inputs_give_the_same_bytes(stage, tmp_path):
    names = ("similarity.json", "projection.csv", "pictures/index.csv", "pictures/farthest_0.jpg")
    files = [tmp_path / "out" / name for name in names]
    main(stage)
    first = [file.read_bytes() for file in files]
    main(stage)
    assert [file.read_bytes() for file in files] == first


def test_features_of_another_manifest_are_an_error(stage, tmp_path):
    write_array(tmp_path / "train/features.npy", features_of(images=80))
    with pytest.raises(ArtifactError, match=r"shape \(80, 2, 6\).*90 training images"):
        main(stage)


def test_random_features_of_other_images_are_an_error(stage, tmp_path):
    tensors = {"rows": np.arange(10), "random_features": np.zeros((9, D), np.float32)}
    write_tensors(tmp_path / "probe.safetensors", tensors, {"layers": "[]"})
    with pytest.raises(ArtifactError, match=r"10 images.*9 rows"):
        main(stage)
