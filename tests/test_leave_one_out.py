import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from tasks.transferability import leave_one_out as module
from tasks.transferability.leave_one_out import classify_by_ridge, decompose


def classed(n, columns, classes=3, *, seed=0, signal=0.6):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centers = rng.normal(0, signal, (classes, columns))
    return (rng.normal(size=(n, columns)) + centers[labels]).astype(np.float32), labels


def singletons(labels):
    return [f"image {i}" for i in range(len(labels))]


def refits(features, labels, groups):
    """sklearn's ridge refitted without each group, at every strength; the best by squared error.

    The means of the targets, which a left out image tilts against its class, are those of all.
    """
    rows = StandardScaler().fit_transform(features.astype(np.float64))
    targets = (labels[:, None] == np.unique(labels)).astype(float)
    mean_energy = np.mean(decompose(rows).energies)
    outputs = []
    for strength in module.STRENGTHS:
        out = np.empty_like(targets)
        for group in set(groups):
            inside = np.array([other == group for other in groups])
            model = Ridge(alpha=strength * mean_energy, solver="cholesky")
            out[inside] = model.fit(rows[~inside], targets[~inside]).predict(rows[inside])
            out[inside] += targets.mean(axis=0) - targets[~inside].mean(axis=0)
        outputs.append(out)
    best = min(outputs, key=lambda out: np.sum((out - targets) ** 2))
    return np.unique(labels)[best.argmax(axis=1)], best


@pytest.mark.parametrize(("n", "columns"), [(60, 8), (30, 50)])
@pytest.mark.parametrize(
    "group", [lambda i: i, lambda i: i // 3, lambda i: max(i, 4)], ids=["images", "threes", "mixed"]
)
def test_predictions_equal_explicit_refits(n, columns, group):
    features, labels = classed(n, columns)
    groups = [str(group(i)) for i in range(n)]
    found = classify_by_ridge(features, labels, groups)
    np.testing.assert_array_equal(found, refits(features, labels, groups)[0])
    assert 0.34 < np.mean(found == labels) < 1


@pytest.mark.parametrize(("columns", "classes"), [(6, 2), (90, 2), (6, 5)])
def test_features_that_tell_nothing_are_right_as_often_as_chance(columns, classes):
    # Plain leave-one-out is nearly always wrong here: without an image its class is the rarer one.
    labels = np.arange(60) % classes
    shares = [
        np.mean(
            classify_by_ridge(
                np.random.default_rng(run).normal(size=(60, columns)), labels, singletons(labels)
            )
            == labels
        )
        for run in range(40)
    ]
    assert np.mean(shares) == pytest.approx(1 / classes, abs=3.5 * np.std(shares) / np.sqrt(40))


def test_copies_do_not_make_random_labels_predictable():
    rng = np.random.default_rng(4)
    features = np.repeat(rng.normal(size=(60, 100)), 2, axis=0)
    labels = np.repeat(rng.integers(0, 2, 60), 2)
    leaking = classify_by_ridge(features, labels, singletons(labels))
    honest = classify_by_ridge(features, labels, [str(i // 2) for i in range(120)])
    assert np.mean(leaking == labels) > 0.95
    assert np.mean(honest == labels) < 0.7


def test_renaming_classes_renames_predictions():
    features, labels = classed(60, 8)
    names = np.array([5, 1, 3])
    found = classify_by_ridge(features, labels, singletons(labels))
    renamed = classify_by_ridge(features, names[labels], singletons(labels))
    np.testing.assert_array_equal(renamed, names[found])


def test_scale_of_a_feature_does_not_matter_and_constant_ones_are_ignored():
    features, labels = classed(60, 8)
    found = classify_by_ridge(features, labels, singletons(labels))
    scaled = np.concatenate([features * np.arange(1, 9), np.full((60, 2), 3.0)], axis=1)
    np.testing.assert_array_equal(classify_by_ridge(scaled, labels, singletons(labels)), found)


def test_features_that_are_all_constant_name_the_larger_class():
    labels = np.array([0] * 20 + [4] * 10)
    found = classify_by_ridge(np.ones((30, 5), np.float32), labels, singletons(labels))
    assert set(found) == {0}


# spectrum ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "columns"), [(20, 5), (5, 20)])
def test_spectrum_keeps_all_inner_products(n, columns):
    rows = np.random.default_rng(0).normal(size=(n, columns))
    spectrum = decompose(rows)
    assert spectrum.scores.shape == (n, 5)
    np.testing.assert_allclose(spectrum.scores @ spectrum.scores.T, rows @ rows.T, atol=1e-10)
    np.testing.assert_allclose(
        spectrum.scores.T @ spectrum.scores, np.diag(spectrum.energies), atol=1e-10
    )


def test_spectrum_drops_directions_without_energy():
    rows = np.outer(np.arange(1.0, 7), [1.0, 2.0, 3.0])
    assert decompose(rows).energies == pytest.approx([91.0 * 14])
    assert decompose(np.zeros((4, 3))).scores.shape == (4, 0)
