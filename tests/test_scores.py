import numpy as np
import pytest

from tasks.artifacts.records import Distance, Estimate, KnownSet, MmdResult, Similarity
from tasks.transferability.h_score import estimate_h_score
from tasks.transferability.leave_one_out import (
    classify_by_ridge,
    estimate_accuracy,
    estimate_transfer_gain,
)
from tasks.transferability.logme import estimate_logme
from tasks.transferability.ruler import (
    Ruler,
    find_marks,
    find_ruler,
    place_on_ruler,
    say_similarity,
)
from tasks.transferability.sampling import Sample


def sample(n=60, *, seed=0, signal=0.7):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    centers = rng.normal(0, signal, (3, 6))
    features = (rng.normal(size=(n, 6)) + centers[labels]).astype(np.float32)
    return Sample(features, labels, [str(i // 2) for i in range(n)])


def noise(n=60, *, seed=9):
    return np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32)


def test_every_score_lies_in_its_interval(tiny_params):
    data, params = sample(), tiny_params.similarity
    ridge = classify_by_ridge(data.features, data.labels, data.groups)
    accuracy = estimate_accuracy(ridge, data, params=params, seed=1)
    assert accuracy.value == np.mean(ridge == data.labels)
    scores = [estimate_logme(data, params=params), estimate_h_score(data, params=params)]
    for estimate in (accuracy, *scores):
        assert estimate.low < estimate.value < estimate.high
        assert estimate.n == 60


def test_gain_is_the_difference_of_accuracies_on_the_same_images(tiny_params):
    data, random = sample(), noise()
    found = estimate_transfer_gain(data, random, params=tiny_params.similarity, seed=1)
    right = np.mean(classify_by_ridge(data.features, data.labels, data.groups) == data.labels)
    chance = np.mean(classify_by_ridge(random, data.labels, data.groups) == data.labels)
    assert found.random_accuracy.value == chance
    assert found.gain.value == pytest.approx(right - chance)
    assert 0 < found.gain.low < found.gain.value < found.gain.high
    assert found.gain.n == 60


def test_equal_features_gain_nothing(tiny_params):
    data = sample()
    gain = estimate_transfer_gain(data, data.features, params=tiny_params.similarity, seed=1).gain
    assert gain.value == 0
    assert gain.low < 0 < gain.high


def test_where_nothing_is_gained_the_interval_holds_zero(default_params):
    params = default_params.similarity.model_copy(update={"bootstrap": 100})
    gains = []
    for run in range(60):
        data = Sample(noise(seed=run), np.arange(60) % 2, [str(i) for i in range(60)])
        random = noise(seed=1000 + run)
        gains.append(estimate_transfer_gain(data, random, params=params, seed=run).gain)
    values = [gain.value for gain in gains]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(60)
    assert sum(gain.low <= 0 <= gain.high for gain in gains) >= 0.85 * 60  # see estimate_accuracy


# the ruler and words -----------------------------------------------------------------------------


def known(name, mmd, domain=None):
    return KnownSet(name=name, images=500, mmd=2 * mmd, distance=mmd, domain=domain)


SETS = [known("solar cells", 0.19), known("photographs", 0.02), known("letters", 0.14)]


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (0.01, "nearer than photographs (0.020)"),
        (0.05, "between photographs (0.020) and letters (0.140)"),
        (0.14, "between letters (0.140) and solar cells (0.190)"),
        (0.50, "farther than solar cells (0.190)"),
    ],
)
def test_place_on_the_ruler(value, place):
    assert place_on_ruler(value, SETS).startswith(place)


def test_the_ruler_of_weights_and_nearest_size_is_found(tmp_path):
    for name, sha256, image_px in (("_a", "aa", 224), ("_b", "bb", 224), ("_c", "bb", 160)):
        ruler = Ruler(
            backbone=name, weights_sha256=sha256, image_px=image_px, source="card", provenance="",
            sets=SETS, marks=None,
        )  # fmt: skip
        (tmp_path / f"ruler{name}.json").write_text(ruler.model_dump_json())
    assert find_ruler(tmp_path, "bb", 200).backbone == "_b"
    assert find_ruler(tmp_path, "bb", 180).backbone == "_c"
    assert find_ruler(tmp_path, "bb", 300) is None
    assert find_ruler(tmp_path, "cc", 224) is None
    assert find_ruler(tmp_path / "nowhere", "aa", 224) is None


MARKED = [
    known("a", -0.01, "similar"), known("b", 0.02, "similar"), known("c", 0.08, "intermediate"),
    known("d", 0.32, "far"), known("e", 0.01),
]  # fmt: skip


def test_domains_end_between_the_sets_that_people_put_into_them():
    found = find_marks(MARKED)
    assert (found.similar, found.far) == pytest.approx((0.04, 0.16))


@pytest.mark.parametrize("sets", [MARKED[:3], [*MARKED, known("f", 0.09, "similar")]])
def test_without_sets_of_all_domains_apart_there_are_no_marks(sets):
    assert find_marks(sets) is None


def similarity(*, mmd=0.15, shift=0.3, gain=0.2, sets=()):
    estimate = Estimate(value=gain, low=gain - 0.1, high=gain + 0.1, n=60)
    found = mmd and MmdResult(
        value=mmd + 0.05, low=mmd, high=mmd + 0.1, n=60, p_value=0.01, bandwidths=[1.0],
        estimator="full", source="ImageNet", source_rows=100, narrowness=0.05,
        matched=Distance(value=mmd, low=mmd - 0.01, high=mmd + 0.01, n=60),
    )  # fmt: skip
    return Similarity(
        images=60, mmd=found, shift=shift and estimate.model_copy(update={"value": shift}),
        shift_groups=[],
        ridge_accuracy=estimate, random_ridge_accuracy=estimate, transfer_gain=estimate,
        summary="", notes=[], known=list(sets),
    )  # fmt: skip


BETTER = (
    "pretrained features classify it 20.0 points better (+10.0 to +30.0) than those of random "
    "weights."
)
SENTENCES = {
    "card and ruler": (
        {"sets": SETS},
        "Seen by the backbone, the data is at MMD^2 0.150 (0.140 to 0.160) from the images of "
        "ImageNet that fit best, between letters (0.140) and solar cells (0.190); that it pictures "
        "less than ImageNet adds 0.050; " + BETTER,
    ),
    "card only": (
        {"gain": -0.15},
        "Seen by the backbone, the data is at MMD^2 0.150 (0.140 to 0.160) from the images of "
        "ImageNet that fit best; that it pictures less than ImageNet adds 0.050; pretrained "
        "features classify it 15.0 points worse (-25.0 to -5.0) than those of random "
        "weights.",
    ),
    "shift only": (
        {"mmd": None},
        "Without a source card, the batch-norm layers see a mean shift of 0.30; " + BETTER,
    ),
    "nothing": (
        {"mmd": None, "shift": None},
        "There is neither a source card nor a batch-norm layer to tell how far the data is; "
        + BETTER,
    ),
}


@pytest.mark.parametrize(("seen", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_summary_is_one_plain_sentence(seen, sentence):
    assert say_similarity(similarity(**seen)) == sentence
