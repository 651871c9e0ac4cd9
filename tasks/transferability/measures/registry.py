"""The measures of what frozen features are worth for the labels.

A new one is a module of this package with a function `estimate`, and its name in `MEASURES`; the
name is its key in similarity.json. One that ends with `_accuracy` is a share. LogME and H-score
stand here too, for ranking backbones alone.
"""

from importlib import import_module
from typing import Protocol, cast

from tasks.artifacts.records import Estimate
from tasks.params import SimilarityParams
from tasks.transferability.sampling import Sample

MEASURES = ("ridge_accuracy",)


class Estimator(Protocol):
    """What a module of this package offers."""

    def estimate(self, sample: Sample, *, params: SimilarityParams, seed: int) -> Estimate:
        """Measure a sample; images of one group are one unit of the interval."""
        ...


def estimator_of(name: str) -> Estimator:
    """Find the module of a measure."""
    return cast(Estimator, import_module(f"tasks.transferability.measures.{name}"))


def estimate_measures(
    sample: Sample, *, params: SimilarityParams, seed: int
) -> dict[str, Estimate]:
    """Measure what the features of a sample are worth, by the name of each measure."""
    return {
        measure: estimator_of(measure).estimate(sample, params=params, seed=seed)
        for measure in MEASURES
    }
