"""The accuracy of leave-one-out predictions, with its interval."""

from tasks.artifacts.arrays import Ints
from tasks.artifacts.records import Estimate
from tasks.judging.statistics import accuracy_interval
from tasks.params import SimilarityParams
from tasks.transferability.sampling import Sample


def estimate_accuracy(
    predicted: Ints, sample: Sample, *, params: SimilarityParams, seed: int
) -> Estimate:
    """Measure the accuracy of predictions, int64 (n,), that were made without the image's group.

    The interval speaks of the images: as many others would have given another share. That
    leave-one-out predictions lean on each other is not in it; where features tell little about the
    labels, the spread over new data sets is up to 1.4 times as wide (measured on noise).

    Source: Bengio and Grandvalet 2004, No unbiased estimator of the variance of cross-validation.
    """
    return accuracy_interval(
        predicted == sample.labels,
        sample.groups,
        confidence=params.confidence,
        resamples=params.bootstrap,
        seed=seed,
    )
