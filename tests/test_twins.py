"""Twins by features: planted ones are found, unrelated images are not, also in a train of twins."""

import numpy as np
import pytest

from tasks.artifacts.arrays import Features, Ints
from tasks.auditing.propose_groups import are_neighbors, propose_groups
from tasks.auditing.twins import (
    CROWD,
    DOUBTFUL,
    SURE,
    Nearest,
    Whitened,
    choose_threshold,
    find_nearest,
    find_pairs,
    measure_pairs,
    whiten,
)

IMAGES, WIDTH, CLASSES = 400, 96, 2


def draw_features(count: int, seed: int) -> tuple[Features, Ints]:
    """Features with classes, unequal variances and something that all of them share."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    scale = np.geomspace(3, 0.3, WIDTH)
    centers = np.random.default_rng(0).normal(0, 2, (CLASSES, WIDTH))
    features = 5 + centers[labels] + rng.normal(0, 1, (count, WIDTH)) * scale
    return features.astype(np.float32), labels.astype(np.int64)


def take_again(features: Features, seed: int) -> Features:
    """The same things, seen a little otherwise."""
    noise = np.random.default_rng(seed).normal(0, 1, features.shape)
    return (features + 0.2 * noise * features.std(0)).astype(np.float32)


def look(train: Features, labels: Ints, test: Features, tested: Ints) -> tuple[Nearest, float]:
    """Nearest training images of test images, and the threshold."""
    white = whiten(np.concatenate([train, test]), seed=1)
    everything = Whitened(
        white, np.concatenate([labels, tested]), np.arange(len(white), dtype=np.int64)
    )
    trained = everything.take(np.arange(len(train)))
    pairs = measure_pairs(trained, seed=1)
    threshold = choose_threshold(find_nearest(trained, trained, pairs, apart=True, rank=CROWD))
    images = everything.take(np.arange(len(train), len(white)))
    return find_nearest(images, trained, pairs, apart=False), threshold


def test_whitened_features_are_uncorrelated_and_of_length_one() -> None:
    features, _ = draw_features(5_000, 1)
    white = whiten(features, seed=1).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(white, axis=1), 1, rtol=1e-5)
    correlation = np.corrcoef(white.T)
    assert np.abs(correlation - np.eye(WIDTH)).max() < 0.1
    spread = white.std(0)
    before = features.std(0)
    assert spread.max() / spread.min() < 0.5 * before.max() / before.min()


def test_planted_twins_are_found_with_their_images() -> None:
    train, labels = draw_features(IMAGES, 1)
    chosen = np.arange(0, 100)
    nearest, threshold = look(train, labels, take_again(train[chosen], 2), labels[chosen])
    assert (nearest.rows == chosen).mean() > 0.98
    assert nearest.twins(threshold).mean() > 0.9


def test_unrelated_images_hardly_seem_to_be_twins() -> None:
    train, labels = draw_features(IMAGES, 1)
    nearest, threshold = look(train, labels, *draw_features(300, 3))
    assert nearest.twins(threshold).mean() <= 0.02
    assert DOUBTFUL <= threshold <= SURE


def test_a_train_full_of_twins_hides_none() -> None:
    once, labels = draw_features(IMAGES, 1)
    train = np.concatenate([once, take_again(once, 4), take_again(once, 5)])
    nearest, threshold = look(train, np.tile(labels, 3), take_again(once, 6), labels)
    assert nearest.twins(threshold).mean() > 0.9
    fresh, threshold = look(train, np.tile(labels, 3), *draw_features(300, 7))
    assert fresh.twins(threshold).mean() <= 0.02


def test_images_of_one_group_are_no_neighbors_where_groups_are_kept_apart() -> None:
    features, labels = draw_features(50, 1)
    sample = Whitened(whiten(features, seed=1), labels, np.zeros(50, np.int64))
    nearest = find_nearest(
        sample, sample, {-1: measure_pairs(apart_of(sample), seed=1)[-1]}, apart=True
    )
    assert set(nearest.rows.tolist()) == {-1}
    assert not nearest.twins(SURE).any()


def apart_of(sample: Whitened) -> Whitened:
    return Whitened(sample.features, sample.labels, np.arange(len(sample.labels)))


def test_the_order_of_images_changes_nothing() -> None:
    train, labels = draw_features(IMAGES, 1)
    test, tested = take_again(train[:50], 2), labels[:50]
    found, _ = look(train, labels, test, tested)
    order = np.random.default_rng(8).permutation(50)
    shuffled, _ = look(train, labels, test[order], tested[order])
    np.testing.assert_array_equal(shuffled.rows, found.rows[order])
    np.testing.assert_allclose(shuffled.deviations, found.deviations[order], rtol=1e-3)


def test_few_training_images_give_the_sure_threshold() -> None:
    found = Nearest(np.zeros(10, np.int64), np.zeros(10), np.full(10, 9.0))
    assert choose_threshold(found) == SURE


@pytest.mark.parametrize(("reached", "threshold"), [(3.0, DOUBTFUL), (5.5, 11.0), (30.0, SURE)])
def test_the_threshold_is_twice_what_the_crowd_reaches(reached: float, threshold: float) -> None:
    found = Nearest(np.zeros(500, np.int64), np.zeros(500), np.full(500, reached))
    assert choose_threshold(found) == threshold


def test_pairs_are_those_of_brute_force() -> None:
    features, labels = draw_features(120, 1)
    sample = apart_of(Whitened(whiten(features, seed=1), labels, labels))
    yardsticks = measure_pairs(sample, seed=1)
    pairs, deviations = find_pairs(sample, yardsticks, 2.0)
    expected = {
        (a, b)
        for a in range(120)
        for b in range(a + 1, 120)
        if labels[a] == labels[b]
        for by in [yardsticks[int(labels[a])]]
        if (sample.features[a] @ sample.features[b] - by.median) / by.deviation >= 2.0
    }
    assert {(a, b) for a, b in pairs.tolist()} == expected
    assert deviations.min() >= 2.0


# proposed groups ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        ("cat/12.jpg", "cat/13.jpg", True),
        ("cat/12.jpg", "cat/40.jpg", False),
        ("cat/a12_3.jpg", "cat/a13_4.jpg", False),
        ("cat/12.jpg", "cat/12.png", False),
        ("cat/a.jpg", "cat/b.jpg", False),
    ],
)
def test_neighbors_differ_in_one_near_number(one: str, other: str, near: bool) -> None:
    assert are_neighbors(one, other) is near


def test_pictures_of_one_thing_and_known_groups_become_groups() -> None:
    once, labels = draw_features(IMAGES, 1)
    features = np.concatenate([once, take_again(once[:40], 2)])
    paths = [f"{number:x}.png" for number in range(len(features))]
    groups = [*(f"g{number}" for number in range(len(features) - 1)), "g100"]
    found = propose_groups(paths, np.concatenate([labels, labels[:40]]), groups, features, seed=1)
    joined = [found.get(paths[row]) == found.get(paths[IMAGES + row]) != None for row in range(40)]  # noqa: E711
    assert sum(joined) >= 36
    assert found[paths[100]] == found[paths[-1]]
    assert len(found) < 100
