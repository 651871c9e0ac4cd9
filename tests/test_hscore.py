import numpy as np
import pytest
from conftest import ROOT
from sklearn.covariance import LedoitWolf

from tasks.params_file import load_params
from tasks.transferability.h_score import estimate_h_score
from tasks.transferability.sampling import Sample

PARAMS = load_params(ROOT / "params.yaml").similarity


def measure_h_score(features, labels):
    images = [str(number) for number in range(len(labels))]
    return estimate_h_score(Sample(features, labels, images), params=PARAMS).value


def classed(n, columns, classes=3, *, seed=0, signal=1.0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centers = np.random.default_rng(99).normal(0, signal, (classes, columns))
    return rng.normal(size=(n, columns)) + centers[labels], labels


def naive_h_score(features, labels):
    model = LedoitWolf().fit(features)
    means = np.zeros_like(features)
    for name in np.unique(labels):
        means[labels == name] = features[labels == name].mean(axis=0)
    between = np.cov(means, rowvar=False, ddof=0)
    return np.trace(np.linalg.inv(model.covariance_) @ between) * (1 - model.shrinkage_)


@pytest.mark.parametrize(("n", "columns", "classes"), [(60, 5, 3), (20, 40, 4), (200, 10, 2)])
def test_value_is_the_formula_with_the_covariance_of_sklearn(n, columns, classes):
    features, labels = classed(n, columns, classes)
    assert measure_h_score(features, labels) == pytest.approx(naive_h_score(features, labels))


def test_renaming_rotation_scale_and_shift_change_nothing():
    features, labels = classed(60, 5)
    value = measure_h_score(features, labels)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0]
    assert measure_h_score(features, np.array([9, 2, 5])[labels]) == pytest.approx(value)
    assert measure_h_score(7 * features @ rotation + 3, labels) == pytest.approx(value)


def test_classes_far_apart_reach_their_number_minus_one():
    labels = np.arange(3000) % 4
    noise = np.random.default_rng(0).normal(size=(3000, 4))
    assert measure_h_score(100 * np.eye(4)[labels] + noise, labels) == pytest.approx(3, abs=0.01)
    assert measure_h_score(*classed(3000, 3, classes=4, signal=0)) == pytest.approx(0, abs=0.02)


def test_jackknife_equals_one_by_hand():
    features, labels = classed(30, 4)
    groups = [str(i // 3) for i in range(30)]  # ten groups: each is one part
    values = [
        measure_h_score(features[keep], labels[keep])
        for part in range(10)
        if (keep := np.arange(30) // 3 != part).any()
    ]
    error = np.sqrt(9 / 10 * np.sum((np.array(values) - np.mean(values)) ** 2))
    found = estimate_h_score(Sample(features, labels, groups), params=PARAMS)
    assert found.value == pytest.approx(measure_h_score(features, labels))
    assert found.high - found.value == pytest.approx(2.2621572 * error)
    assert found.value - found.low == pytest.approx(2.2621572 * error)


def test_interval_has_the_width_of_repeated_samples():
    groups = [str(i) for i in range(150)]
    estimates = [
        estimate_h_score(Sample(*classed(150, 6, seed=seed, signal=0.5), groups), params=PARAMS)
        for seed in range(60)
    ]
    spread = np.std([e.value for e in estimates])
    half = np.mean([e.high - e.value for e in estimates])
    assert 0.85 * 1.96 * spread < half < 1.5 * 1.96 * spread


def test_constant_features_are_worth_nothing():
    labels = np.arange(12) % 3
    assert measure_h_score(np.ones((12, 4), np.float32), labels) == 0


def test_features_on_one_line_are_no_obstacle():
    labels = np.arange(12) % 2
    line = np.outer(np.where(labels, 1.0, -1.0), [1.0, 2.0, 3.0])
    assert measure_h_score(line, labels) == pytest.approx(1)
