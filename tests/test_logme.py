import numpy as np
import pytest
from conftest import ROOT
from scipy import optimize, stats

from tasks.params_file import load_params
from tasks.transferability.logme import estimate_logme, measure_logme
from tasks.transferability.sampling import Sample

PARAMS = load_params(ROOT / "params.yaml").similarity


def classed(n, columns, classes=3, *, seed=0, signal=1.0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centers = rng.normal(0, signal, (classes, columns))
    return rng.normal(size=(n, columns)) + centers[labels], labels


def log_evidence(features, targets, alpha, beta):
    """The labels' marginal distribution itself: normal with covariance I / beta + XX' / alpha."""
    covariance = np.eye(len(targets)) / beta + features @ features.T / alpha
    return stats.multivariate_normal(np.zeros(len(targets)), covariance).logpdf(targets)


def brute_force(features, labels):
    values = []
    for name in np.unique(labels):
        targets = (labels == name).astype(float)
        best = min(
            (
                optimize.minimize(
                    lambda v, t=targets: -log_evidence(features, t, *np.exp(v.clip(-15, 15))),
                    start,
                    method="Nelder-Mead",
                    options={"xatol": 1e-6, "fatol": 1e-10, "maxiter": 4000},
                )
                for start in ([0.0, 0.0], [3.0, 3.0], [0.0, 3.0])
            ),
            key=lambda found: found.fun,
        )
        values.append(-best.fun / len(labels))
    return np.mean(values)


@pytest.mark.parametrize(("n", "columns"), [(30, 4), (12, 12), (10, 25)])
def test_value_is_the_largest_evidence_found_by_brute_force(n, columns):
    features, labels = classed(n, columns)
    assert measure_logme(features, labels).value == pytest.approx(
        brute_force(features, labels), abs=1e-5
    )


def fixed_point(features, labels):
    """The iteration of You et al. 2021, for more rows than features."""
    n, d = features.shape
    values, vectors = np.linalg.eigh(features.T @ features)
    found = []
    for name in np.unique(labels):
        y = (labels == name).astype(float)
        alpha = beta = 1.0
        for _ in range(500):
            gamma = np.sum(beta * values / (alpha + beta * values))
            m = vectors @ (vectors.T @ (features.T @ y) * beta / (alpha + beta * values))
            alpha = gamma / (m @ m)
            beta = (n - gamma) / np.sum((features @ m - y) ** 2)
        found.append(log_evidence(features, y, alpha, beta) / n)
        assert d <= n
    return np.mean(found)


def test_value_is_where_the_fixed_point_iteration_of_the_paper_ends():
    features, labels = classed(60, 5)
    assert measure_logme(features, labels).value == pytest.approx(
        fixed_point(features, labels), abs=1e-7
    )


def test_renaming_classes_and_rotating_features_changes_nothing():
    features, labels = classed(40, 6)
    value = measure_logme(features, labels).value
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    assert measure_logme(features, np.array([7, 0, 3])[labels]).value == pytest.approx(value)
    assert measure_logme(features @ rotation, labels).value == pytest.approx(value)


def test_features_that_tell_the_classes_score_higher():
    scores = [measure_logme(*classed(90, 10, signal=s)).value for s in (0.0, 0.5, 2.0)]
    assert scores == sorted(scores)


def test_influence_is_the_change_when_a_row_is_weighed_more():
    # A row of weight 1 + e is a row scaled by sqrt(1 + e), but for the constant of the density.
    features, labels = classed(25, 3, classes=2)
    targets = [(labels == name).astype(float) for name in (0, 1)]

    def weighed(row, extra):
        scale = np.ones(25)
        scale[row] = np.sqrt(1 + extra)
        total = 0.0
        for y in targets:

            def negative(v, y=y):
                x = features * scale[:, None]
                beta = np.exp(v[1])
                constant = extra / 2 * np.log(beta / (2 * np.pi))
                return -(log_evidence(x, y * scale, np.exp(v[0]), beta) + constant)

            start = optimize.minimize(negative, [1.0, 1.0], method="Nelder-Mead").x
            found = optimize.minimize(
                negative, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}
            )
            total -= found.fun / 2
        return total / (25 + extra)

    influences = measure_logme(features, labels).influences
    for row in (0, 7, 20):
        numeric = (weighed(row, 0.01) - weighed(row, -0.01)) / 0.02
        assert influences[row] == pytest.approx(numeric, rel=1e-3, abs=1e-6)


def test_interval_has_the_width_of_repeated_samples():
    groups = [str(i) for i in range(120)]
    samples = [classed(120, 5, classes=2, seed=0, signal=0.7)]
    rng = np.random.default_rng(5)
    centers = rng.normal(0, 0.7, (2, 5))
    labels = np.arange(120) % 2
    samples = [(rng.normal(size=(120, 5)) + centers[labels], labels) for _ in range(100)]
    estimates = [estimate_logme(Sample(x, y, groups), params=PARAMS) for x, y in samples]
    spread = np.std([e.value for e in estimates])
    half = np.mean([e.high - e.value for e in estimates])
    # Labels are balanced in every sample here, so the spread is a little below that of free draws.
    assert 0.9 * 1.96 * spread < half < 1.4 * 1.96 * spread


def test_interval_is_wider_where_images_come_in_groups():
    features, labels = classed(60, 5, classes=2)
    features, labels = np.repeat(features, 3, axis=0), np.repeat(labels, 3)
    alone, grouped = (
        estimate_logme(
            Sample(features, labels, [str(i // size) for i in range(180)]), params=PARAMS
        )
        for size in (1, 3)
    )
    assert grouped.value == alone.value
    assert (grouped.high - grouped.low) == pytest.approx(
        np.sqrt(3) * (alone.high - alone.low), rel=0.03
    )


def test_classes_without_an_image_and_constant_features_are_no_obstacle():
    labels = np.array([0, 4, 0, 4, 4, 0])
    result = measure_logme(np.ones((6, 3), np.float32), labels)
    assert np.isfinite(result.value)
    assert np.isfinite(measure_logme(np.zeros((6, 3), np.float32), labels).value)
