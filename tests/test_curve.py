import numpy as np
import pytest
from conftest import ROOT
from scipy.stats import norm

from tasks.artifacts.records import Estimate
from tasks.heads.curve import describe_curve, foretell_doubling, measure_curve
from tasks.heads.features import Labeled
from tasks.heads.linear import choose_linear
from tasks.judging.rule import ValSet
from tasks.params_file import load_params

STRENGTHS = load_params(ROOT / "params.yaml").baseline.l2_strengths


def features(images, seed, views=1, dim=12, classes=3):
    """Overlapping blobs: more images make a better head."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    centers = np.random.default_rng(0).normal(0, 0.45, (classes, dim))
    rows = centers[labels][:, None] + rng.normal(0, 1, (images, views, dim))
    return Labeled(
        rows.astype(np.float32), labels.astype(np.int64), [f"{seed}-{i}" for i in range(images)]
    )


def wrong_by(errors, images, seed=0):
    """Which val images each head has wrong: exactly that share, the same ones first."""
    order = np.random.default_rng(seed).permutation(images)
    return np.array([order < round(error * images) for error in errors])


def test_points_are_those_of_heads_fitted_on_the_parts_alone():
    train, val = features(240, 1, views=2), features(150, 2)
    curve = measure_curve(train, val, STRENGTHS, classes=3, seed=17)
    assert [point.images for point in curve.points] == [30, 60, 120, 240]
    whole = choose_linear(train, val, STRENGTHS, classes=3, seed=17).chosen
    logits = whole.logits(val.features[:, 0])
    assert curve.points[-1].val_accuracy.value == val.judge.accuracy(logits)
    assert curve.points[-1].val_loss == val.judge.loss(logits)
    before, after = (point.val_accuracy.value for point in curve.points[-2:])
    assert curve.last_step.value == pytest.approx(after - before)
    assert measure_curve(train, val, STRENGTHS, classes=3, seed=17) == curve
    assert measure_curve(train, val, STRENGTHS, classes=3, seed=17, whole=logits) == curve


def test_parts_with_hardly_an_image_a_class_are_left_out():
    curve = measure_curve(features(12, 1), features(60, 2), STRENGTHS, classes=3, seed=17)
    assert [point.images for point in curve.points] == [6, 12]
    curve = measure_curve(features(6, 1), features(60, 2), STRENGTHS, classes=3, seed=17)
    assert [point.images for point in curve.points] == [6]
    assert (curve.last_step, curve.pays, curve.doubling) == (None, False, None)


STEP = Estimate(value=0.0, low=-0.01, high=0.01, n=1)


def test_an_exact_power_law_is_continued():
    images, errors = [100, 200, 400, 800], [0.4, 0.2, 0.1, 0.05]
    val = ValSet(np.zeros(100_000, np.int64), [str(i) for i in range(100_000)])
    found = foretell_doubling(images, wrong_by(errors, 100_000), STEP, val, seed=3)
    assert found.value == pytest.approx(0.025, abs=1e-4)
    assert found.high - found.low == pytest.approx(2**0.5 * 0.02, rel=0.01)


def test_a_flat_or_falling_curve_promises_nothing():
    val = ValSet(np.zeros(200, np.int64), [str(i) for i in range(200)])
    for errors in ([0.2, 0.2, 0.2], [0.1, 0.15, 0.2]):
        found = foretell_doubling([10, 20, 40], wrong_by(errors, 200), STEP, val, seed=3)
        assert found.value == pytest.approx(0, abs=1e-12)
        assert found.low < 0 < found.high


def test_the_interval_holds_the_step_that_comes():
    """Heads of random luck around a power law, each judged on the same 300 images."""
    images, errors = [100, 200, 400, 800, 1600], 0.4 * 0.75 ** np.arange(5)
    rng, hits = np.random.default_rng(5), 0
    val = ValSet(np.zeros(300, np.int64), [str(i) for i in range(300)])
    for _ in range(60):
        hard = rng.normal(0, 1, 300)  # of an image, for all heads
        noise = hard + 0.6 * rng.normal(0, 1, (5, 300))
        wrong = noise < norm.ppf(errors, scale=np.hypot(1, 0.6))[:, None]
        logits = [np.stack([~w, w], axis=1).astype(np.float32) for w in wrong]
        curve = describe_curve(images[:4], logits[:4], val, seed=3)
        came = wrong[3].mean() - wrong[4].mean()
        hits += curve.doubling.low <= came <= curve.doubling.high
    assert hits >= 51  # of 60 at 90 %


def test_groups_widen_the_interval():
    images, errors = [100, 200, 400], [0.4, 0.3, 0.2]
    wrong = wrong_by(errors, 300)
    order = np.argsort(wrong.sum(axis=0), kind="stable")
    groups = np.empty(300, dtype=object)
    groups[order] = [str(number // 10) for number in range(300)]  # alike within a group
    logits = [np.stack([~w, w], axis=1).astype(np.float32) for w in wrong]
    alone = ValSet(np.zeros(300, np.int64), [str(i) for i in range(300)])
    grouped = ValSet(np.zeros(300, np.int64), groups.tolist())
    curves = [describe_curve(images, logits, val, seed=3).doubling for val in (alone, grouped)]
    widths = [found.high - found.low for found in curves]
    assert widths[1] > 1.5 * widths[0]


def test_more_images_pay_only_beyond_doubt():
    labels = np.arange(300) % 2
    right = np.eye(2, dtype=np.float32)[labels] * 2
    val = ValSet(labels, [str(i) for i in range(300)])
    worse = right.copy()
    worse[:60] = worse[:60, ::-1]
    assert describe_curve([10, 20], [worse, right], val, seed=3).pays
    assert not describe_curve([10, 20], [right, right], val, seed=3).pays
