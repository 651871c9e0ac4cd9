"""The test figure beside folds over all images: an oracle, planted luck, honest luck."""

import numpy as np
import pytest

from tasks.artifacts.arrays import Bools, Ints
from tasks.artifacts.records import Folds
from tasks.auditing.held_out import HeldOut, Pool, compare_with_folds, hold_out, right_in_folds
from tasks.heads.features import Labeled
from tasks.heads.linear import ScaledRows, fit_path
from tasks.params import EvaluateParams, Params


@pytest.fixture
def params(default_params: Params) -> EvaluateParams:
    return default_params.evaluate


def make(images: int = 400, *, copies: int = 1, seed: int = 0) -> HeldOut:
    """Two overlapping classes; each image stands `copies` times in its group."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, images)
    features = rng.normal(0, 1, (images, 4)).astype(np.float32)
    features[:, 0] += 2 * labels
    groups = [f"g{number}" for number in np.repeat(np.arange(images), copies)]
    data = Labeled(np.repeat(features, copies, axis=0)[:, None], np.repeat(labels, copies), groups)
    return hold_out(Pool([data]), 0.1, classes=2, seed=seed)


def compare(held_out: HeldOut, test: Ints, right: Bools, params: EvaluateParams) -> Folds:
    found = compare_with_folds(held_out, test, right, params, seed=0)
    assert found is not None
    return found


def test_the_accuracy_of_the_folds_is_that_of_all_images(params: EvaluateParams) -> None:
    held_out = make()
    right = right_in_folds(held_out)
    found = compare(held_out, np.arange(80), right[:80], params)
    assert 0.7 < found.accuracy.value == pytest.approx(right.mean())
    assert found.accuracy.n == 400
    sizes = np.bincount(held_out.judge)
    assert np.average(found.by_fold, weights=sizes) == pytest.approx(right.mean())
    assert found.difference.value == pytest.approx(right[:80].mean() - right.mean())


@pytest.mark.parametrize("copies", [1, 5])
def test_the_difference_varies_as_resampled_groups_do(params: EvaluateParams, copies: int) -> None:
    held_out = make(copies=copies)
    right = right_in_folds(held_out)
    test = np.arange(100 * copies)
    found = compare(held_out, test, right[test], params)
    rng = np.random.default_rng(0)
    by_group = right.reshape(-1, copies).sum(axis=1)
    gaps = []
    for _ in range(4000):
        drawn = rng.integers(0, 400, 400)
        tested = drawn[drawn < 100]
        gaps.append((by_group[tested].mean() - by_group[drawn].mean()) / copies)
    assert found.difference.low is not None
    assert found.difference.high is not None
    half = (found.difference.high - found.difference.low) / 2
    assert half == pytest.approx(1.96 * np.std(gaps), rel=0.12)


def test_a_test_set_of_easy_images_is_told(params: EvaluateParams) -> None:
    held_out = make()
    right = right_in_folds(held_out)
    easy = np.flatnonzero(right)[:80]
    found = compare(held_out, easy, right[easy], params)
    assert found.outside
    assert found.difference.value > 0


def test_tests_drawn_by_chance_are_seldom_told(params: EvaluateParams) -> None:
    held_out = make()
    right = right_in_folds(held_out)
    rng = np.random.default_rng(1)
    told = []
    for _ in range(60):
        test = rng.choice(400, 80, replace=False)
        told.append(compare(held_out, test, right[test], params).outside)
    assert np.mean(told) < 0.12


@pytest.mark.parametrize("balanced", [False, True])
def test_of_a_rare_class_a_baseline_tested_by_chance_is_seldom_told(
    params: EvaluateParams, *, balanced: bool
) -> None:
    rng, told = np.random.default_rng(2), []
    labels = (np.arange(500) < 40).astype(np.int64)
    features = rng.normal(0, 1, (500, 1, 4)).astype(np.float32)
    features[:, 0, 0] += labels
    data = Labeled(features, labels, [str(number) for number in range(500)], balanced)
    held_out = hold_out(Pool([data]), 0.1, classes=2, seed=0)
    for _ in range(40):
        train, test = np.split(rng.permutation(500), [400])
        head = next(fit_path(ScaledRows(data, train), 2, [0.1]))
        right = head.logits(features[test, 0]).argmax(axis=1) == labels[test]
        told.append(compare(held_out, test, right, params).outside)
    assert np.mean(told) <= 0.1


def test_one_group_in_test_tells_nothing(params: EvaluateParams) -> None:
    held_out = make(40, copies=10)
    right = np.ones(10, dtype=np.bool_)
    assert not compare(held_out, np.arange(10), right, params).outside


def test_without_folds_there_is_no_figure(params: EvaluateParams) -> None:
    data = Labeled(np.ones((6, 1, 2), np.float32), np.array([0, 1] * 3), ["one"] * 6)
    held_out = hold_out(Pool([data]), 0.1, classes=2, seed=0)
    right = np.ones(2, dtype=np.bool_)
    assert compare_with_folds(held_out, np.arange(2), right, params, seed=0) is None
