"""Which backbone: candidates compared by what their features are worth on the same images."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.artifacts.arrays import Ints
from tasks.artifacts.pixels import PixelStore
from tasks.artifacts.records import BackboneChoice, BackboneRank
from tasks.artifacts.sampling import choose_rows
from tasks.artifacts.tables import Manifest
from tasks.backbones.catalogue import load_backbone
from tasks.backbones.engine import make_engine
from tasks.backbones.groups import PooledFeatures
from tasks.backbones.probe import sample_pixels
from tasks.judging.statistics import paired_accuracy_interval
from tasks.params import SelectParams, SimilarityParams
from tasks.runtime.device import configure_torch
from tasks.runtime.machine import read_machine
from tasks.runtime.progress import progress
from tasks.transferability.h_score import estimate_h_score
from tasks.transferability.leave_one_out import classify_by_ridge, estimate_accuracy
from tasks.transferability.logme import estimate_logme
from tasks.transferability.sampling import Sample

BATCH_SIZE = 32


def choose_backbone(
    manifest: Manifest,
    store: PixelStore,
    params: SelectParams,
    similarity: SimilarityParams,
    *,
    weights: str,
    seed: int,
) -> BackboneChoice:
    """Choose between the candidates by the features that they make of some training images.

    Args:
        manifest: Labels and groups.
        store: Packed training pixels.
        params: The candidates, and how many images they are compared on.
        similarity: How intervals are made.
        weights: packaged or hub.
        seed: The run's seed.

    Raises:
        WeightsError: The weights of a candidate cannot be had.
    """
    rows = choose_rows(manifest.of("train"), params.images, seed=seed)
    labels, groups = manifest.labels("train")[rows], manifest.groups("train")
    samples = {
        name: Sample(features, labels, [groups[row] for row in rows])
        for name, features in _make_features(
            store, rows, params.candidates, weights=weights, seed=seed
        )
    }
    ranking = rank_backbones(samples, similarity, seed=seed)
    chosen = next(one for one in reversed(ranking) if one.better)
    return BackboneChoice(name=chosen.name, weights=weights, images=len(rows), ranking=ranking)


def _make_features(
    store: PixelStore, rows: Ints, candidates: Sequence[str], *, weights: str, seed: int
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield each candidate and its features of the clean views of some images."""
    machine = read_machine()
    configure_torch(machine, seed)
    clean = store.row_of(rows)
    for name in candidates:
        backbone = load_backbone(name, weights, image_px=store.info.image_px, seed=seed)
        module = PooledFeatures(backbone.model)
        engine = make_engine(module, backbone.input, machine, sample_pixels(store), rows=len(clean))
        made = []
        with progress(f"features of {name}", len(clean)) as meter:
            for pixels in store.batches(clean, BATCH_SIZE):
                made.append(engine(pixels)[0])
                meter.advance(len(pixels))
        yield name, np.concatenate(made)


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
                logme=estimate_logme(sample, params=params),
                h_score=estimate_h_score(sample, params=params),
            )
        )
        best = right if better else best
    return ranks
