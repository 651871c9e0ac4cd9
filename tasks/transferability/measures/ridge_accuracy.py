"""Accuracy of ridge regression when the images of each group are left out."""

from tasks.artifacts.records import Estimate
from tasks.params import SimilarityParams
from tasks.transferability.leave_one_out import classify_by_ridge, estimate_accuracy
from tasks.transferability.sampling import Sample


def estimate(sample: Sample, *, params: SimilarityParams, seed: int) -> Estimate:
    """Measure the leave-one-out accuracy of ridge regression."""
    predicted = classify_by_ridge(sample.features, sample.labels, sample.groups)
    return estimate_accuracy(predicted, sample, params=params, seed=seed)
