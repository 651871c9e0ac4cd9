import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from tasks.transferability.measures import knn_accuracy as module
from tasks.transferability.measures.knn_accuracy import classify_by_neighbors


def classed(n, columns, classes=2, *, seed=0, signal=0.8):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centers = rng.normal(0, signal, (classes, columns))
    return (rng.normal(size=(n, columns)) + centers[labels]).astype(np.float32), labels


def singletons(labels):
    return [f"image {i}" for i in range(len(labels))]


def loop(features, labels, groups, neighbors):
    """sklearn, refitted without the group of each image."""
    found = []
    for row, group in enumerate(groups):
        keep = np.array([other != group for other in groups])
        model = KNeighborsClassifier(neighbors, metric="cosine", algorithm="brute")
        found.append(model.fit(features[keep], labels[keep]).predict(features[[row]])[0])
    return np.array(found)


@pytest.mark.parametrize("neighbors", [1, 3, 5])
def test_predictions_equal_refits_of_sklearn(neighbors):
    features, labels = classed(60, 5)  # two classes and odd k: no ties
    found = classify_by_neighbors(features, labels, singletons(labels), neighbors=neighbors)
    np.testing.assert_array_equal(found, loop(features, labels, singletons(labels), neighbors))
    assert 0.5 < np.mean(found == labels) < 1


def test_images_of_the_same_group_do_not_vote():
    features, labels = classed(60, 5)
    groups = [str(i // 4) for i in range(60)]
    found = classify_by_neighbors(features, labels, groups, neighbors=3)
    np.testing.assert_array_equal(found, loop(features, labels, groups, 3))


def test_copies_do_not_make_random_labels_predictable():
    rng = np.random.default_rng(1)
    features = np.repeat(rng.normal(size=(100, 5)).astype(np.float32), 2, axis=0)
    labels = np.repeat(rng.integers(0, 2, 100), 2)
    copies = [str(i // 2) for i in range(200)]
    leaking = classify_by_neighbors(features, labels, singletons(labels), neighbors=1)
    honest = classify_by_neighbors(features, labels, copies, neighbors=1)
    assert np.mean(leaking == labels) == 1
    assert np.mean(honest == labels) < 0.65


def at(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_a_tie_goes_to_the_class_of_the_nearest():
    labels = np.array([9, 5, 2, 2, 5])
    found = classify_by_neighbors(at(0, 1, 2, 3, 4), labels, singletons(labels), neighbors=4)
    assert found[0] == 5  # two votes each, and 5 is nearest
    assert classify_by_neighbors(at(0, 2, 1, 3, 4), labels, singletons(labels), neighbors=4)[0] == 2


def test_renaming_classes_renames_predictions():
    features, labels = classed(80, 4, classes=5)
    names = np.array([3, 0, 4, 1, 2])
    found = classify_by_neighbors(features, labels, singletons(labels), neighbors=4)
    renamed = classify_by_neighbors(features, names[labels], singletons(labels), neighbors=4)
    np.testing.assert_array_equal(renamed, names[found])


def test_the_length_of_a_row_and_rotation_do_not_matter():
    features, labels = classed(50, 4)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    scale = np.random.default_rng(2).uniform(0.1, 10, (50, 1))
    moved = (scale * features @ rotation).astype(np.float32)
    np.testing.assert_array_equal(
        classify_by_neighbors(moved, labels, singletons(labels), neighbors=3),
        classify_by_neighbors(features, labels, singletons(labels), neighbors=3),
    )


def test_rows_in_several_batches_give_the_same(monkeypatch):
    features, labels = classed(50, 4)
    whole = classify_by_neighbors(features, labels, singletons(labels), neighbors=3)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 7)
    np.testing.assert_array_equal(
        classify_by_neighbors(features, labels, singletons(labels), neighbors=3), whole
    )


def test_more_neighbors_than_others_means_all_others():
    labels = np.array([1, 0, 0])
    found = classify_by_neighbors(at(0, 1, 2), labels, singletons(labels), neighbors=50)
    assert found.tolist() == [0, 0, 0]  # the second and third see a tie; the nearest is of class 0


def test_a_row_of_zeros_is_no_obstacle():
    features = np.concatenate([np.zeros((1, 2), np.float32), at(0, 5, 90)])
    labels = np.array([0, 1, 1, 0])
    found = classify_by_neighbors(features, labels, singletons(labels), neighbors=1)
    assert found[1:3].tolist() == [1, 1]
