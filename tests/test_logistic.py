"""The linear head is the multinomial logistic regression that sklearn finds."""

import numpy as np
import pytest
from scipy.stats import ortho_group
from sklearn.linear_model import LogisticRegression

from tasks.heads import features, linear
from tasks.heads.features import Labeled, measure_moments
from tasks.heads.linear import (
    LinearFit,
    ScaledRows,
    _objective,
    fit_path,
)
from tasks.judging.metrics import image_losses
from tasks.training.step import class_weights

N, D, C = 90, 6, 3


def make_data(views: int = 1, seed: int = 0, *, balanced: bool = False) -> Labeled:
    """Groups of images around three centers; `balanced`: two thirds of them are of one class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(N) % C
    labels[: N // 2 if balanced else 0] = 0
    centers = rng.normal(size=(C, D))
    clean = centers[labels] + rng.normal(size=(N, D))
    features = clean[:, None] + 0.3 * rng.normal(size=(N, views, D))
    scale, shift = np.array([1, 10, 0.1, 1, 5, 1]), np.array([0, 100, 3, -50, 0, 1])
    return Labeled(
        (features * scale + shift).astype(np.float32),
        labels,
        [str(i) for i in range(N)],
        balanced,
    )


def fit(data: Labeled, strengths: list[float], classes: int = C) -> list[LinearFit]:
    return list(fit_path(ScaledRows(data, np.arange(len(data.labels))), classes, strengths))


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("strength", [0.003, 0.1, 3.0])
def test_logits_are_those_of_sklearn(strength: float, balanced: bool):
    data = make_data(balanced=balanced)
    rows = data.features[:, 0]
    scaled = (rows - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0).mean())
    weight = "balanced" if balanced else None
    oracle = LogisticRegression(C=1 / (strength * N), max_iter=5000, tol=1e-8, class_weight=weight)
    oracle.fit(scaled, data.labels)
    ours = fit(data, [strength])[0].logits(rows).astype(np.float64)
    theirs = oracle.decision_function(scaled)
    ours -= ours.mean(axis=1, keepdims=True)
    theirs -= theirs.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(ours, theirs, atol=0.02)
    assert image_losses(ours, data.labels).mean() == pytest.approx(
        image_losses(theirs, data.labels).mean(), abs=1e-3
    )


@pytest.mark.parametrize("balanced", [False, True])
def test_the_gradient_is_that_of_finite_differences(balanced: bool):
    data = make_data(views=2, balanced=balanced)
    rows = ScaledRows(data, np.arange(N))
    flat = np.random.default_rng(1).normal(scale=0.5, size=C * (D + 1))
    gradient = _objective(flat, rows, C, 0.1)[1]
    steps = 1e-2 * np.eye(len(flat))
    rises = [
        _objective(flat + h, rows, C, 0.1)[0] - _objective(flat - h, rows, C, 0.1)[0] for h in steps
    ]
    np.testing.assert_allclose(gradient, np.array(rises) / 2e-2, atol=1e-3)


def test_repeating_every_view_changes_nothing():
    data = make_data()
    repeated = Labeled(np.repeat(data.features, 3, axis=1), data.labels, data.groups)
    one, three = fit(data, [0.1])[0], fit(repeated, [0.1])[0]
    np.testing.assert_allclose(one.weight, three.weight, rtol=1e-3, atol=1e-4)


def test_a_path_ends_where_a_fit_from_nothing_ends():
    data = make_data()
    path, alone = fit(data, [0.03, 3.0, 0.3]), fit(data, [0.03])
    assert [one.strength for one in path] == [3.0, 0.3, 0.03]
    rows = data.features[:, 0]
    np.testing.assert_allclose(path[-1].logits(rows), alone[0].logits(rows), atol=0.02)


def test_moving_turning_and_rescaling_all_features_leaves_the_logits_alone():
    data = make_data()
    turn = ortho_group.rvs(D, random_state=0)
    shift = np.array([0, 7, -1, 0, 20, 3])
    moved = (3 * data.features @ turn + shift).astype(np.float32)
    one = fit(data, [0.1])[0].logits(data.features[:, 0])
    two = fit(Labeled(moved, data.labels, data.groups), [0.1])[0].logits(moved[:, 0])
    np.testing.assert_allclose(one, two, atol=0.02)


def test_a_feature_that_hardly_varies_gets_no_large_weight():
    data = make_data()
    features = data.features.copy()
    features[..., 2] = 1e-4 * data.labels[:, None]  # tells the class, faintly
    weights = np.abs(fit(Labeled(features, data.labels, data.groups), [0.1])[0].weight)
    assert weights[:, 2].max() < weights.max()


def test_a_class_without_training_images_keeps_its_place_and_is_unlikely():
    data = make_data()
    fitted = fit(data, [0.1], classes=C + 1)[0]
    logits = fitted.logits(data.features[:, 0])
    assert logits.shape == (N, C + 1)
    assert not (logits.argmax(axis=1) == C).any()


def test_a_constant_feature_is_ignored():
    data = make_data()
    features = data.features.copy()
    features[..., 2] = 7.0
    fitted = fit(Labeled(features, data.labels, data.groups), [0.1])[0]
    np.testing.assert_allclose(fitted.weight[:, 2], 0, atol=1e-6)
    assert np.isfinite(fitted.logits(features[:, 0])).all()


def test_moments_are_those_of_all_rows_even_far_from_zero():
    data = make_data(views=3)
    shifted = Labeled(data.features + np.float32(4096), data.labels, data.groups)
    moments = measure_moments(shifted, np.arange(10, 50))
    rows = shifted.features[10:50].reshape(-1, D).astype(np.float64)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-7)
    np.testing.assert_allclose(moments.deviation, rows.std(axis=0), rtol=1e-4)
    assert moments.spread == pytest.approx(np.sqrt(rows.var(axis=0).mean()), rel=1e-4)


def test_rows_that_do_not_fit_in_memory_give_the_same_fit(monkeypatch: pytest.MonkeyPatch):
    data = make_data(views=2)
    kept = fit(data, [0.1])[0]
    monkeypatch.setattr(linear, "KEPT_BYTES", 0)
    monkeypatch.setattr(features, "ROWS_AT_ONCE", 7)
    streamed = fit(data, [0.1])[0]
    np.testing.assert_allclose(kept.weight, streamed.weight, rtol=1e-2, atol=1e-3)


def test_class_weights_are_inverse_frequencies_that_average_one():
    labels = np.array([0] * 6 + [1] * 3 + [3])
    weights = class_weights(labels, 4).numpy()
    np.testing.assert_allclose(weights, [10 / 18, 10 / 9, 0, 10 / 3], rtol=1e-6)
    assert weights[labels].mean() == pytest.approx(1.0)
