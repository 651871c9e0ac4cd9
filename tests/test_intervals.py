from itertools import product
from math import comb

import numpy as np
import pytest
from conftest import tells
from sklearn import metrics as oracle

from tasks.evaluation.scores import (
    compare,
    groups_by_class,
    macro_worth,
    resample_differences,
    resample_scores,
    score,
    sign_flip_p,
)
from tasks.judging.calibration import confidence_of, expected_calibration_error, judge
from tasks.judging.metrics import brier_scores, label_losses
from tasks.judging.statistics import RESAMPLING, GroupBootstrap

IMAGES, CLASSES = 40, 4


def singletons(count=IMAGES):
    return [f"{number:05d}" for number in range(count)]


def answers(seed=0, images=IMAGES, classes=CLASSES, strength=1.5, temperature=1.0):
    """Logits of a model that is right more often than not."""
    labels = np.random.default_rng(99).integers(0, classes, images)
    logits = np.random.default_rng(seed).normal(size=(images, classes))
    logits[np.arange(images), labels] += strength
    return judge(logits, labels, temperature)


def resampled_rows(resamples=6, seed=5, images=IMAGES):
    return np.random.default_rng([seed, RESAMPLING]).integers(0, images, (resamples, images))


@pytest.fixture
def params(tiny_params):
    return tiny_params.evaluate


# resamples ---------------------------------------------------------------------------------------


def test_every_resample_has_the_scores_that_sklearn_gives_its_rows():
    judged = answers()
    found = resample_scores(judged, GroupBootstrap(singletons(), resamples=6, seed=5), bins=5)
    for number, rows in enumerate(resampled_rows()):
        labels, predicted = judged.labels[rows], judged.predicted[rows]
        probabilities = np.exp(judged.log_p[rows])
        assert found.accuracy[number] == pytest.approx(oracle.accuracy_score(labels, predicted))
        assert found.macro_f1[number] == pytest.approx(
            oracle.f1_score(
                labels, predicted, labels=np.unique(labels), average="macro", zero_division=0
            )
        )
        assert found.balanced_accuracy[number] == pytest.approx(
            oracle.recall_score(
                labels, predicted, labels=np.unique(labels), average="macro", zero_division=0
            )
        )
        assert found.nll[number] == pytest.approx(
            oracle.log_loss(labels, probabilities, labels=range(CLASSES))
        )
        assert found.brier[number] == pytest.approx(
            oracle.brier_score_loss(
                labels, probabilities, labels=range(CLASSES), scale_by_half=True
            )
        )


def test_resampling_every_image_once_gives_the_scores_themselves():
    judged = answers(temperature=2.0)
    one_group = GroupBootstrap(["all"] * IMAGES, resamples=1, seed=0)
    found = resample_scores(judged, one_group, bins=5)
    errors = [
        expected_calibration_error(confidence_of(log_p), judged.right, 5)
        for log_p in (judged.log_p, judged.calibrated)
    ]
    assert found.ece[0] == pytest.approx(errors[0])
    assert found.ece_calibrated[0] == pytest.approx(errors[1])
    assert errors[0] != pytest.approx(errors[1])
    assert found.nll[0] == pytest.approx(label_losses(judged.log_p, judged.labels).mean())
    assert found.brier[0] == pytest.approx(brier_scores(judged.log_p, judged.labels).mean())


def test_differences_are_paired_on_the_same_resample():
    baseline, finetuned = answers(1), answers(2, strength=2.0)
    bootstrap = GroupBootstrap(singletons(), resamples=6, seed=5)
    both = resample_differences(baseline, finetuned, bootstrap)
    before, after = (resample_scores(model, bootstrap, 5) for model in (baseline, finetuned))
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        expected = getattr(after, name) - getattr(before, name)
        assert getattr(both, name) == pytest.approx(expected)


def test_a_class_that_a_resample_misses_does_not_spoil_it():
    judged = judge(np.eye(3)[[0, 1, 2]], np.array([0, 1, 2]))
    bootstrap = GroupBootstrap(singletons(3), resamples=50, seed=0)
    found = resample_scores(judged, bootstrap, bins=2)
    assert np.array_equal(found.balanced_accuracy, np.ones(50))
    assert np.array_equal(found.macro_f1, np.ones(50))


# intervals ---------------------------------------------------------------------------------------


def test_scores_hold_what_sklearn_measures(params):
    judged = answers(temperature=1.7)
    scores = score(judged, GroupBootstrap(singletons(), resamples=100, seed=0), params)
    assert scores.accuracy.value == oracle.accuracy_score(judged.labels, judged.predicted)
    assert scores.balanced_accuracy.value == pytest.approx(
        oracle.balanced_accuracy_score(judged.labels, judged.predicted)
    )
    assert scores.macro_f1.value == pytest.approx(
        oracle.f1_score(judged.labels, judged.predicted, average="macro")
    )
    assert scores.nll.value == pytest.approx(oracle.log_loss(judged.labels, np.exp(judged.log_p)))
    assert scores.nll_calibrated == pytest.approx(
        oracle.log_loss(judged.labels, np.exp(judged.calibrated))
    )
    assert scores.temperature == 1.7


def test_every_interval_holds_its_value_and_the_number_of_images(params):
    scores = score(answers(), GroupBootstrap(singletons(), resamples=100, seed=0), params)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "nll", "brier", "ece"):
        estimate = getattr(scores, name)
        assert 0 <= estimate.low <= estimate.value <= estimate.high, name
        assert estimate.low < estimate.high, name
        assert estimate.n == IMAGES


def test_scores_do_not_depend_on_row_order_or_class_order(params):
    judged, rng = answers(), np.random.default_rng(0)
    rows, classes = rng.permutation(IMAGES), rng.permutation(CLASSES)
    logits = judged.log_p[rows][:, classes]
    shuffled = judge(logits, np.argsort(classes)[judged.labels[rows]])
    names = singletons()
    one = score(judged, GroupBootstrap(names, resamples=100, seed=0), params)
    other = score(shuffled, GroupBootstrap([names[i] for i in rows], resamples=100, seed=0), params)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "nll", "brier", "ece"):
        found, wanted = getattr(other, name), getattr(one, name)
        assert (found.value, found.low, found.high) == pytest.approx(
            (wanted.value, wanted.low, wanted.high)
        ), name


def test_perfect_predictions_of_few_images_are_not_known_to_be_perfect(params):
    judged = judge(np.eye(2)[[0, 1] * 10] * 9, np.array([0, 1] * 10))
    scores = score(judged, GroupBootstrap(singletons(20), resamples=100, seed=0), params)
    for estimate in (scores.accuracy, scores.balanced_accuracy, scores.macro_f1):
        assert estimate.value == 1
        assert estimate.high == 1
        assert 0.8 < estimate.low < 0.87  # Wilson: 20 of 20


def test_a_small_class_keeps_macro_scores_uncertain(params):
    labels = np.array([0] * 95 + [1] * 5)
    scores = score(
        judge(np.eye(2)[labels] * 9, labels),
        GroupBootstrap(singletons(100), resamples=100, seed=0),
        params,
    )
    assert scores.accuracy.low > 0.96
    assert scores.balanced_accuracy.low < 0.85


def test_one_image_has_a_score_but_nearly_no_knowledge(params):
    judged = judge(np.array([[2.0, 0.0]]), np.array([0]))
    scores = score(judged, GroupBootstrap(["one"], resamples=100, seed=0), params)
    assert (scores.accuracy.value, scores.accuracy.n) == (1, 1)
    assert scores.accuracy.low < 0.25
    assert scores.nll.low is None
    assert scores.nll.high is None


def test_balanced_accuracy_intervals_cover_the_truth_of_unequal_classes(params):
    rng, recalls = np.random.default_rng(0), np.array([0.95, 0.6])
    labels = np.array([0] * 100 + [1] * 25)
    covered = []
    for trial in range(60):
        wrong = rng.random(125) > recalls[labels]
        judged = judge(np.eye(2)[np.where(wrong, 1 - labels, labels)], labels)
        estimate = score(
            judged, GroupBootstrap(singletons(125), resamples=100, seed=trial), params
        ).balanced_accuracy
        covered.append(estimate.low <= recalls.mean() <= estimate.high)
    assert np.mean(covered) >= 0.9


@pytest.mark.parametrize("overconfidence", [0.0, 0.03, 0.15])
def test_calibration_error_intervals_cover_the_truth(params, overconfidence):
    rng = np.random.default_rng(1)
    covered = []
    for trial in range(60):
        confidence = rng.uniform(0.7, 0.95, 400)
        right = rng.random(400) < confidence - overconfidence
        logits = np.stack([np.log(confidence), np.log(1 - confidence)], axis=1)
        judged = judge(logits, np.where(right, 0, 1))
        bootstrap = GroupBootstrap(singletons(400), resamples=100, seed=trial)
        estimate = score(judged, bootstrap, params).ece
        covered.append(estimate.low <= overconfidence <= estimate.high)
    assert np.mean(covered) >= 0.9


def test_thousand_classes_fit_into_little_memory(params):
    judged = answers(images=3000, classes=1000, strength=4.0)
    scores = score(judged, GroupBootstrap(singletons(3000), resamples=100, seed=0), params)
    assert scores.macro_f1.low < scores.macro_f1.value < scores.macro_f1.high


def test_macro_worth_is_the_number_of_images_of_equal_classes():
    assert macro_worth(np.array([30.0, 30.0, 30.0])) == pytest.approx(90)
    assert macro_worth(np.array([990.0, 10.0])) == pytest.approx(4 / (1 / 990 + 1 / 10))
    assert macro_worth(np.array([5.0, 0.0])) == pytest.approx(5)


def test_groups_are_counted_by_class():
    bootstrap = GroupBootstrap(["a", "a", "b", "b", "c"], resamples=1, seed=0)
    found = groups_by_class(np.array([0, 0, 0, 1, 1]), 3, bootstrap)
    assert found.tolist() == [2, 2, 0]


# comparison --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (0, 1), (3, 9), (9, 3), (20, 20), (0, 30)])
def test_mcnemar_equals_the_sum_of_binomials(only_a, only_b):
    n, fewer = only_a + only_b, min(only_a, only_b)
    expected = min(1.0, 2 * sum(comb(n, k) for k in range(fewer + 1)) / 2**n)
    assert sign_flip_p(np.repeat([-1, 1], [only_a, only_b])) == pytest.approx(expected)


@pytest.mark.parametrize("sums", [[3, -1, 2, 0], [5, 5, 1, -2, 1, 7], [0, 0], [-4]])
def test_flips_by_group_equal_the_count_of_all_flips(sums):
    flips = [abs(np.dot(signs, sums)) for signs in product([-1, 1], repeat=len(sums))]
    expected = np.mean(np.array(flips) >= abs(sum(sums)))
    assert sign_flip_p(np.array(sums)) == pytest.approx(expected)


def test_equal_models_on_groups_that_move_together_are_told_apart_as_often_as_stated():
    rng = np.random.default_rng(3)
    found = [sign_flip_p((20 * rng.normal(0, 0.4, 25)).round().astype(int)) for _ in range(400)]
    assert 0.02 <= np.mean(np.array(found) <= 0.05) <= 0.08


def test_comparison_counts_the_images_only_one_model_got_right(params):
    labels = np.zeros(10, int)
    baseline = judge(np.eye(2)[[0] * 5 + [1] * 5], labels)
    finetuned = judge(np.eye(2)[[0] * 4 + [1] + [0] * 3 + [1] * 2], labels)
    found = compare(
        baseline,
        finetuned,
        GroupBootstrap(singletons(10), resamples=100, seed=0),
        params,
        arm="fine_tune",
    )
    assert (found.only_baseline_right, found.only_finetuned_right) == (1, 3)
    assert found.accuracy.value == pytest.approx(0.2)
    assert found.mcnemar_p == pytest.approx(0.625)
    assert tells(found.sentence, "Fine-tuning", "+20.0 points", "within noise", "10 images")


def test_comparison_says_gain_and_loss(params):
    weak, strong = answers(1, images=400, strength=0.5), answers(2, images=400, strength=4.0)
    bootstrap = GroupBootstrap(singletons(400), resamples=100, seed=0)
    gain, loss = (
        compare(*pair, bootstrap, params, arm="fine_tune")
        for pair in ((weak, strong), (strong, weak))
    )
    value, low, high = (
        100 * part for part in (gain.accuracy.value, gain.accuracy.low, gain.accuracy.high)
    )
    interval = f"{low:.1f} to {high:.1f}", f"{-high:.1f} to {-low:.1f}"
    assert tells(gain.sentence, f"gains {value:.1f} points", f"95 % interval {interval[0]}")
    assert tells(loss.sentence, f"loses {value:.1f} points", f"95 % interval {interval[1]}")
    assert all("400 images" in found.sentence for found in (gain, loss))
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        one, other = getattr(gain, name), getattr(loss, name)
        assert 0 < one.low < one.value < one.high
        assert (one.value, one.low, one.high) == pytest.approx(
            (-other.value, -other.high, -other.low)
        )


def test_equal_models_differ_by_nothing_within_an_interval(params):
    judged = answers()
    bootstrap = GroupBootstrap(singletons(), resamples=100, seed=0)
    found = compare(judged, judged, bootstrap, params, arm="fine_tune")
    for estimate in (found.accuracy, found.balanced_accuracy, found.macro_f1):
        assert estimate.value == 0
        assert estimate.low < 0 < estimate.high
    assert found.mcnemar_p == 1
