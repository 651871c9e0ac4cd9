"""Weights under which the source comes nearest, and what distance is left."""

import numpy as np
import pytest
from scipy.optimize import minimize

from tasks.transferability import mmd
from tasks.transferability.matching import match_weights
from tasks.transferability.mmd import gaussian_kernel, measure_mmd, median_bandwidths


def normal(count, columns=4, *, seed, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1, (count, columns))


def problem(x, y):
    bandwidths = median_bandwidths(x)
    return gaussian_kernel(x, x, bandwidths), gaussian_kernel(y, x, bandwidths).mean(axis=0)


@pytest.mark.parametrize("shift", [0.0, 0.5, 3.0])
def test_weights_are_as_good_as_those_of_another_solver(shift):
    kernel, likeness = problem(normal(15, seed=1), normal(20, seed=2, shift=shift))

    def value(weights):
        return weights @ kernel @ weights - 2 * weights @ likeness

    found = match_weights(kernel, likeness)
    oracle = minimize(
        value, np.full(15, 1 / 15), jac=lambda w: 2 * (kernel @ w - likeness), method="SLSQP",
        bounds=[(0, 1)] * 15, constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
    )  # fmt: skip
    assert found.sum() == pytest.approx(1)
    assert found.min() >= 0
    assert value(found) == pytest.approx(oracle.fun, abs=1e-4)


def test_a_single_source_image_gets_all_the_weight():
    assert match_weights(np.ones((1, 1)), np.array([0.3])).tolist() == [1.0]


def measured(x, y, params):
    groups = [str(number) for number in range(len(y))]
    return measure_mmd(x, y, groups, name="card", params=params, seed=0)


def clusters(counts, *, seed, moved=0.0, columns=6):
    """Images of as many kinds as there are counts, each kind about its own center."""
    centers = np.random.default_rng(99).normal(0, 3, (len(counts), columns)) + moved
    noise = np.random.default_rng(seed).normal(0, 1, (sum(counts), columns))
    return np.repeat(centers, counts, axis=0) + noise


def test_few_kinds_of_the_source_are_narrow_and_not_far(tiny_params):
    params = tiny_params.similarity
    source = clusters([40] * 10, seed=1)
    narrow = measured(source, clusters([60, 60] + [0] * 8, seed=2), params)
    moved = measured(source, clusters([60, 60] + [0] * 8, seed=2, moved=1.0), params)
    wide = measured(source, clusters([12] * 10, seed=3), params)
    assert narrow.value > 0.1
    assert narrow.matched.value < 0.02
    assert moved.matched.low > narrow.matched.high
    assert abs(wide.narrowness) < 0.02


@pytest.mark.parametrize("full_rows", [5_000, 60])
def test_the_matched_distance_is_that_of_the_weighed_source(tiny_params, monkeypatch, full_rows):
    monkeypatch.setattr(mmd, "FULL_ROWS", full_rows)
    monkeypatch.setattr(mmd, "BLOCK_ROWS", 50)
    params = tiny_params.similarity.model_copy(update={"permutations": 20})
    x, y = normal(30, seed=1), normal(100, seed=2, shift=0.6)
    groups = [str(number // 2) for number in range(100)]
    found = measure_mmd(x, y, groups, name="card", params=params, seed=3)
    kernel, likeness = problem(x, y)
    weights = match_weights(kernel, likeness)
    within = gaussian_kernel(y, y, median_bandwidths(x))
    apart = np.arange(100)[:, None] // 2 != np.arange(100) // 2
    expected = weights @ kernel @ weights + within[apart].mean() - 2 * weights @ likeness
    assert found.estimator == ("full" if full_rows == 5_000 else "block")
    tolerance = 1e-9 if found.estimator == "full" else 0.02
    assert found.matched.value == pytest.approx(expected, abs=tolerance)


def test_the_interval_of_the_matched_distance_holds_that_of_many_images(tiny_params):
    params = tiny_params.similarity.model_copy(update={"permutations": 20, "bootstrap": 200})
    source = clusters([15] * 8, seed=1)
    population = clusters([900, 600] + [0] * 6, seed=2, moved=0.7)
    truth = measured(source, population, params).matched.value
    inside = 0
    for run in range(60):
        rows = np.random.default_rng(run).choice(len(population), 80, replace=False)
        found = measured(source, population[rows], params).matched
        inside += found.low <= truth <= found.high
    assert inside >= 53
