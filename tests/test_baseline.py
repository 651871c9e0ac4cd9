"""The baseline: which head is chosen, on what grounds, and what the stage writes."""

import hashlib
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, with_values
from scipy.special import softmax
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_sample_weight
from torch import nn

from tasks import baseline as stage
from tasks.artifacts.arrays import read_array, write_array
from tasks.artifacts.pixels import StoreWriter, store_info
from tasks.artifacts.records import Baseline, read_record
from tasks.artifacts.tables import Manifest, ManifestRow, SuspectRow, read_rows, write_manifest
from tasks.artifacts.words import name_head
from tasks.auditing.held_out import Pool, hold_out, right_in_folds
from tasks.baseline import train_baseline
from tasks.errors import ArtifactError, TrainingError
from tasks.heads import linear as strength
from tasks.heads import mlp as trained_heads
from tasks.heads.features import Labeled, read_features
from tasks.heads.linear import choose_linear
from tasks.heads.mlp import fit_mlp, mlp_width
from tasks.heads.registry import HeadPath, TrainedHead, apply_head, load_head
from tasks.judging.rule import Verdict
from tasks.params import BaselineParams, Params
from tasks.runtime import progress

D = 8
NAMES = ["a", "b", "c"]


def make_labeled(images: int, views: int = 1, seed: int = 0, noise: float = 1.0) -> Labeled:
    """Three Gaussian classes with the same centers for every seed."""
    centers = 2 * np.random.default_rng(99).normal(size=(3, D))
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % 3
    clean = centers[labels] + noise * rng.normal(size=(images, D))
    features = clean[:, None] + 0.2 * rng.normal(size=(images, views, D))
    return Labeled(features.astype(np.float32), labels, [f"{seed}-{n}" for n in range(images)])


def make_ring(images: int, seed: int = 0) -> Labeled:
    """Two classes that no plane separates: inside and outside a shell."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % 2
    directions = rng.normal(size=(images, D))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    features = directions * (1 + 3 * labels[:, None]) + 0.05 * rng.normal(size=(images, D))
    return Labeled(
        features[:, None].astype(np.float32), labels, [f"{seed}-{n}" for n in range(images)]
    )


@pytest.fixture
def params(default_params: Params) -> BaselineParams:
    values = {
        "baseline.l2_strengths": [0.01, 0.1, 1.0],
        "baseline.mlp_hidden": 32,
        "baseline.mlp_dropout": 0.1,
        "baseline.mlp_epochs": 25,
        "baseline.batch_size": 32,
        "baseline.mlp_lr": 0.01,
    }
    return with_values(default_params, values).baseline


def test_separable_classes_are_told_apart_by_a_linear_head(params: BaselineParams):
    train, val = make_labeled(240, views=3, noise=0.3), make_labeled(60, seed=1, noise=0.3)
    found = train_baseline(train, val, params, class_names=NAMES, seed=1)
    assert found.summary.head == "linear"
    assert found.summary.val_accuracy.value == 1.0
    np.testing.assert_array_equal(found.val_logits, apply_head(found.head, val.features[:, 0]))


def test_the_summary_tells_the_numbers_of_the_chosen_head(params: BaselineParams):
    train, val = make_labeled(240, noise=2.5), make_labeled(60, seed=1, noise=2.5)
    summary = train_baseline(train, val, params, class_names=NAMES, seed=1).summary
    (chosen,) = [one for one in summary.candidates if one.chosen]
    linear = [one for one in summary.candidates if one.head == "linear"]
    assert chosen.val_loss == min(one.val_loss for one in linear) == summary.val_loss
    assert chosen.val_accuracy == summary.val_accuracy.value
    assert summary.majority_accuracy == pytest.approx(1 / 3)
    assert (summary.hidden, summary.dropout, summary.feature_dim) == (0, 0.0, D)


@pytest.mark.parametrize("most", [8192, 200])
@pytest.mark.parametrize("balanced", [False, True])
def test_overfit_is_the_ratio_of_the_losses_at_their_best_temperatures(
    params: BaselineParams, monkeypatch: pytest.MonkeyPatch, most: int, *, balanced: bool
):
    monkeypatch.setattr(stage, "LOSS_IMAGES", most)
    train = keep_few_of_class_0(make_labeled(900, views=3, noise=2.5), balanced=balanced)
    val = replace(make_labeled(300, seed=1, noise=2.5), balanced=balanced)
    found = train_baseline(train, val, params, class_names=NAMES, seed=1)
    some = np.arange(len(train.labels))[:: -(-len(train.labels) // most)]
    assert (len(some) == len(train.labels)) == (most == 8192)
    losses = [
        loss_at_best_temperature(apply_head(found.head, data.features[rows, 0]), data.labels[rows],
                                 balanced=balanced)
        for data, rows in ((val, np.arange(300)), (train, some))
    ]  # fmt: skip
    assert found.summary.overfit == pytest.approx(losses[0] / losses[1], rel=0.01)


def loss_at_best_temperature(logits: np.ndarray, labels: np.ndarray, *, balanced: bool) -> float:
    weights = compute_sample_weight("balanced", labels) if balanced else None
    return min(
        float(log_loss(labels, softmax(logits / temperature, axis=1), sample_weight=weights))
        for temperature in np.geomspace(0.1, 10, 501)
    )


def test_overfit_is_that_of_the_linear_head_whatever_is_chosen(params: BaselineParams):
    train, val = make_labeled(240, noise=2.5), make_labeled(60, seed=1, noise=2.5)
    ratios = {
        heads: train_baseline(
            train, val, params.model_copy(update={"heads": list(heads)}), class_names=NAMES, seed=1
        ).summary.overfit
        for heads in (("linear",), ("mlp", "linear"), ("mlp",))
    }
    assert ratios["linear",] == ratios["mlp", "linear"] != ratios["mlp",]


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_where_all_classes_count_the_same_the_rare_one_is_found(params: BaselineParams, head: str):
    params = params.model_copy(update={"heads": [head]})
    recalls = []
    for balanced in (False, True):
        train, val = (
            keep_few_of_class_0(make_labeled(n, seed=seed, noise=3.0), balanced=balanced)
            for n, seed in ((1200, 0), (600, 1))
        )
        found = train_baseline(train, val, params, class_names=NAMES, seed=1)
        rare = val.labels == 0
        recalls.append(np.mean(found.val_logits[rare].argmax(axis=1) == 0))
        assert found.summary.class_balanced == balanced
    assert recalls[1] > recalls[0] + 0.1


def keep_few_of_class_0(data: Labeled, *, balanced: bool) -> Labeled:
    kept = np.flatnonzero((data.labels != 0) | (np.arange(len(data.labels)) % 20 == 0))
    groups = [data.groups[image] for image in kept]
    return Labeled(data.features[kept], data.labels[kept], groups, balanced)


def test_the_mlp_is_chosen_where_no_plane_separates(params: BaselineParams):
    train, val = make_ring(300), make_ring(80, seed=1)
    summary = train_baseline(train, val, params, class_names=["in", "out"], seed=1).summary
    assert (summary.head, summary.hidden, summary.dropout) == ("mlp", 32, 0.1)
    accuracy = {one.head: one.val_accuracy for one in summary.candidates}
    assert accuracy["mlp"] > 0.95
    assert accuracy["linear"] < 0.75


def test_an_mlp_that_is_better_only_by_luck_is_not_chosen(
    params: BaselineParams, monkeypatch: pytest.MonkeyPatch
):
    real = stage.judge_change
    seen: list[Verdict] = []

    def judge(*args: object, **named: object) -> Verdict:
        seen.append(real(*args, **named))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(stage, "judge_change", judge)
    train, val = make_labeled(240, noise=2.5), make_labeled(60, seed=1, noise=2.5)
    summary = train_baseline(train, val, params, class_names=NAMES, seed=1).summary
    assert not seen[0].better
    assert summary.head == "linear"
    assert any(note.startswith("From the linear head to the MLP") for note in summary.notes)


class Nearest:
    """A made-up kind: the nearest mean of a class, as a linear head."""

    @staticmethod
    def train(train: Labeled, val: Labeled, params: BaselineParams, *, classes: int, seed: int):
        clean = train.features[:, 0]
        means = np.stack([clean[train.labels == label].mean(axis=0) for label in range(classes)])
        head = nn.Linear(D, classes)
        bias = torch.from_numpy(-np.square(means).sum(axis=1) / 2)
        head.load_state_dict({"weight": torch.from_numpy(means), "bias": bias})
        trained = TrainedHead(head.eval(), "class means", notes=["Made up."])
        return HeadPath([trained], trained)


def test_the_stage_takes_what_the_module_of_a_kind_offers(
    params: BaselineParams, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "tasks.heads.mlp", Nearest)
    train, val = make_labeled(90), make_labeled(60, seed=1)
    only = params.model_copy(update={"heads": ["mlp"]})
    found = train_baseline(train, val, only, class_names=NAMES, seed=0)
    assert [one.setting for one in found.summary.candidates] == ["class means"]
    assert (found.summary.hidden, found.summary.notes[0]) == (0, "Made up.")
    assert found.summary.val_accuracy.value > 0.8


@pytest.mark.parametrize("heads", [["linear"], ["mlp"], ["linear", "mlp"]])
def test_only_the_heads_asked_for_are_tried(params: BaselineParams, heads: list[str]):
    few = params.model_copy(update={"heads": heads, "mlp_epochs": 2})
    train, val = make_labeled(160), make_labeled(30, seed=1)
    found = train_baseline(train, val, few, class_names=NAMES, seed=1)
    assert {one.head for one in found.summary.candidates} == set(heads)
    assert found.summary.head in heads
    assert sum(one.chosen for one in found.summary.candidates) == 1
    np.testing.assert_array_equal(found.val_logits, apply_head(found.head, val.features[:, 0]))


def test_the_first_head_stays_unless_a_later_one_is_better(params: BaselineParams):
    train, val = make_labeled(240, noise=0.3), make_labeled(60, seed=1, noise=0.3)
    for first, second in [("mlp", "linear"), ("linear", "mlp")]:
        two = params.model_copy(update={"heads": [first, second]})
        summary = train_baseline(train, val, two, class_names=NAMES, seed=1).summary
        assert summary.head == first
        assert (summary.hidden, summary.dropout) == ((32, 0.1) if first == "mlp" else (0, 0.0))
        assert any(f"to the {name_head(second)}, val" in note for note in summary.notes)


def break_after(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    """Let every epoch of a head after so many have a loss that is not a number."""
    real, seen = trained_heads.epoch_batches, []

    def batches(*args: Any, **named: Any) -> Any:
        seen.append(named["epoch"])
        return real(*args, **named)

    loss = torch.nn.functional.cross_entropy
    monkeypatch.setattr(trained_heads, "epoch_batches", batches)
    monkeypatch.setattr(
        torch.nn.functional,
        "cross_entropy",
        lambda *args, **named: loss(*args, **named) * (1.0 if len(seen) <= epochs else math.nan),
    )


def test_a_head_that_breaks_down_at_once_is_an_error_that_names_the_rate(
    params: BaselineParams, monkeypatch: pytest.MonkeyPatch
):
    break_after(monkeypatch, 0)
    train, val = make_labeled(60), make_labeled(30, seed=1)
    only = params.model_copy(update={"heads": ["mlp"]})
    with pytest.raises(TrainingError, match=r"broke down in epoch 1 .*lower baseline\.mlp_lr"):
        train_baseline(train, val, only, class_names=NAMES, seed=1)


def test_a_head_that_breaks_down_later_keeps_its_best_epoch_and_says_so(
    params: BaselineParams, monkeypatch: pytest.MonkeyPatch
):
    break_after(monkeypatch, 2)
    train, val = make_labeled(60), make_labeled(30, seed=1)
    only = params.model_copy(update={"heads": ["mlp"]})
    summary = train_baseline(train, val, only, class_names=NAMES, seed=1).summary
    (candidate,) = summary.candidates
    assert candidate.setting.endswith(" of 2")
    (note,) = [note for note in summary.notes if "broke down" in note]
    assert re.search(
        r"broke down in epoch 3 \(train loss nan, .*lower baseline\.mlp_lr; epoch", note
    )


@pytest.mark.parametrize(
    ("images", "feature_dim", "classes", "width"),
    [
        (1778, 1280, 2, 256),  # the embedded default
        (1281, 1280, 2, 128),
        (1282, 1280, 2, 256),
        (2563, 1280, 2, 256),
        (2564, 1280, 2, 512),
        (20, 1280, 2, 16),
        (10**6, 1280, 1000, 1024),
    ],
)
def test_the_width_of_the_mlp_follows_the_number_of_images(
    default_params: Params, images: int, feature_dim: int, classes: int, width: int
):
    sizes = {"images": images, "feature_dim": feature_dim, "classes": classes}
    assert mlp_width(default_params.baseline, **sizes) == width
    given = with_values(default_params, {"baseline.mlp_hidden": 300}).baseline
    assert mlp_width(given, **sizes) == 300


def test_a_head_that_learned_noise_by_heart_is_reported(default_params: Params):
    rng = np.random.default_rng(0)
    values = {"baseline.heads": ["linear"], "baseline.l2_strengths": [0.003]}
    params = with_values(default_params, values).baseline

    def noise(images: int) -> Labeled:
        features = rng.normal(size=(images, 1, 100)).astype(np.float32)
        return Labeled(features, np.arange(images) % 3, [str(n) for n in range(images)])

    summary = train_baseline(noise(150), noise(60), params, class_names=NAMES, seed=1).summary
    assert any(note.startswith("The head overfits: accuracy 1.000") for note in summary.notes)


def test_an_mlp_that_overfits_keeps_its_best_epoch_and_says_so(default_params: Params):
    values = {
        "baseline.mlp_epochs": 60,
        "baseline.mlp_patience": 20,
        "baseline.mlp_dropout": 0.0,
        "baseline.mlp_lr": 0.02,
        "baseline.batch_size": 16,
    }
    params = with_values(default_params, values).baseline
    train, val = make_labeled(60, noise=4.0), make_labeled(60, seed=1, noise=4.0)
    fit = fit_mlp(train, val, params, classes=3, seed=1)
    losses = [one.val_loss for one in fit.epochs]
    assert fit.best_epoch == int(np.argmin(losses)) + 1
    assert len(losses) == fit.best_epoch + 20
    loss = val.judge.loss(apply_head(fit.head, val.features[:, 0]))
    assert loss == pytest.approx(min(losses), rel=1e-4)
    summary = train_baseline(train, val, params, class_names=NAMES, seed=1).summary
    assert any(note.startswith("The MLP overfits after epoch") for note in summary.notes)


def test_the_mlp_standardizes_by_the_statistics_of_all_training_rows(params: BaselineParams):
    train, val = make_labeled(60, views=2), make_labeled(30, seed=1)
    head = fit_mlp(train, val, params, classes=3, seed=1).head
    rows = train.features.reshape(-1, D).astype(np.float64)
    state = {name: tensor.numpy() for name, tensor in head.state_dict().items()}
    np.testing.assert_allclose(state["norm.running_mean"], rows.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(state["norm.running_var"], rows.var(axis=0), rtol=1e-4)


def test_an_mlp_can_be_trained_on_a_last_batch_of_one_image(default_params: Params):
    params = with_values(default_params, {"baseline.batch_size": 4}).baseline
    train, val = make_labeled(5), make_labeled(6, seed=1)
    fit = fit_mlp(train, val, params, classes=3, seed=1)
    assert np.isfinite([one.val_loss for one in fit.epochs]).all()


def test_val_chooses_the_strength_where_it_is_large():
    train, val = make_labeled(3 * 60, noise=5.0), make_labeled(90, seed=1, noise=5.0)
    path = choose_linear(train, val, [0.003, 0.3, 30.0], classes=3, seed=1)
    losses = {fit.strength: val.judge.loss(fit.logits(val.features[:, 0])) for fit in path.fits}
    assert path.chosen_by == "val loss"
    assert path.chosen.strength == min(losses, key=lambda strength: losses[strength])


def test_a_path_ends_when_weaker_penalties_are_hopeless():
    # Many features, of which one tells a little: a weak penalty learns the others by heart.
    rng = np.random.default_rng(0)

    def draw(images: int) -> Labeled:
        labels = np.arange(images) % 3
        features = rng.normal(size=(images, 1, 400)).astype(np.float32)
        features[:, 0, :3] += 2 * np.eye(3)[labels]
        return Labeled(features, labels, [str(number) for number in range(images)])

    train, val = draw(3 * 51), draw(300)
    strengths = [1e-6, 1e-5, 1e-4, 1.0, 10.0]
    path = choose_linear(train, val, strengths, classes=3, seed=1)
    tried = [fit.strength for fit in path.fits]
    assert tried == sorted(tried, reverse=True)
    assert 1e-6 not in tried
    assert path.chosen.strength >= 1.0


def test_held_out_groups_choose_the_strength_where_images_are_few(
    monkeypatch: pytest.MonkeyPatch,
):
    train, val = make_labeled(60, views=2, noise=3.0), make_labeled(9, seed=1, noise=3.0)
    groups = [f"device {number // 3}" for number in range(60)]
    train = Labeled(train.features, train.labels, groups)
    splits = []

    class Splitter(strength.StratifiedGroupKFold):  # type: ignore[misc]
        def split(self, *args: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            splits.extend(super().split(*args))
            yield from splits

    monkeypatch.setattr(strength, "StratifiedGroupKFold", Splitter)
    path = choose_linear(train, val, [0.003, 0.3, 30.0], classes=3, seed=1)
    assert path.chosen_by == "5-fold cross-validation over train"
    assert path.chosen.strength == 0.3
    assert sorted(np.concatenate([held_out for _, held_out in splits])) == list(range(60))
    for fitted, held_out in splits:
        assert not {groups[i] for i in fitted} & {groups[i] for i in held_out}


def test_every_fit_and_every_epoch_is_told(
    params: BaselineParams, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    caplog.set_level("INFO")
    choose_linear(make_labeled(30), make_labeled(30, seed=1), [0.1, 1.0], classes=3, seed=0)
    fits = [line for line in caplog.messages if line.startswith("linear head: ")]
    assert [" of 12 fits, " in line for line in fits] == [True] * len(fits)
    assert len(fits) in {11, 12}
    fit_mlp(make_labeled(30), make_labeled(30, seed=1), params, classes=3, seed=0)
    assert f"MLP: 1 of {params.mlp_epochs} epochs, " in caplog.text


def test_val_chooses_where_a_class_has_a_single_group():
    train, val = make_labeled(30), make_labeled(9, seed=1)
    train = Labeled(train.features, train.labels, ["one"] * 30)
    assert choose_linear(train, val, [0.1], classes=3, seed=1).chosen_by == "val loss"


# the stage ---------------------------------------------------------------------------------------


def write_inputs(folder: Path, train: Labeled, val: Labeled) -> list[str]:
    rows = [
        ManifestRow(
            path=f"{split}/{number}.png",
            label=NAMES[label],
            split=split,
            group=data.groups[number],
            sha256="0" * 64,
            width=8,
            height=8,
            mode="RGB",
        )
        for split, data in (("train", train), ("val", val))
        for number, label in enumerate(data.labels)
    ]
    write_manifest(folder / "manifest.csv", Manifest(rows))
    write_array(folder / "train" / "features.npy", train.features)
    write_array(folder / "val" / "features.npy", val.features)
    for split, data in (("train", train), ("val", val)):
        info = store_info(len(data.labels), views=0, image_px=8)
        with StoreWriter(folder / split, info) as store:
            for number in range(len(data.labels)):
                store.append(np.full((1, 8, 8, 3), number % 256, np.uint8))
    return [
        f"--params={ROOT / 'params.yaml'}",
        f"--manifest={folder / 'manifest.csv'}",
        f"--train-features={folder / 'train'}",
        f"--val-features={folder / 'val'}",
        f"--train={folder / 'train'}",
        f"--val={folder / 'val'}",
    ]


def outputs(folder: Path) -> list[str]:
    return [
        f"--head={folder / 'head.safetensors'}",
        f"--summary={folder / 'baseline.json'}",
        f"--val-logits={folder / 'val_logits.npy'}",
        f"--suspects={folder / 'suspects.csv'}",
        f"--suspect-pixels={folder / 'suspects.npy'}",
    ]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_THREADS", "1")
    monkeypatch.setenv("REGRAFT_DEVICE", "cpu")
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *args, **named: None)


def test_the_stage_writes_a_head_that_gives_the_logits_it_wrote(tmp_path: Path):
    train, val = make_labeled(90, views=2), make_labeled(30, seed=1)
    stage.main(write_inputs(tmp_path / "in", train, val) + outputs(tmp_path / "out"))
    summary = read_record(tmp_path / "out" / "baseline.json", Baseline)
    head = load_head(tmp_path / "out" / "head.safetensors", summary)
    logits = read_array(tmp_path / "out" / "val_logits.npy")
    np.testing.assert_array_equal(apply_head(head, val.features[:, 0]), logits)
    assert summary.classes == NAMES


@pytest.mark.parametrize("balanced", [False, True])
def test_the_folds_count_classes_as_the_head_does(tmp_path: Path, *, balanced: bool):
    train, val = (
        keep_few_of_class_0(make_labeled(count, seed=count, noise=3.0), balanced=balanced)
        for count in (300, 100)
    )
    arguments = write_inputs(tmp_path / "in", train, val)
    params = (ROOT / "params.yaml").read_text()
    params = params.replace("class_balanced: false", f"class_balanced: {str(balanced).lower()}")
    (tmp_path / "params.yaml").write_text(params)
    stage.main([*arguments, f"--params={tmp_path / 'params.yaml'}", *outputs(tmp_path / "out")])
    summary = read_record(tmp_path / "out" / "baseline.json", Baseline)
    assert summary.class_balanced == balanced
    held_out = hold_out(Pool([train, val]), summary.l2_strength, classes=3, seed=17)
    assert summary.folds_accuracy is not None
    assert summary.folds_accuracy.value == right_in_folds(held_out).mean()


def test_the_curve_ends_with_the_linear_head_where_the_mlp_is_chosen(tmp_path: Path):
    inputs = write_inputs(tmp_path / "in", make_ring(300), make_ring(80, seed=1))
    stage.main(inputs + outputs(tmp_path / "out"))
    summary = read_record(tmp_path / "out" / "baseline.json", Baseline)
    assert summary.head == "mlp"
    assert summary.curve is not None
    last = summary.curve.points[-1]
    linear = [
        (one.val_accuracy, one.val_loss) for one in summary.candidates if one.head == "linear"
    ]
    assert (last.val_accuracy.value, last.val_loss) in linear


def test_planted_labels_are_listed_with_their_pictures(tmp_path: Path):
    train, val = make_labeled(90, noise=0.2), make_labeled(30, seed=1, noise=0.2)
    right = {"train": train.labels.copy(), "val": val.labels.copy()}
    for data, image in ((train, 4), (train, 40), (val, 7)):
        data.labels[image] = (data.labels[image] + 1) % len(NAMES)
    stage.main(write_inputs(tmp_path / "in", train, val) + outputs(tmp_path / "out"))
    rows = read_rows(tmp_path / "out" / "suspects.csv", SuspectRow)
    assert {row.path for row in rows} == {"train/4.png", "train/40.png", "val/7.png"}
    for row, picture in zip(rows, read_array(tmp_path / "out" / "suspects.npy"), strict=True):
        number = int(Path(row.path).stem)
        assert row.likely == NAMES[right[row.split][number]]
        assert (picture == number).all()


def test_a_strength_for_audits_is_named_where_no_linear_head_is_tried(params: BaselineParams):
    alone = params.model_copy(update={"heads": ["mlp"], "l2_strengths": [0.3, 0.1, 1.0]})
    train, val = make_labeled(90), make_labeled(30, seed=1)
    both = params.model_copy(update={"heads": ["mlp", "linear"]})
    for asked in (alone, both):
        summary = stage.train_baseline(train, val, asked, class_names=NAMES, seed=0).summary
        tried = [one.setting for one in summary.candidates if one.head == "linear"]
        assert summary.l2_strength == 0.3 or f"L2 {summary.l2_strength:g}" in tried


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path):
    train, val = make_labeled(90, views=2), make_labeled(30, seed=1)
    arguments = write_inputs(tmp_path / "in", train, val)
    digests = []
    for name in ("one", "two"):
        stage.main(arguments + outputs(tmp_path / name))
        files = sorted((tmp_path / name).iterdir())
        digests.append([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
    assert len(digests[0]) == 5
    assert digests[0] == digests[1]


def test_features_of_other_images_are_refused(tmp_path: Path):
    train, val = make_labeled(30), make_labeled(9, seed=1)
    arguments = write_inputs(tmp_path / "in", train, val)
    write_array(tmp_path / "in" / "val" / "features.npy", val.features[:8])
    with pytest.raises(ArtifactError, match=r"shape \(8, 1, 8\) for 9 val images.*rerun extract"):
        stage.main(arguments + outputs(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_features_that_are_not_finite_are_refused(tmp_path: Path):
    features = make_labeled(3).features
    features[1, 0, 2] = np.nan
    write_array(tmp_path / "features.npy", features)
    rows = [ManifestRow("x", "a", "val", str(n), "0" * 64, 8, 8, "RGB") for n in range(3)]
    with pytest.raises(ArtifactError, match="NaN or infinite"):
        read_features(tmp_path, Manifest(rows), "val")
