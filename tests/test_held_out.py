"""Folds by group: nobody is judged by a head that knows its group; what is fitted is bounded."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tasks.auditing import held_out as module
from tasks.auditing.held_out import Pool, assign_folds, choose_images, hold_out
from tasks.heads.features import Labeled


def draw(images: int, groups: int, classes: int = 3, seed: int = 0) -> Labeled:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    features = rng.normal(0, 1, (images, 2, 6)).astype(np.float32)
    features[np.arange(images), :, labels] += 2
    return Labeled(features, labels, [f"g{number}" for number in rng.integers(0, groups, images)])


def test_a_group_lies_in_one_fold_and_a_class_in_many() -> None:
    data = draw(400, 60)
    folds = assign_folds(data.labels, data.groups, seed=0)
    for group in set(data.groups):
        members = [fold for fold, own in zip(folds, data.groups, strict=True) if own == group]
        assert len(set(members)) == 1
    assert all(len(set(folds[data.labels == label])) == 5 for label in range(3))


def test_classes_of_single_images_are_dealt_evenly() -> None:
    labels = np.repeat(np.arange(4), [50, 10, 5, 100])
    folds = assign_folds(labels, [str(number) for number in range(165)], seed=1)
    for label, images in enumerate((50, 10, 5, 100)):
        assert np.bincount(folds[labels == label], minlength=5).tolist() == [images // 5] * 5


def test_folds_do_not_depend_on_the_order_of_the_images() -> None:
    labels = np.repeat(np.arange(3), 30)
    groups = [f"g{number // 2}" for number in range(90)]
    folds = assign_folds(labels, groups, seed=2)
    order = np.random.default_rng(0).permutation(90)
    again = assign_folds(labels[order], [groups[number] for number in order], seed=2)
    np.testing.assert_array_equal(again, folds[order])
    assert np.any(assign_folds(labels, groups, seed=3) != folds)


@pytest.mark.parametrize("balanced", [False, True])
def test_an_answer_is_that_of_a_head_fitted_without_its_fold(*, balanced: bool) -> None:
    parts = [replace(draw(*size), balanced=balanced) for size in ((120, 40), (60, 20, 3, 5))]
    parts[0].labels[:40] = 0
    pool = Pool(parts)
    held_out = hold_out(pool, 0.05, classes=3, seed=7)
    folds = assign_folds(pool.labels, pool.groups, seed=7)
    features = np.concatenate([part.features[:, 0] for part in parts]).astype(np.float64)
    judged, log_p = (np.concatenate(parts) for parts in zip(*held_out.answers(), strict=True))
    answers = log_p[np.argsort(judged)]
    assert sorted(judged.tolist()) == list(range(180))
    for fold in range(5):
        others = folds != fold
        mean, spread = features[others].mean(0), np.sqrt(features[others].var(0).mean())
        oracle = LogisticRegression(
            C=1 / (0.05 * others.sum()),
            class_weight="balanced" if balanced else None,
            tol=1e-8,
            max_iter=2000,
        )
        oracle.fit((features[others] - mean) / spread, pool.labels[others])
        expected = oracle.predict_log_proba((features[~others] - mean) / spread)
        np.testing.assert_allclose(answers[~others], expected, atol=0.02)


def test_features_of_several_parts_come_in_the_order_asked_for() -> None:
    parts = [draw(5, 5), draw(4, 4, seed=1)]
    found = Pool(parts).features(np.array([7, 0, 5, 4]))
    first, second = (part.features[:, 0] for part in parts)
    np.testing.assert_array_equal(found, [second[2], first[0], second[0], first[4]])


def test_one_group_alone_is_judged_by_nobody() -> None:
    data = draw(20, 1)
    held_out = hold_out(Pool([data]), 0.1, classes=3, seed=0)
    assert (held_out.judge == -1).all()
    assert list(held_out.answers()) == []


def test_of_many_images_every_class_keeps_its_share() -> None:
    labels = np.repeat(np.arange(3), [900, 90, 10])
    chosen = choose_images(labels, 100, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [90, 9, 1]
    assert choose_images(labels, 3, seed=0).size == len(
        set(labels[choose_images(labels, 3, seed=0)])
    )
    np.testing.assert_array_equal(choose_images(labels, 5000, seed=0), np.arange(1000))


def test_what_a_head_is_fitted_on_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    scaled = module.ScaledRows
    monkeypatch.setattr(
        module, "ScaledRows", lambda data, images: seen.append(len(images)) or scaled(data, images)
    )
    monkeypatch.setattr(module, "MOST_IMAGES", 50)
    data = draw(200, 100)
    held_out = hold_out(Pool([data]), 0.1, classes=3, seed=0)
    assert seen == [50] * 5
    assert (held_out.judge >= 0).all()
