"""Which backbone: candidates compared by what their features are worth on the same images."""

from collections.abc import Mapping

from tasks.artifacts.records import BackboneRank
from tasks.judging.statistics import paired_accuracy_interval
from tasks.params import SimilarityParams
from tasks.transferability.leave_one_out import classify_by_ridge, estimate_accuracy
from tasks.transferability.measures import h_score, logme
from tasks.transferability.sampling import Sample


def rank_backbones(
    samples: Mapping[str, Sample], params: SimilarityParams, *, seed: int
) -> list[BackboneRank]:
    """Measure the features of every candidate; the last one that is `better` is the one to take.

    The first candidate stands until a later one classifies more images beyond doubt, by ridge
    regression without the image's group; then that one stands. LogME and H-score are told beside
    it. Where intervals overlap there is no order, and the earlier, cheaper one stays.

    Args:
        samples: The same images with the features of each candidate, the cheapest one first.
        params: Resamples and confidence of the intervals.
        seed: The run's seed.
    """
    ranks, best = list[BackboneRank](), None
    for name, sample in samples.items():
        predicted = classify_by_ridge(sample.features, sample.labels, sample.groups)
        right, gain = predicted == sample.labels, None
        if best is not None:
            gain = paired_accuracy_interval(
                best,
                right,
                sample.groups,
                confidence=params.confidence,
                resamples=params.bootstrap,
                seed=seed,
            )
        better = gain is None or (gain.low is not None and gain.low > 0)
        ranks.append(
            BackboneRank(
                name=name,
                ridge_accuracy=estimate_accuracy(predicted, sample, params=params, seed=seed),
                gain=gain,
                better=better,
                logme=logme.estimate(sample, params=params, seed=seed),
                h_score=h_score.estimate(sample, params=params, seed=seed),
            )
        )
        best = right if better else best
    return ranks
