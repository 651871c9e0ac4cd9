import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, draw_image, tells
from PIL import Image
from ruamel.yaml import YAML
from safetensors.numpy import load_file
from scipy.special import softmax
from sklearn import metrics as oracle

from tasks import evaluate as stage
from tasks.artifacts.arrays import write_array
from tasks.artifacts.pixels import PixelStore, StoreWriter, store_info
from tasks.artifacts.records import (
    SPLITS,
    Baseline,
    DomainCheck,
    Estimate,
    Finetuned,
    InputSpec,
    Metrics,
    Phase,
    PredictionSets,
    SetScores,
    Summary,
    write_record,
)
from tasks.artifacts.tables import (
    ClassRow,
    ConfusionRow,
    FactRow,
    HardestRow,
    Manifest,
    ManifestRow,
    PredictionRow,
    SuspectRow,
    TwinRow,
    read_rows,
    write_manifest,
    write_rows,
)
from tasks.auditing.held_out import hold_out
from tasks.backbones.catalogue import create_architecture
from tasks.delivery.appearance import FACTS
from tasks.delivery.in_domain import InDomain
from tasks.errors import ArtifactError
from tasks.evaluate import evaluate, main, run_model
from tasks.evaluation.relatives import Related, find_related, judge_relatives
from tasks.evaluation.shipping import choose_model
from tasks.evaluation.tables import class_rows, hardest_images, reliability_rows
from tasks.evaluation.words import say_difference, warn_of_unknown
from tasks.heads.classifier import Classifier, load_finetuned, write_classifier
from tasks.heads.registry import find_head, write_head
from tasks.judging.calibration import ModelLogits, expected_calibration_error, judge
from tasks.judging.metrics import log_probabilities
from tasks.judging.rule import ValSet
from tasks.judging.statistics import wilson_interval
from tasks.runtime.device import normalize

pytestmark = pytest.mark.usefixtures("restored_torch")

CLASSES = ['cat, "big"', "dog\nwet", "fox é"]
SPLIT_IMAGES = {"train": 9, "val": 60, "test": 90}
SPEC = InputSpec(image_px=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3))
FEATURE_DIM = create_architecture("test_efficientnet").num_features


def make_manifest(images=SPLIT_IMAGES):
    return Manifest(
        [
            ManifestRow(
                path=f"{split}/{number}, {CLASSES[number % 3]}.png",
                label=CLASSES[number % 3],
                split=split,
                group=f"{split} {number // 2}",
                sha256="0" * 64,
                width=40,
                height=32,
                mode="RGB",
            )
            for split, count in images.items()
            for number in range(count)
        ]
    )


def make_logits(manifest, strength, seed):
    """Logits that favor the label by `strength` standard deviations of their noise."""
    parts = []
    for split in ("val", "test"):
        labels = manifest.labels(split)
        logits = np.random.default_rng([seed, len(labels)]).normal(size=(len(labels), 3))
        logits[np.arange(len(labels)), labels] += strength
        parts.append(logits.astype(np.float32) * 2)
    return ModelLogits(*parts)


@pytest.fixture
def params(tiny_params):
    return tiny_params.evaluate


@pytest.fixture
def manifest():
    return make_manifest()


# which model ships -------------------------------------------------------------------------------


def answers(right, certainty=2.0, unsure_when_wrong=False):
    """Logits on images of class 0 out of two: right or wrong, equally certain or less so."""
    wrong = -certainty / 4 if unsure_when_wrong else -certainty
    certain = np.where(right, certainty, wrong)
    return np.stack([certain, np.zeros(len(right))], axis=1).astype(np.float32)


def choose(baseline, finetuned, labels=None, arm="fine_tune", *, balanced=False):
    count = len(baseline)
    labels = np.zeros(count, int) if labels is None else labels
    val = ValSet(labels, [str(number) for number in range(count)], balanced=balanced)
    return choose_model(baseline, finetuned, val, confidence=0.95, seed=1, arm=arm)


def test_a_clearly_better_accuracy_on_val_decides():
    numbers = np.arange(200)
    weak, strong = answers(numbers < 100), answers(numbers < 180, certainty=0.01)
    assert choose(weak, strong).shipped == "finetuned"
    assert choose(strong, weak).shipped == "baseline"
    reason = choose(weak, strong).reason
    assert "fine-tuned model is better" in reason
    assert "+40.0 points" in reason
    assert "200 images" in reason
    assert "model trained from scratch is better" in choose(weak, strong, arm="scratch").reason


@pytest.mark.parametrize(
    ("low", "high", "fact"),
    [
        (0.01, 0.05, "3.0 points better"),
        (-0.05, -0.01, "3.0 points worse"),
        (-0.05, 0.09, "+2.0 points"),
    ],
)
def test_training_from_scratch_is_not_called_fine_tuning(low, high, fact):
    gain = Estimate(value=(low + high) / 2, low=low, high=high, n=90)
    scratch, tuned = (say_difference(gain, 0.95, arm) for arm in ("scratch", "fine_tune"))
    assert fact in scratch
    assert ("noise" in scratch) == ("noise" in tuned) == (low < 0 < high)
    for words in (scratch, tuned):
        assert f"95 % interval {100 * low:.1f} to {100 * high:.1f}, 90 images" in words
    assert ["ine-tuning" in words for words in (scratch, tuned)] == [False, True]


def test_within_noise_the_lower_calibrated_loss_on_val_decides():
    numbers = np.arange(200)
    telling, blunt = answers(numbers < 180, unsure_when_wrong=True), answers(numbers < 181)
    assert choose(blunt, telling).shipped == "finetuned"
    assert choose(telling, blunt).shipped == "baseline"
    assert "-0.5 points" in choose(blunt, telling).reason


def test_certainty_alone_ships_nothing():
    blunt = answers(np.arange(200) < 180)
    assert choose(blunt, 10 * blunt).shipped == choose(10 * blunt, blunt).shipped == "baseline"


def test_where_classes_count_the_same_the_rare_one_may_decide():
    labels = (np.arange(400) >= 360).astype(int)
    ignored = labels == 0
    found = np.where(labels == 1, np.arange(400) % 2 == 0, np.arange(400) % 4 > 0)
    baseline, finetuned = (
        np.eye(2, dtype=np.float32)[np.where(right, labels, 1 - labels)]
        for right in (ignored, found)
    )
    assert choose(baseline, finetuned, labels).shipped == "baseline"
    choice = choose(baseline, finetuned, labels, balanced=True)
    assert choice.shipped == "finetuned"
    assert "class-balanced val accuracy changed by +12.5 points" in choice.reason


# the whole judgment ------------------------------------------------------------------------------


def test_metrics_are_those_of_sklearn_on_the_test_images(manifest, params):
    baseline, finetuned = make_logits(manifest, 0.5, 1), make_logits(manifest, 3.0, 2)
    metrics = evaluate(manifest, baseline, finetuned, params, seed=1, arm="fine_tune").metrics
    labels = manifest.labels("test")
    val = ValSet(manifest.labels("val"), manifest.groups("val"))
    for scores, logits in ((metrics.baseline, baseline), (metrics.finetuned, finetuned)):
        expected = oracle.accuracy_score(labels, logits.test.argmax(axis=1))
        assert scores.accuracy.value == pytest.approx(expected)
        assert scores.accuracy.n == 90
        assert scores.temperature == val.temperature(logits.val)
        scaled = softmax(logits.test.astype(np.float64) / scores.temperature, axis=1)
        expected = oracle.log_loss(labels, scaled, labels=[0, 1, 2])
        assert scores.nll_calibrated == pytest.approx(expected)
    assert metrics.baseline.nll_calibrated < metrics.baseline.nll.value
    assert metrics.difference.accuracy.value == pytest.approx(
        metrics.finetuned.accuracy.value - metrics.baseline.accuracy.value
    )
    assert metrics.shipped == "finetuned"
    assert metrics.val_baseline == np.mean(baseline.val.argmax(axis=1) == manifest.labels("val"))
    assert metrics.val_finetuned == np.mean(finetuned.val.argmax(axis=1) == manifest.labels("val"))
    assert metrics.warnings == []


def test_a_model_trained_from_scratch_is_called_so(manifest, params):
    logits = make_logits(manifest, 0.5, 1), make_logits(manifest, 3.0, 2)
    metrics = evaluate(manifest, *logits, params, seed=1, arm="scratch").metrics
    for words in (metrics.difference.sentence, metrics.shipped_reason):
        assert "trained from scratch" in words


def test_the_test_images_do_not_choose(manifest, params):
    strong, weak = make_logits(manifest, 3.0, 1), make_logits(manifest, 0.5, 2)
    metrics = evaluate(
        manifest,
        ModelLogits(val=strong.val, test=weak.test),
        ModelLogits(val=weak.val, test=strong.test),
        params,
        seed=1,
        arm="fine_tune",
    ).metrics
    assert metrics.difference.accuracy.low > 0
    assert metrics.shipped == "baseline"


def test_temperatures_come_from_val(manifest, params):
    logits = make_logits(manifest, 2.0, 1)
    other = ModelLogits(val=logits.val, test=logits.test * 10)
    one, two = (
        evaluate(manifest, item, None, params, seed=1, arm="fine_tune") for item in (logits, other)
    )
    assert one.metrics.baseline.temperature == two.metrics.baseline.temperature != 1


def test_without_fine_tuning_the_baseline_ships(manifest, params):
    result = evaluate(
        manifest, make_logits(manifest, 2.0, 1), None, params, seed=1, arm="fine_tune"
    )
    metrics = result.metrics
    assert (metrics.finetuned, metrics.difference, metrics.val_finetuned) == (None, None, None)
    assert metrics.shipped == "baseline"
    assert result.shipped is result.models["baseline"]


def test_majority_is_the_largest_class_of_training_not_of_test(params):
    rows = make_manifest(SPLIT_IMAGES | {"test": 91}).rows  # of which class 0 has one more
    train = [row for row in rows if row.split == "train" and row.label == CLASSES[1]][:1]
    manifest = Manifest([*rows, *train])
    metrics = evaluate(
        manifest, make_logits(manifest, 2.0, 1), None, params, seed=1, arm="fine_tune"
    ).metrics
    assert metrics.majority.value == pytest.approx(30 / 91)
    assert metrics.majority.n == 91


def test_a_model_no_better_than_the_majority_class_is_warned_of(manifest, params):
    constant = np.tile(np.float32([0, 1, 0]), (90, 1))
    logits = ModelLogits(val=constant[:60], test=constant)
    metrics = evaluate(manifest, logits, None, params, seed=1, arm="fine_tune").metrics
    (warning,) = metrics.warnings
    assert warning.count("0.333") == 2


def test_results_do_not_depend_on_row_order(manifest, params):
    baseline, finetuned = make_logits(manifest, 0.5, 1), make_logits(manifest, 3.0, 2)
    order = {split: np.random.default_rng(0).permutation(n) for split, n in SPLIT_IMAGES.items()}
    rows = [manifest.of(split)[i] for split in order for i in order[split]]
    shuffled = [
        ModelLogits(val=model.val[order["val"]], test=model.test[order["test"]])
        for model in (baseline, finetuned)
    ]
    one = evaluate(manifest, baseline, finetuned, params, seed=1, arm="fine_tune").metrics
    other = evaluate(Manifest(rows), *shuffled, params, seed=1, arm="fine_tune").metrics
    assert flat(other) == pytest.approx(flat(one))


def flat(record, at=""):
    """Every number of a record by its path."""
    found = {}
    for key, value in (record if isinstance(record, dict) else record.model_dump()).items():
        if isinstance(value, dict):
            found |= flat(value, f"{at}{key}.")
        elif isinstance(value, int | float):
            found[f"{at}{key}"] = value
    return found


# tables ------------------------------------------------------------------------------------------


def test_a_class_without_images_has_empty_ratios_and_knows_nothing():
    judged = judge(np.eye(3)[[0, 0]], np.array([0, 0]))
    rows = list(class_rows(judged, ["a", "b"], CLASSES, 0.95))
    assert (rows[0].n, rows[0].predicted, rows[0].recall) == (2, 2, 1.0)
    assert rows[2] == ClassRow(CLASSES[2], 0, 0, None, 0.0, 1.0, None, 0.0, 1.0, None)


def test_reliability_recomputes_the_calibration_error():
    logits = np.random.default_rng(0).normal(size=(50, 3)) * 3
    judged = judge(logits, np.random.default_rng(1).integers(0, 3, 50), temperature=4.0)
    groups = [str(number) for number in range(50)]
    rows = list(reliability_rows({"baseline": judged}, groups, bins=6, confidence=0.95))
    assert len(rows) == 12
    for calibrated, log_p in enumerate((judged.log_p, judged.calibrated)):
        mine = [row for row in rows if row.calibrated == calibrated]
        error = sum(row.n * abs(row.accuracy - row.confidence) for row in mine) / 50
        confidence = np.exp(log_p.max(axis=1))
        assert error == pytest.approx(expected_calibration_error(confidence, judged.right, 6))


def test_tables_bound_images_of_their_own_by_wilson_and_copies_by_their_groups():
    logits = np.random.default_rng(0).normal(size=(200, 3))
    labels = np.random.default_rng(1).integers(0, 3, 200)
    names = [str(number) for number in range(200)]
    alone, copied = (
        list(tables_of(judge(np.tile(logits, (times, 1)), np.tile(labels, times)), names * times))
        for times in (1, 3)
    )
    for right, count, low, high in alone:
        expected = wilson_interval(right, count, confidence=0.95)
        assert (low, high) == pytest.approx((expected.low, expected.high))
    for (_, _, low, high), (right, count, grouped_low, grouped_high) in zip(
        alone, copied, strict=True
    ):
        ungrouped = wilson_interval(right, count, confidence=0.95)
        assert grouped_high - grouped_low > 1.5 * (ungrouped.high - ungrouped.low)
        assert (grouped_low, grouped_high) == pytest.approx((low, high), abs=0.01)


@pytest.mark.parametrize("count", [4, 8, 20], ids="{} groups".format)
@pytest.mark.parametrize("images", [10, 25], ids="{} images".format)
def test_intervals_of_recalls_cover_the_truth_where_images_of_a_group_are_alike(count, images):
    """Beta-binomial recalls, of correlation 1 / (1 + 5) within a group."""
    rng, recalls, trials = np.random.default_rng([count, images]), np.array([0.6, 0.8, 0.9]), 300
    labels = np.repeat(np.arange(3), count * images)
    groups = [str(number // images) for number in range(len(labels))]
    covered = np.zeros(3)
    for _ in range(trials):
        means = np.repeat(recalls, count)
        chance = rng.beta(5 * means, 5 * (1 - means)).repeat(images)
        right = rng.random(len(labels)) < chance
        judged = judge(np.eye(3)[np.where(right, labels, (labels + 1) % 3)], labels)
        rows = class_rows(judged, groups, CLASSES, 0.95)
        covered += [
            row.recall_low <= truth <= row.recall_high
            for row, truth in zip(rows, recalls, strict=True)
        ]
    assert np.all(covered >= 0.88 * trials)


def tables_of(judged, groups):
    """Right images, images, and bounds of every recall, precision and accuracy of a bin."""
    classes = class_rows(judged, groups, CLASSES, 0.95)
    bins = reliability_rows({"baseline": judged}, groups, bins=4, confidence=0.95)
    for row in classes:
        yield row.recall * row.n, row.n, row.recall_low, row.recall_high
        yield row.recall * row.n, row.predicted, row.precision_low, row.precision_high
    for row in bins:
        yield row.accuracy * row.n, row.n, row.accuracy_low, row.accuracy_high


def test_hardest_images_come_hardest_first_and_ties_in_order():
    losses = np.array([0.1, 3.0, 0.5, 3.0, 2.0])
    assert hardest_images(losses, 4).tolist() == [1, 3, 4, 2]
    assert hardest_images(losses, 9).tolist() == [1, 3, 4, 2, 0]
    assert hardest_images(losses, 0).tolist() == []


# the stage ---------------------------------------------------------------------------------------

ESTIMATE = Estimate(value=0.5, low=0.4, high=0.6, n=60)


def make_baseline(**changes):
    values = {
        "head": "linear",
        "hidden": 0,
        "dropout": 0.0,
        "feature_dim": 8,
        "classes": CLASSES,
        "candidates": [],
        "val_accuracy": ESTIMATE,
        "val_loss": 1.0,
        "majority_accuracy": 0.3,
        "l2_strength": 0.1,
        "notes": [],
    }
    return Baseline(**{**values, **changes})


def make_finetuned(**changes):
    values = {
        "arm": "fine_tune",
        "backbone": "test_efficientnet",
        "input": SPEC,
        "head": "linear",
        "hidden": 0,
        "dropout": 0.0,
        "feature_dim": FEATURE_DIM,
        "classes": CLASSES,
        "phases": [],
        "interpolation": 1.0,
        "val_accuracy": ESTIMATE,
        "val_loss": 1.0,
        "baseline_val_loss": 1.1,
        "notes": [],
    }
    return Finetuned(**{**values, **changes})


def write_inputs(folder, manifest):
    """Everything that the stage reads, of a random model."""
    rng = np.random.default_rng(0)
    write_manifest(folder / "manifest.csv", manifest)
    for split in SPLITS:
        (folder / split).mkdir()
        count = len(manifest.of(split))
        with StoreWriter(folder / split, store_info(count, views=0, image_px=32)) as store:
            for number in range(count):
                store.append(np.asarray(draw_image(number % 3, number, (32, 32)))[None])
    for split in SPLITS:
        labels = manifest.labels(split)
        features = rng.normal(size=(len(labels), 1, 8)).astype(np.float32)
        features[np.arange(len(labels)), 0, labels] += 3
        write_array(folder / "features" / split / "features.npy", features)
    head = torch.nn.Linear(8, 3)
    with torch.no_grad():
        head.weight.copy_(torch.eye(3, 8))
        head.bias.zero_()
    write_head(folder / "head.safetensors", head)
    write_record(folder / "baseline.json", make_baseline())
    torch.manual_seed(0)
    linear = find_head("linear").build(FEATURE_DIM, 3, hidden=0, dropout=0.0)
    model = Classifier(create_architecture("test_efficientnet"), linear)
    write_classifier(folder / "model.safetensors", model)
    write_record(folder / "finetune.json", make_finetuned())
    found = [
        TwinRow(row.path, "test", "none", 0.5, 15.0, twin=number < 3)
        for number, row in enumerate(manifest.of("test"))
    ]
    write_rows(folder / "twins.csv", TwinRow, found)
    facts = [
        FactRow(row.path, 40, 32, "L", "JPEG", 9.0, 640, "", 0, 0, 0, 0) for row in manifest.rows
    ]
    write_rows(folder / "facts.csv", FactRow, facts[::-1])
    for name in ("baseline", "finetune"):
        val = rng.normal(size=(len(manifest.of("val")), 3)).astype(np.float32)
        val[np.arange(len(val)), manifest.labels("val")] += 1.5
        write_array(folder / f"{name}_logits.npy", val)


READS = {
    "manifest": "manifest.csv",
    "train": "train",
    "val": "val",
    "test": "test",
    "test-features": "features/test",
    "train-features": "features/train",
    "val-features": "features/val",
    "head": "head.safetensors",
    "baseline": "baseline.json",
    "baseline-logits": "baseline_logits.npy",
    "model": "model.safetensors",
    "finetune": "finetune.json",
    "finetune-logits": "finetune_logits.npy",
    "twins": "twins.csv",
    "facts": "facts.csv",
}
WRITES = {
    "summary": "summary.json",
    "metrics": "metrics.json",
    "predictions": "predictions.csv",
    "logits": "logits.safetensors",
    "classes": "per_class.csv",
    "confusion": "confusion.csv",
    "reliability": "reliability.csv",
    "hardest": "hardest",
    "suspects": "suspects.csv",
    "suspect-pixels": "suspects.npy",
    "reference": "reference.safetensors",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_params):
    """A folder with everything that the stage reads and, once it ran, everything it writes."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_inputs(folder, make_manifest())
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(tiny_params.model_dump(), file)
    run_main(folder, folder / "out")
    return folder


def run_main(folder, out, **reads):
    arguments = ["--params", str(folder / "params.yaml")]
    for name, file in (READS | reads).items():
        arguments += [f"--{name}", str(folder / file)]
    for name, file in WRITES.items():
        arguments += [f"--{name}", str(out / file)]
    main(arguments)


def outputs(project):
    out = project / "out"
    return SimpleNamespace(
        metrics=Metrics.model_validate_json((out / "metrics.json").read_text()),
        logits=load_file(out / "logits.safetensors"),
        predictions=read_rows(out / "predictions.csv", PredictionRow),
        folder=out,
    )


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_logits_are_those_of_both_models(project):
    found = outputs(project).logits
    features = np.load(project / "features" / "test" / "features.npy")
    np.testing.assert_allclose(found["baseline"], features[:, 0, :3], rtol=1e-5)
    model = load_finetuned(project / "model.safetensors", make_finetuned())
    pixels = np.concatenate([np.load(file) for file in sorted((project / "test").glob("*.npy"))])
    with torch.inference_mode():
        expected = model(normalize(torch.tensor(pixels), SPEC)).numpy()
    np.testing.assert_allclose(found["finetuned"], expected, atol=1e-4 * np.abs(expected).max())


def test_every_score_can_be_recomputed_from_what_is_stored(project, tiny_params):
    found, labels = outputs(project), make_manifest().labels("test")
    for name in ("baseline", "finetuned"):
        scores = getattr(found.metrics, name)
        log_p = log_probabilities(found.logits[name])
        predicted, p = log_p.argmax(axis=1), np.exp(log_p)
        assert scores.accuracy.value == oracle.accuracy_score(labels, predicted)
        assert scores.macro_f1.value == pytest.approx(
            oracle.f1_score(labels, predicted, average="macro")
        )
        assert scores.nll.value == pytest.approx(oracle.log_loss(labels, p))
        calibrated = np.exp(log_probabilities(found.logits[name], scores.temperature))
        assert scores.nll_calibrated == pytest.approx(oracle.log_loss(labels, calibrated))
        assert scores.ece_calibrated.value == pytest.approx(
            expected_calibration_error(
                calibrated.max(axis=1), predicted == labels, tiny_params.evaluate.ece_bins
            )
        )


def test_predictions_hold_one_row_an_image_in_full_precision(project):
    found, manifest = outputs(project), make_manifest()
    scores = getattr(found.metrics, found.metrics.shipped)
    rows = found.predictions
    assert [row.path for row in rows] == [row.path for row in manifest.of("test")]
    assert [row.label for row in rows] == [row.label for row in manifest.of("test")]
    right = [row.label == row.predicted for row in rows]
    assert [row.correct for row in rows] == right
    assert np.mean(right) == scores.accuracy.value
    losses = [row.loss for row in rows]
    assert np.mean(losses) == pytest.approx(scores.nll_calibrated, rel=1e-12)
    assert [row.label_probability for row in rows] == pytest.approx(np.exp(-np.array(losses)))
    baseline = [row.label == row.baseline_predicted for row in rows]
    assert np.mean(baseline) == found.metrics.baseline.accuracy.value


def test_confusion_and_classes_agree_with_the_predictions(project):
    found = outputs(project)
    pairs = [(row.label, row.predicted) for row in found.predictions]
    confusion = read_rows(found.folder / "confusion.csv", ConfusionRow)
    assert [(row.actual, row.predicted) for row in confusion] == pairs
    expected = oracle.precision_recall_fscore_support(*zip(*pairs, strict=True), labels=CLASSES)
    classes = read_rows(found.folder / "per_class.csv", ClassRow)
    assert [row.class_ for row in classes] == CLASSES
    for column, values in zip(("precision", "recall", "f1", "n"), expected, strict=True):
        assert [getattr(row, column) for row in classes] == pytest.approx(list(values))
    for row in classes:
        assert row.recall_low < row.recall <= row.recall_high


def test_hardest_images_are_shown_as_they_are_packed(project, tiny_params):
    found = outputs(project)
    index = read_rows(found.folder / "hardest" / "index.csv", HardestRow)
    assert len(index) == tiny_params.evaluate.hardest
    ranked = sorted(found.predictions, key=lambda row: -row.loss)
    assert [row.path for row in index] == [row.path for row in ranked[: len(index)]]
    images = sorted(path.name for path in (found.folder / "hardest").glob("*.jpg"))
    assert [row.file for row in index] == images
    number = [row.path for row in found.predictions].index(index[0].path)
    picture = np.asarray(Image.open(found.folder / "hardest" / images[0]), float)
    original = np.asarray(draw_image(number % 3, number, (32, 32)), float)
    assert np.abs(picture - original).mean() < 12


def test_planted_labels_of_test_are_listed_with_their_pictures(project, tmp_path):
    planted = range(0, 90, 9)
    rows = make_manifest().rows
    tested = [number for number, row in enumerate(rows) if row.split == "test"]
    moved = {tested[image] for image in planted}
    wrong = [
        replace(row, label=CLASSES[(CLASSES.index(row.label) + 1) % 3]) if n in moved else row
        for n, row in enumerate(rows)
    ]
    write_manifest(project / "planted.csv", Manifest(wrong))
    write_record(project / "frozen.json", make_finetuned(arm="feature_extraction"))
    run_main(project, tmp_path, manifest="planted.csv", finetune="frozen.json")
    found = read_rows(tmp_path / "suspects.csv", SuspectRow)
    true = {rows[number].path: rows[number].label for number in moved}
    assert found
    assert {row.path: row.likely for row in found}.items() <= true.items()
    for row, picture in zip(found, np.load(tmp_path / "suspects.npy"), strict=True):
        image = [rows[number].path for number in tested].index(row.path)
        np.testing.assert_array_equal(picture, np.asarray(draw_image(image % 3, image, (32, 32))))


def test_the_folds_judge_every_image(project):
    metrics = outputs(project).metrics
    assert metrics.folds.accuracy.n == sum(SPLIT_IMAGES.values())
    assert len(metrics.folds.by_fold) == 5
    assert metrics.folds.difference.value == pytest.approx(
        metrics.baseline.accuracy.value - metrics.folds.accuracy.value
    )


def test_the_folds_count_classes_as_the_baseline_does(project, tmp_path, monkeypatch):
    pools = []
    monkeypatch.setattr(
        stage,
        "hold_out",
        lambda pool, *args, **named: pools.append(pool) or hold_out(pool, *args, **named),
    )
    write_record(project / "frozen.json", make_finetuned(arm="feature_extraction"))
    for balanced in (False, True):
        write_record(project / "counted.json", make_baseline(class_balanced=balanced))
        run_main(project, tmp_path, baseline="counted.json", finetune="frozen.json")
    assert [pool.balanced for pool in pools] == [False, True]


def test_the_plot_files_have_the_columns_that_the_graph_names(project):
    graph = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]["evaluate"]
    plots = {
        path.rsplit("/", 1)[-1]: plot for item in graph["plots"] for path, plot in item.items()
    }
    for name, plot in plots.items():
        columns = set((project / "out" / name).read_text().splitlines()[0].split(","))
        assert {plot["x"], plot["y"]} <= columns
    template = json.loads((ROOT / ".dvc/plots/reliability.json").read_text())
    assert "<DVC_METRIC_DATA>" in str(template)
    assert plots["reliability.csv"]["template"] == "reliability"


def test_the_same_inputs_give_the_same_bytes(project, tmp_path):
    run_main(project, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(project / "out")


def test_the_log_says_what_was_found(project, tmp_path, caplog):
    caplog.set_level("INFO")
    run_main(project, tmp_path)
    metrics = outputs(project).metrics
    value = metrics.baseline.accuracy
    line = caplog.records[-1].getMessage()
    assert line.startswith(f"test accuracy: baseline {value.value:.3f} [{value.low:.3f}, ")
    assert f"difference {metrics.difference.accuracy.value:+.3f} [" in line
    assert "(90 images); ships " in line


def test_the_summary_repeats_numbers_of_the_metrics(project):
    metrics = outputs(project).metrics
    summary = json.loads((project / "out" / "summary.json").read_text())
    assert list(summary) == list(Summary.model_fields)
    shipped = metrics.finetuned if metrics.shipped == "finetuned" else metrics.baseline
    accuracy, gain = shipped.accuracy, metrics.difference.accuracy
    for name, estimate in (("accuracy", accuracy), ("gain", gain)):
        assert summary[f"test_{name}"] == estimate.value
        assert summary[f"test_{name}_low"] == estimate.low
        assert summary[f"test_{name}_high"] == estimate.high
    assert summary["test_accuracy_frozen"] == metrics.baseline.accuracy.value
    assert summary["test_ece"] == shipped.ece_calibrated.value
    assert summary["test_nll"] == shipped.nll_calibrated


def test_with_features_alone_no_second_model_is_run(project, tmp_path):
    write_record(project / "frozen.json", make_finetuned(arm="feature_extraction"))
    run_main(project, tmp_path, **{"finetune": "frozen.json", "model": "no such file"})
    metrics = Metrics.model_validate_json((tmp_path / "metrics.json").read_text())
    assert (metrics.finetuned, metrics.shipped) == (None, "baseline")
    assert list(load_file(tmp_path / "logits.safetensors")) == ["baseline"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["test_gain"] is None
    assert summary["test_accuracy"] == summary["test_accuracy_frozen"]


def test_where_every_phase_was_rolled_back_the_baseline_ships_for_that_reason(project, tmp_path):
    finetuned = make_finetuned(phases=[make_lost_phase()], interpolation=0.0)
    write_record(project / "lost.json", finetuned)
    frozen = READS["baseline-logits"]
    run_main(project, tmp_path, **{"finetune": "lost.json", "finetune-logits": frozen})
    metrics = Metrics.model_validate_json((tmp_path / "metrics.json").read_text())
    assert metrics.shipped == "baseline"
    words = finetuned.rejection
    assert tells(words, "Fine-tuning was rejected", "unfrozen from head: rolled back: it fell")
    assert (metrics.shipped_reason, metrics.difference.sentence) == (words, words)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["test_accuracy"] == summary["test_accuracy_frozen"]


def make_lost_phase():
    return Phase(
        name="unfrozen from head", unfrozen_from=5, epochs=1, best_epoch=1, stopped="finished",
        val_loss=1.2, val_accuracy=0.4, change_in_val_accuracy=ESTIMATE, kept=False,
        reason="rolled back: it fell",
    )  # fmt: skip


def damage_features(project):
    write_array(project / "short" / "features.npy", np.zeros((89, 1, 8), np.float32))


def damage_val(project):
    write_array(project / "short.npy", np.zeros((59, 3), np.float32))


def damage_numbers(project):
    write_array(project / "nan.npy", np.full((60, 3), np.nan, np.float32))


def damage_classes(project):
    write_record(project / "other.json", make_baseline(classes=["a", "b", "c"]))


def damage_manifest(project):
    write_manifest(project / "more.csv", make_manifest(SPLIT_IMAGES | {"test": 91}))


def damage_facts(project):
    rows = read_rows(project / "facts.csv", FactRow)
    write_rows(
        project / "few.csv", FactRow, [row for row in rows if not row.path.startswith("val/3")]
    )


MISMATCHES = {
    "features": (
        damage_features,
        {"test-features": "short"},
        r"short: features of shape \(89, 1, 8\) for 90 test images",
    ),
    "val logits": (
        damage_val,
        {"baseline-logits": "short.npy"},
        r"short\.npy: shape of the val logits \(59, 3\)",
    ),
    "numbers": (damage_numbers, {"finetune-logits": "nan.npy"}, "val logits are not finite"),
    "classes": (
        damage_classes,
        {"baseline": "other.json"},
        r"classes \['a', 'b', 'c'\], the manifest says",
    ),
    "pixels": (damage_manifest, {"manifest": "more.csv"}, "test: 90 images, the manifest lists 91"),
    "facts": (damage_facts, {"facts": "few.csv"}, r"few\.csv: facts of val images 49, .* says 60"),
    "missing": (lambda project: None, {"baseline": "none.json"}, "none.json: cannot be read"),
}


@pytest.mark.parametrize(("damage", "reads", "message"), MISMATCHES.values(), ids=MISMATCHES.keys())
def test_files_of_different_runs_are_refused(project, tmp_path, damage, reads, message):
    damage(project)
    with pytest.raises(ArtifactError, match=message):
        run_main(project, tmp_path, **reads)
    assert list(tmp_path.iterdir()) == []


# relatives in train ------------------------------------------------------------------------------


def test_accuracy_with_and_without_a_twin_is_that_of_these_images(project):
    found = outputs(project)
    right = np.array([row.correct for row in found.predictions])
    twins = found.metrics.twins
    assert (twins.with_relative.n, twins.without_relative.n) == (3, len(right) - 3)
    labels = [row.label for row in found.predictions]
    kinds = {True: {}, False: {}}
    for number, (label, hit) in enumerate(zip(labels, right, strict=True)):
        kinds[number < 3].setdefault(label, []).append(hit)
    for estimate, kind in ((twins.with_relative, True), (twins.without_relative, False)):
        by_class = [np.mean(kinds[kind][label]) * labels.count(label) for label in kinds[True]]
        assert estimate.value == pytest.approx(np.sum(by_class) / len(labels))
        assert estimate.low <= estimate.value <= estimate.high
    assert found.metrics.leaks is None


def judge_leaks(leaked, default_params):
    manifest = make_manifest()
    groups = manifest.groups("test")
    none = np.zeros(len(groups), bool)
    related = Related(manifest.labels("test"), groups, none, none, leaked)
    right = np.arange(len(groups)) % 2 == 0
    metrics = Metrics.model_construct(warnings=["before"])
    return judge_relatives(metrics, right, related, default_params.evaluate, seed=1), right


def test_a_leak_says_its_weight_and_gives_the_figure_on_clean_images(default_params):
    leaked = np.arange(90) < 57
    metrics, right = judge_leaks(leaked, default_params)
    assert metrics.leaks.without_relative.value == pytest.approx(right[57:].mean())
    before, words = metrics.warnings
    assert before == "before"
    assert tells(words, "57 of 90", "33 clean", f"{100 * right[57:].mean():.1f} %")


def test_a_test_that_stands_in_train_is_worth_nothing(default_params):
    metrics, _ = judge_leaks(np.ones(90, bool), default_params)
    assert metrics.leaks.without_relative is None
    assert tells(metrics.warnings[-1], "90 of 90", "worth nothing")


def test_images_that_were_not_compared_are_on_neither_side_of_twins(default_params):
    groups, none = [str(image) for image in range(6)], np.zeros(6, bool)
    related = Related(np.zeros(6, int), groups, np.arange(6) < 1, np.arange(6) < 4, none)
    metrics = Metrics.model_construct(warnings=[])
    found = judge_relatives(metrics, ~none, related, default_params.evaluate, seed=1).twins
    assert (found.with_relative.n, found.without_relative.n) == (1, 3)


def test_twins_of_an_easy_class_do_not_flatter(default_params):
    # The classes are 100 and 50 % right, with a twin and without; twins are mostly of the easy one.
    labels = np.repeat([0, 0, 1, 1], [60, 20, 10, 40])
    twins = np.repeat([True, False, True, False], [60, 20, 10, 40])
    right = (labels == 0) | (np.arange(130) % 2 == 0)
    groups = [str(image) for image in range(130)]
    related = Related(labels, groups, twins, np.ones(130, bool), np.zeros(130, bool))
    metrics = Metrics.model_construct(warnings=[])
    found = judge_relatives(metrics, right, related, default_params.evaluate, seed=1).twins
    expected = (80 * 1 + 50 * 0.5) / 130
    assert found.with_relative.value == pytest.approx(expected)
    assert found.without_relative.value == pytest.approx(expected)
    assert (found.with_relative.n, found.without_relative.n) == (70, 60)


def test_classes_of_one_kind_are_left_out_and_the_others_counted(default_params):
    labels = np.repeat([0, 1, 2], [20, 20, 10])
    twins = np.isin(np.arange(50), (0, 1, 20, 21, 22))  # of the last class none has one
    none = np.zeros(50, bool)
    related = Related(labels, [str(image) for image in range(50)], twins, ~none, none)
    metrics = Metrics.model_construct(warnings=[])
    found = judge_relatives(metrics, ~none, related, default_params.evaluate, seed=1).twins
    assert (found.with_relative.n, found.without_relative.n, found.classes) == (5, 35, 2)
    apart = Related(labels, related.groups, labels == 0, ~none, none)
    found = judge_relatives(metrics, ~none, apart, default_params.evaluate, seed=1).twins
    assert (found.with_relative.n, found.without_relative.n, found.classes) == (20, 30, None)


def test_groups_across_splits_are_leaks_and_twins_are_by_path():
    manifest = make_manifest()
    rows = [
        replace(row, group="train 0") if row.split == "test" and number % 10 == 0 else row
        for number, row in enumerate(manifest.rows)
    ]
    first = manifest.of("test")[0].path
    related = find_related(Manifest(rows), [TwinRow(first, "test", "x", 0.9, 20.0, twin=True)])
    assert related.twins.tolist() == [True] + [False] * 89
    assert related.leaked.sum() == 9


# where it does not know --------------------------------------------------------------------------


def test_sets_and_domain_are_those_of_the_shipped_model(project, tiny_params):
    found, manifest = outputs(project), make_manifest()
    metrics, params = found.metrics, tiny_params.evaluate
    scores = getattr(metrics, metrics.shipped)
    stage = {"finetuned": "finetune", "baseline": "baseline"}[metrics.shipped]
    val = np.load(project / f"{stage}_logits.npy")
    p = np.exp(log_probabilities(val, scores.temperature))
    own = np.sort(1 - p[np.arange(len(p)), manifest.labels("val")])
    lac = metrics.sets.kinds[0]
    groups = len(set(manifest.groups("val")))
    rank = int(np.ceil((groups + 1) * params.set_coverage / groups * len(own)))
    assert lac.thresholds == [own[rank - 1]] * 3
    test = np.exp(log_probabilities(found.logits[metrics.shipped], scores.temperature))
    labels = manifest.labels("test")
    among = 1 - test[np.arange(len(test)), labels] <= own[rank - 1]
    assert lac.coverage.value == np.mean(among | (test.argmax(axis=1) == labels))
    known = InDomain.read(found.folder / "reference.safetensors")
    assert (known.threshold, known.false_alarm) == (metrics.domain.threshold, params.false_alarm)
    assert len(known.held_out) == len(manifest.of("val"))
    looks = known.held_out_appearance
    assert looks.kinds == ["JPEG, L, no camera named"] * len(known.held_out)
    store = PixelStore.open(project / "val")
    views = store.rows(store.clean_rows())
    of_pixels, of_files = (
        ["brightness"],
        ["megapixels", "aspect", "bytes_per_pixel", "quantization"],
    )
    for name in of_pixels + of_files:
        column = looks.numbers[:, FACTS.index(name)]
        expected = {
            "brightness": (views @ [0.299, 0.587, 0.114]).mean(axis=(1, 2)),
            "megapixels": 0.00128,
            "aspect": 1.25,
            "bytes_per_pixel": 0.5,
            "quantization": 9.0,
        }[name]
        np.testing.assert_allclose(column, expected, atol=1e-9)
    assert metrics.domain.false_alarms.n == len(manifest.of("test"))


def test_the_domain_of_a_tuned_model_is_told_by_its_own_features(project, tmp_path):
    tuned = make_finetuned()
    assert outputs(project).metrics.finetuned is not None
    model = load_finetuned(project / "model.safetensors", tuned)
    val = PixelStore.open(project / "val")
    found = run_model(model.backbone, SPEC, val, seed=1, what="x", images=np.array([3, 5]))
    with torch.inference_mode():
        images = normalize(torch.tensor(np.stack([val.rows([3])[0], val.rows([5])[0]])), SPEC)
        expected = model.backbone(images).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_too_little_coverage_is_a_warning():
    share = Estimate(value=0.7, low=0.6, high=0.8, n=100)
    kind = SetScores(
        method="lac", thresholds=[0.5], coverage=share, lowest_of_a_class=0.2, mean_size=1.5,
        single=0.5, lowest_images=15,
    )  # fmt: skip
    usual = Estimate(value=0.05, low=0.02, high=0.1, n=9)
    fine = DomainCheck(threshold=1.0, asked=0.05, false_alarms=usual)
    (warning,) = warn_of_unknown(PredictionSets(asked=0.9, kinds=[kind]), fine)
    assert tells(warning, "90 %", "70.0 %", "[60.0, 80.0]", "20.0 % (of 15)")
    strange = fine.model_copy(update={"false_alarms": share})
    enough = kind.model_copy(update={"coverage": Estimate(value=0.85, low=0.8, high=0.92, n=9)})
    (warning,) = warn_of_unknown(PredictionSets(asked=0.9, kinds=[enough]), strange)
    assert tells(warning, "70.0 %", "5 %")
