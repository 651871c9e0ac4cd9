"""Confident learning: an example by hand, the reference's answers, planted noise."""

import numpy as np
import pytest

from tasks.artifacts.arrays import Floats, Ints
from tasks.auditing.held_out import Pool, hold_out
from tasks.auditing.suspects import Suspects, find_suspects
from tasks.heads.features import Labeled


def find(labels: list[int], probabilities: list[list[float]], block: int = 100) -> Suspects:
    p = np.array(probabilities)
    numbers = [np.arange(at, min(at + block, len(p))) for at in range(0, len(p), block)]
    with np.errstate(divide="ignore"):
        log_p = np.log(p)
    return find_suspects(
        np.array(labels), lambda: [(some, log_p[some]) for some in numbers], classes=p.shape[1]
    )


BY_HAND = (
    [0, 0, 0, 1, 1, 1],
    [[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.1, 0.9], [0.4, 0.6], [0.8, 0.2]],
)  # thresholds 0.6 and 0.5667: the third and the last image count for the other class


@pytest.mark.parametrize("block", [1, 4, 6])
def test_an_image_that_counts_for_another_class_is_a_suspect(block: int) -> None:
    found = find(*BY_HAND, block=block)
    assert found.images.tolist() == [2, 5]
    assert found.likely.tolist() == [1, 0]
    assert found.label_probability == pytest.approx([0.2, 0.2])
    assert found.likely_probability == pytest.approx([0.8, 0.8])
    assert found.margins == pytest.approx([0.8, 0.4, -0.6, 0.8, 0.2, -0.6])


def test_an_image_below_the_threshold_of_every_other_class_is_none() -> None:
    labels, probabilities = [0, 0, 1, 1], [[0.9, 0.1], [0.45, 0.55], [0.05, 0.95], [0.1, 0.9]]
    assert find(labels, probabilities).images.tolist() == []  # 0.55 is below 0.925


def by_the_paper(labels: Ints, p: Floats) -> list[tuple[int, int]]:
    """Equations 1 and 2 of 1911.00068, written out image by image."""
    classes = range(p.shape[1])
    t = [np.mean([p[i, j] for i in range(len(p)) if labels[i] == j]) for j in classes]
    pairs = []
    for i in range(len(p)):
        above = [j for j in classes if p[i, j] >= t[j]]
        if above and p[i].argmax() != labels[i]:
            likely = max(above, key=lambda j: p[i, j])
            if likely != labels[i]:
                pairs.append((i, likely))
    return pairs


# Of cleanlab 2.9.0 on the images below: find_label_issues with filter_by="confident_learning" and
# return_indices_ranked_by="normalized_margin" gives 47, these first.
CLEANLAB = [295, 168, 26, 76, 137, 59, 27, 266]


def test_suspects_are_those_of_the_published_equations() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, 300)
    p = rng.dirichlet(np.ones(4), 300) + 0.4 * np.eye(4)[labels]
    p /= p.sum(axis=1, keepdims=True)
    found = find(labels.tolist(), p.tolist())
    assert len(found.images) == 47
    assert found.images[:8].tolist() == CLEANLAB
    pairs = zip(found.images.tolist(), found.likely.tolist(), strict=True)
    assert sorted(pairs) == by_the_paper(labels, p)
    assert np.all(np.diff(found.margins[found.images]) >= 0)


def blobs(images: int, *, spread: float, seed: int) -> tuple[Labeled, Ints]:
    """Three classes of points in pairs, each pair a group; and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.integers(0, 3, images // 2), 2)
    features = rng.normal(0, spread, (images, 8)).astype(np.float32)
    features[np.arange(images), labels] += 4
    groups = [f"pair {image // 2}" for image in range(images)]
    return Labeled(features[:, None], labels, groups), labels


def test_planted_wrong_labels_are_found_with_the_right_class() -> None:
    data, labels = blobs(300, spread=0.5, seed=1)
    planted = np.random.default_rng(2).choice(300, 30, replace=False)
    noisy = labels.copy()
    noisy[planted] = (noisy[planted] + 1) % 3
    pool = Pool([Labeled(data.features, noisy, data.groups)])
    held_out = hold_out(pool, 0.1, classes=3, seed=0)
    found = find_suspects(noisy, held_out.answers, classes=3)
    assert set(np.argsort(found.margins)[:30].tolist()) == set(planted.tolist())
    assert set(found.images.tolist()) <= set(planted.tolist())
    assert len(found.images) > 20
    np.testing.assert_array_equal(found.likely, labels[found.images])


def test_a_class_of_one_group_is_not_judged() -> None:
    data, labels = blobs(60, spread=0.5, seed=4)
    lonely = np.append(labels, 3)
    features = np.concatenate([data.features, np.full((1, 1, 8), 9, np.float32)])
    pool = Pool([Labeled(features, lonely, [*data.groups, "alone"])])
    held_out = hold_out(pool, 0.1, classes=4, seed=0)
    found = find_suspects(lonely, held_out.answers, classes=4)
    assert held_out.judge[-1] == -1
    assert np.flatnonzero(np.isnan(found.margins)).tolist() == [60]
    assert 60 not in found.images
