"""Conformal sets: scores against naive loops, coverage that holds, thresholds at their ends."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import softmax

from tasks.judging.conformal import (
    build_sets,
    conformal_quantile,
    fit_thresholds,
    score_classes,
)


def draw(images, classes=5, seed=0, strength=2.0):
    """Probabilities of a model that is overconfident, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, classes)) * 2
    logits[np.arange(images), labels] += strength
    return softmax(2 * logits, axis=1), labels


def alone(count):
    return [str(number) for number in range(count)]


@given(seed=st.integers(0, 1000), classes=st.integers(2, 8))
@settings(max_examples=50, deadline=None)
def test_scores_are_those_of_a_naive_loop(seed, classes):
    probabilities, _ = draw(7, classes, seed)
    lac, aps = (score_classes(probabilities, method) for method in ("lac", "aps"))
    for image, p in enumerate(probabilities):
        for c in range(classes):
            assert lac[image, c] == 1 - p[c]
            together = sum(p[other] for other in range(classes) if p[other] >= p[c])
            assert aps[image, c] == pytest.approx(together)


@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=60), share=st.sampled_from([0.5, 0.9])
)  # fmt: skip
def test_the_quantile_is_the_one_of_the_definition(values, share):
    rank = -(-round((len(values) + 1) * share, 9) // 1)
    found = conformal_quantile(np.array(values), len(values), share)
    assert found == (sorted(values)[int(rank) - 1] if rank <= len(values) else None)


def test_groups_count_where_images_are_alike():
    values = np.repeat(np.linspace(0, 1, 20), 50)
    assert conformal_quantile(values, 20, 0.9) == pytest.approx(np.linspace(0, 1, 20)[18])
    assert conformal_quantile(values, 8, 0.9) is None
    assert conformal_quantile(np.array([]), 0, 0.9) is None


@pytest.mark.parametrize("method", ["lac", "aps"])
def test_labels_are_covered_as_often_as_asked_over_many_draws(method):
    covered = []
    for seed in range(60):
        val, labels = draw(150, seed=seed)
        test, of_test = draw(400, seed=1000 + seed)
        fitted = fit_thresholds(score_classes(val, method), labels, alone(150), coverage=0.8)
        sets = build_sets(test, fitted, method)
        covered.append(sets[np.arange(400), of_test].mean())
    low, high = stats.t.interval(0.999, 59, np.mean(covered), stats.sem(covered))
    assert low < 0.85
    assert high > 0.8  # never too few; a class that is rare in val makes it more


def test_every_class_is_covered_where_its_own_counts_allow():
    val, labels = draw(3000, seed=1)
    test, of_test = draw(3000, seed=2)
    val[labels == 4], test[of_test == 4] = (
        np.roll(val[labels == 4], 1, axis=1),
        np.roll(test[of_test == 4], 1, axis=1),
    )
    sets = build_sets(
        test, fit_thresholds(score_classes(val, "lac"), labels, alone(3000), coverage=0.9)
    )
    for c in range(5):
        of = of_test == c
        assert sets[of, c].mean() == pytest.approx(0.9, abs=0.05)


def test_a_class_with_few_images_shares_the_threshold_of_all():
    val, labels = draw(400, seed=3)
    few = np.flatnonzero(labels == 2)[5:]
    kept = np.setdiff1d(np.arange(400), few)
    fitted = fit_thresholds(
        score_classes(val, "lac")[kept], labels[kept], alone(len(kept)), coverage=0.9
    )
    own = 1 - val[kept, labels[kept]]
    assert fitted[2] == conformal_quantile(own, len(kept), 0.9)
    assert len(set(fitted)) == 1


def test_classes_with_few_images_share_a_threshold_of_their_own():
    rng = np.random.default_rng(5)
    shares = np.r_[np.full(5, 0.1), np.full(40, 0.5 / 40)]  # frequent classes are easy, others hard
    held: list[bool] = []
    of_rare: list[bool] = []

    def draw_hard(images):
        labels = rng.choice(45, images, p=shares)
        logits = rng.normal(size=(images, 45))
        logits[np.arange(images), labels] += np.where(labels < 5, 5.0, 1.0)
        return softmax(logits, axis=1), labels

    for _ in range(20):
        (val, labels), (test, of_test) = draw_hard(800), draw_hard(800)
        fitted = fit_thresholds(score_classes(val, "lac"), labels, alone(800), coverage=0.9)
        assert len(set(fitted)) == 6
        covered = build_sets(test, fitted)[np.arange(800), of_test]
        held += list(covered)
        of_rare += list(covered[of_test >= 5])
    assert np.mean(held) > 0.89
    assert np.mean(of_rare) == pytest.approx(0.9, abs=0.03)


def test_with_hardly_any_val_image_every_class_is_in_every_set():
    val, labels = draw(5, seed=4)
    fitted = fit_thresholds(score_classes(val, "lac"), labels, alone(5), coverage=0.9)
    assert fitted == [1.0] * 5
    assert build_sets(draw(9)[0], fitted).all()


@pytest.mark.parametrize("method", ["lac", "aps"])
def test_the_likeliest_class_is_in_every_set(method):
    test, _ = draw(50, seed=6)
    sets = build_sets(test, [0.0] * 5, method)
    assert (sets.sum(axis=1) == 1).all()
    assert sets[np.arange(50), test.argmax(axis=1)].all()
