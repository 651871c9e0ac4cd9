import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from tasks.judging.calibration import (
    LARGEST_TEMPERATURE,
    confidence_of,
    equal_mass_bins,
    expected_calibration_error,
    fit_temperature,
    judge,
    reliability_table,
)
from tasks.judging.metrics import label_losses, log_probabilities


def sample(temperature, images=4000, classes=4, seed=0):
    """Logits that are `temperature` times too large for labels drawn from their softmax."""
    rng = np.random.default_rng(seed)
    true_logits = rng.normal(size=(images, classes)) * 2
    noise = rng.gumbel(size=true_logits.shape)
    return true_logits * temperature, np.argmax(true_logits + noise, axis=1)


# temperature -------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_a_known_temperature_is_found(temperature):
    logits, labels = sample(temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.06)


def test_temperature_equals_that_of_another_optimizer():
    logits, labels = sample(3.0, images=300)

    def loss(inverse):
        return label_losses(log_probabilities(logits * inverse[0]), labels).mean()

    inverse = minimize(loss, [1.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14})
    assert fit_temperature(logits, labels) == pytest.approx(1 / inverse.x[0], rel=1e-5)


def test_calibrated_probabilities_equal_sklearn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    features = rng.normal(size=(200, 5)) + np.eye(3, 5)[labels]
    model = LogisticRegression(C=100).fit(features[:40], labels[:40])  # overconfident
    features, labels = features[40:], labels[40:]
    sklearn = CalibratedClassifierCV(FrozenEstimator(model), method="temperature")
    sklearn.fit(features, labels)
    logits = model.decision_function(features)
    ours = judge(logits, labels, fit_temperature(logits, labels))
    np.testing.assert_allclose(
        np.exp(ours.calibrated), sklearn.predict_proba(features), rtol=1e-3, atol=1e-5
    )


def test_calibration_changes_no_prediction_and_lowers_loss_and_error():
    logits, labels = sample(3.0)
    judged = judge(logits, labels, fit_temperature(logits, labels))
    assert np.array_equal(np.argmax(judged.calibrated, axis=1), judged.predicted)
    assert judged.losses.mean() < label_losses(judged.log_p, labels).mean()
    errors = [
        expected_calibration_error(confidence_of(log_p), judged.right, 15)
        for log_p in (judged.log_p, judged.calibrated)
    ]
    assert errors[0] > 0.15
    assert errors[1] < 0.03


def test_temperature_stays_one_where_every_image_is_right():
    logits, _ = sample(1.0, images=20)
    assert fit_temperature(logits, np.argmax(logits, axis=1)) == 1


def test_temperature_stays_one_where_logits_say_nothing():
    assert fit_temperature(np.zeros((10, 3)), np.arange(10) % 3) == 1


def test_temperature_stays_one_for_a_single_right_image():
    assert fit_temperature(np.array([[3.0, 1.0]]), np.array([0])) == 1


def test_temperature_is_bounded_where_every_image_is_wrong():
    logits, _ = sample(1.0, images=20)
    temperature = fit_temperature(logits, np.argmin(logits, axis=1))
    assert temperature == pytest.approx(LARGEST_TEMPERATURE, rel=1e-4)


def test_temperature_survives_huge_logits():
    logits, labels = sample(3.0)
    expected = fit_temperature(logits, labels)
    shifted = logits + np.random.default_rng(0).normal(size=(len(logits), 1)) * 1e6
    assert fit_temperature(shifted, labels) == pytest.approx(expected, rel=1e-4)


# calibration error -------------------------------------------------------------------------------


def naive_calibration_error(confidence, right, bins):
    """Sort, cut where a bin has its share, and compare: one image at a time."""
    pairs = sorted(zip(confidence, right, strict=True))
    total, filled = 0.0, []
    for number, pair in enumerate(pairs):
        filled.append(pair)
        if (number + 1) * bins // len(pairs) > number * bins // len(pairs):
            certain = sum(c for c, _ in filled) / len(filled)
            correct = sum(r for _, r in filled) / len(filled)
            total += len(filled) / len(pairs) * abs(certain - correct)
            filled = []
    return total


@pytest.mark.parametrize(("images", "bins"), [(100, 10), (103, 15), (7, 3), (1, 2), (2, 5)])
def test_calibration_error_equals_the_naive_loop(images, bins):
    rng = np.random.default_rng(images)
    confidence, right = rng.random(images), rng.random(images) < 0.7
    expected = naive_calibration_error(confidence, right, bins)
    assert expected_calibration_error(confidence, right, bins) == pytest.approx(expected)


@pytest.mark.parametrize(("images", "bins"), [(100, 10), (103, 15), (9, 2)])
def test_bins_hold_equally_many_images(images, bins):
    confidence = np.random.default_rng(0).random(images)
    counts = np.bincount(equal_mass_bins(confidence, bins))
    assert len(counts) == bins
    assert counts.max() - counts.min() <= 1


def test_bins_are_ordered_by_confidence():
    confidence = np.random.default_rng(0).random(50)
    numbers = equal_mass_bins(confidence, 7)
    assert np.all(np.diff(numbers[np.argsort(confidence)]) >= 0)


def test_equal_confidences_share_a_bin_whatever_their_order():
    confidence = np.repeat([0.5, 0.9, 1.0], [10, 30, 60])
    numbers = equal_mass_bins(confidence, 10)
    assert len({*zip(confidence, numbers, strict=True)}) == 3
    order = np.random.default_rng(0).permutation(100)
    assert np.array_equal(equal_mass_bins(confidence[order], 10), numbers[order])


def test_a_constant_confidence_gives_one_bin():
    right = np.arange(10) < 7
    table = reliability_table(np.full(10, 0.9), right, 5)
    assert [(row.confidence, row.accuracy, row.n) for row in table] == [
        (pytest.approx(0.9), 0.7, 10)
    ]


def test_certain_and_right_has_no_calibration_error():
    assert expected_calibration_error(np.ones(10), np.ones(10, bool), 5) == 0


def test_certain_and_wrong_has_the_largest_calibration_error():
    assert expected_calibration_error(np.ones(10), np.zeros(10, bool), 5) == 1
