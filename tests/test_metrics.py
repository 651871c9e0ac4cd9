import numpy as np
import pytest
from sklearn import metrics as oracle

from tasks.judging.metrics import (
    accuracy,
    balanced_accuracy,
    brier_scores,
    f1,
    label_losses,
    log_probabilities,
    macro_f1,
    precision,
    recall,
    sum_classes,
)

CASES = {
    "ordinary": ([0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 2, 0, 2]),
    "a class never predicted": ([0, 0, 1, 1, 2], [0, 0, 1, 0, 1]),
    "a class only predicted": ([0, 0, 1, 1], [0, 2, 1, 1]),
    "perfect": ([0, 1, 2], [0, 1, 2]),
    "all wrong": ([0, 1, 2], [1, 2, 0]),
    "one image": ([1], [1]),
    "one image, wrong": ([1], [0]),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    labels, predicted = (np.array(part) for part in request.param)
    return labels, predicted, sum_classes(labels, predicted, 4)


def test_accuracy_equals_sklearn(case):
    labels, predicted, sums = case
    assert accuracy(sums) == pytest.approx(oracle.accuracy_score(labels, predicted))


def test_balanced_accuracy_equals_sklearn_over_the_classes_that_are_there(case):
    labels, predicted, sums = case
    present = np.unique(labels)
    expected = oracle.recall_score(labels, predicted, labels=present, average="macro")
    assert balanced_accuracy(sums) == pytest.approx(expected)


def test_macro_f1_equals_sklearn_over_the_classes_that_are_there(case):
    labels, predicted, sums = case
    present = np.unique(labels)
    expected = oracle.f1_score(labels, predicted, labels=present, average="macro", zero_division=0)
    assert macro_f1(sums) == pytest.approx(expected)


def test_class_ratios_equal_sklearn_and_are_nan_where_undefined(case):
    labels, predicted, sums = case
    expected = oracle.precision_recall_fscore_support(
        labels, predicted, labels=range(4), zero_division=np.nan
    )
    for found, wanted in zip((precision(sums), recall(sums), f1(sums)), expected, strict=False):
        np.testing.assert_allclose(found, wanted)


def test_metrics_do_not_depend_on_class_names_or_row_order():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, (2, 100))
    renamed, order = np.array([2, 3, 1, 0]), rng.permutation(100)
    one = sum_classes(labels, predicted, 4)
    other = sum_classes(renamed[labels][order], renamed[predicted][order], 4)
    for metric in (accuracy, balanced_accuracy, macro_f1):
        assert metric(one) == pytest.approx(metric(other))


def test_metrics_of_resamples_equal_those_of_each_one():
    rng = np.random.default_rng(0)
    pairs = [rng.integers(0, 3, (2, 40)) for _ in range(5)]
    each = [sum_classes(*pair, 3) for pair in pairs]
    stacked = type(each[0])(
        *(
            np.stack([getattr(sums, name) for sums in each], axis=1)
            for name in ("right", "actual", "predicted")
        )
    )
    for metric in (accuracy, balanced_accuracy, macro_f1):
        assert metric(stacked) == pytest.approx([float(metric(sums)) for sums in each])


def test_log_probabilities_are_exact_for_extreme_logits():
    log_p = log_probabilities(np.array([[1000.0, 0.0], [-1e30, 1e30]]))
    assert log_p[0] == pytest.approx([0.0, -1000.0])
    assert log_p[1, 1] == 0
    assert np.isfinite(log_p).all()


def test_log_probabilities_of_a_temperature_are_those_of_divided_logits():
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    expected = log_probabilities(logits.astype(np.float64) / 2.5)
    np.testing.assert_allclose(log_probabilities(logits, 2.5), expected)


def random_answers(classes, images=50):
    rng = np.random.default_rng(classes)
    log_p = log_probabilities(rng.normal(size=(images, classes)) * 2)
    return log_p, rng.integers(0, classes, images)


@pytest.mark.parametrize("classes", [2, 5])
def test_mean_label_loss_equals_sklearn(classes):
    log_p, labels = random_answers(classes)
    expected = oracle.log_loss(labels, np.exp(log_p), labels=range(classes))
    assert label_losses(log_p, labels).mean() == pytest.approx(expected)


@pytest.mark.parametrize("classes", [2, 5])
def test_mean_brier_score_equals_sklearn(classes):
    log_p, labels = random_answers(classes)
    expected = oracle.brier_score_loss(
        labels, np.exp(log_p), labels=range(classes), scale_by_half=True
    )
    assert brier_scores(log_p, labels).mean() == pytest.approx(expected)


def test_brier_score_reaches_its_bounds():
    log_p = np.log(np.array([[1.0, 0.0], [1.0, 0.0]]) + 1e-300)
    assert brier_scores(log_p, np.array([0, 1])) == pytest.approx([0.0, 1.0])
