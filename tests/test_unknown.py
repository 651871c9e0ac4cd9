"""Whether an image is in the domain: distances against an oracle, thresholds that hold."""

import numpy as np
import pytest
from conftest import ROOT, tells
from sklearn.covariance import LedoitWolf

from tasks.artifacts.arrays import write_tensors
from tasks.delivery.in_domain import InDomain, scale_rows
from tasks.errors import ArtifactError
from tasks.evaluation.unknown import Answered, Embedded, check_domain, fit_in_domain, judge_sets
from tasks.params_file import load_params

PARAMS = load_params(ROOT / "params.yaml").evaluate.model_copy(update={"bootstrap": 200})
DIM, CLASSES = 12, 3


def draw(images, seed=0, away=0.0):
    """Features around a center of each class, moved away from all of them."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(7).normal(size=(CLASSES, DIM)) * 3
    labels = rng.integers(0, CLASSES, images)
    features = centers[labels] + rng.normal(size=(images, DIM)) + away
    return Embedded(features.astype(np.float32), labels, [str(number) for number in range(images)])


def fit(train=400, val=200, false_alarm=0.05):
    return fit_in_domain(draw(train, 1), draw(val, 2), false_alarm=false_alarm)


def test_scores_are_mahalanobis_distances_to_the_nearest_class():
    train, known = draw(400, 1), fit()
    x, new = scale_rows(train.features), scale_rows(draw(20, 3).features)
    means = np.stack([x[train.classes == c].mean(axis=0) for c in range(CLASSES)])
    precision = LedoitWolf(assume_centered=True).fit(x - means[train.classes]).precision_
    expected = [
        min(np.sqrt((row - mean) @ precision @ (row - mean)) for mean in means) for row in new
    ]
    np.testing.assert_allclose(known.scores(draw(20, 3).features), expected, rtol=1e-3)


def test_the_length_of_features_does_not_count():
    known, new = fit(), draw(20, 3).features
    np.testing.assert_allclose(known.scores(new * 17), known.scores(new), rtol=1e-5)


def test_images_of_the_domain_are_out_of_it_as_rarely_as_asked():
    shares = [
        (known.scores(draw(500, seed + 50).features) > known.threshold).mean()
        for seed in range(10, 40)
        for known in [fit_in_domain(draw(400, seed), draw(150, 100 + seed), false_alarm=0.1)]
    ]
    assert np.mean(shares) == pytest.approx(0.1, abs=0.02)


def test_others_are_out_of_it():
    known = fit()
    assert (known.scores(draw(200, 5, away=4.0).features) > known.threshold).mean() > 0.9


def test_images_that_were_learned_by_heart_do_not_set_the_threshold():
    train = draw(400, 1)
    centers = np.stack([train.features[train.classes == c].mean(axis=0) for c in range(CLASSES)])
    collapsed = Embedded(
        centers[train.classes] + 0.05 * (train.features - centers[train.classes]),
        train.classes,
        train.groups,
    )
    known = fit_in_domain(collapsed, draw(300, 2), false_alarm=0.05)
    assert check_domain(known, draw(400, 6), PARAMS, seed=1).false_alarms.value < 0.09


def test_too_few_val_images_set_no_limit():
    known = fit(val=10)
    assert known.threshold == np.inf
    assert check_domain(known, draw(30, 3), PARAMS, seed=1).threshold is None
    assert check_domain(known, draw(30, 3), PARAMS, seed=1).false_alarms.value == 0


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_features_are_in_the_domain(value):
    same = Embedded(
        np.full((40, DIM), value, np.float32), np.arange(40) % 2, [str(n) for n in range(40)]
    )
    known = fit_in_domain(same, same, false_alarm=0.05)
    assert np.isfinite(known.scores(same.features)).all()
    assert not (known.scores(same.features) > known.threshold).any()


def test_a_file_gives_the_same_scores(tmp_path):
    known = fit()
    known.write(tmp_path / "reference.safetensors")
    read = InDomain.read(tmp_path / "reference.safetensors")
    new = draw(20, 3).features
    np.testing.assert_array_equal(read.scores(new), known.scores(new))
    assert (read.threshold, read.false_alarm) == (known.threshold, 0.05)
    np.testing.assert_allclose(read.held_out, known.held_out, rtol=1e-3)
    write_tensors(tmp_path / "other.safetensors", {"x": np.zeros(1)})
    with pytest.raises(ArtifactError) as caught:
        InDomain.read(tmp_path / "other.safetensors")
    assert tells(str(caught.value), "other.safetensors", "dvc repro evaluate")


def test_sets_are_judged_on_test():
    rng = np.random.default_rng(0)

    def answers(count):
        labels = rng.integers(0, 4, count)
        probabilities = rng.dirichlet(np.ones(4), count)
        probabilities[np.arange(count), labels] += 0.5
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        return Answered(probabilities, labels, [str(number) for number in range(count)])

    test = answers(500)
    found = judge_sets(answers(400), test, PARAMS, seed=1)
    assert [one.method for one in found.kinds] == ["lac", "aps"]
    for one in found.kinds:
        assert one.coverage.low < 0.93
        assert one.coverage.high > 0.87
        assert one.lowest_of_a_class <= one.coverage.value
        assert one.lowest_images in np.bincount(test.labels)
        assert one.lowest_of_a_class * one.lowest_images == pytest.approx(
            round(one.lowest_of_a_class * one.lowest_images)
        )
        assert 1 <= one.mean_size <= 4
        assert 0 <= one.single <= 1
    assert found.kinds[0].mean_size <= found.kinds[1].mean_size  # LAC's are the smallest
