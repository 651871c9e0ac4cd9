"""What pretraining adds to features of the same architecture with random weights."""

from dataclasses import dataclass

from tasks.artifacts.arrays import Features
from tasks.artifacts.records import Estimate
from tasks.judging.statistics import paired_accuracy_interval
from tasks.params import SimilarityParams
from tasks.transferability.accuracy import estimate_accuracy
from tasks.transferability.ridge import classify_by_ridge
from tasks.transferability.sampling import Sample


@dataclass(frozen=True, slots=True)
class Gain:
    """Leave-one-out accuracies of two sets of features of the same images, and their difference."""

    random_accuracy: Estimate
    gain: Estimate


def estimate_transfer_gain(
    sample: Sample, random_features: Features, *, params: SimilarityParams, seed: int
) -> Gain:
    """Measure what pretraining adds: ridge accuracy of its features minus that of random weights.

    Args:
        sample: Images with pretrained features.
        random_features: Of the same images and architecture with random weights, float32 (n, D).
        params: Resamples and confidence of the intervals.
        seed: The run's seed.
    """
    pretrained = classify_by_ridge(sample.features, sample.labels, sample.groups)
    random = classify_by_ridge(random_features, sample.labels, sample.groups)
    return Gain(
        random_accuracy=estimate_accuracy(random, sample, params=params, seed=seed),
        gain=paired_accuracy_interval(
            random == sample.labels,
            pretrained == sample.labels,
            sample.groups,
            confidence=params.confidence,
            resamples=params.bootstrap,
            seed=seed,
        ),
    )
