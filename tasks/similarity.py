"""Measure how far the training images are from the source and what the frozen features are worth.

Reads clean training features and pixels, what normalization layers see and the source card of the
backbone; writes similarity.json, the shift of every such layer, and for the eye a plane of source
and target and the pictures most and least like the source.
"""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA

from tasks.artifacts.arrays import Features, Ints
from tasks.artifacts.pixels import open_pixels
from tasks.artifacts.records import (
    AugmentPolicy,
    BackboneInfo,
    Conversion,
    Fit,
    ImageSource,
    Look,
    MmdResult,
    MomentShift,
    Similarity,
    read_record,
    write_record,
)
from tasks.artifacts.sampling import choose_rows
from tasks.artifacts.tables import Manifest, PlaneRow, ShiftRow, write_rows
from tasks.artifacts.words import listed
from tasks.backbones.source_cards import LayerMoments, SourceCard, find_cards, nearest_size
from tasks.errors import ArtifactError
from tasks.params import SimilarityParams
from tasks.runtime.entry import Read, StagePaths, Write, read_arguments, run_stage
from tasks.transferability.leave_one_out import (
    classify_by_ridge,
    estimate_accuracy,
    estimate_transfer_gain,
)
from tasks.transferability.look import look_at
from tasks.transferability.mmd import measure_mmd
from tasks.transferability.pictures import (
    LOOKED_IMAGES,
    measure_likeness,
    see_pixels,
    write_pictures,
)
from tasks.transferability.ruler import Ruler, find_ruler, say_moments, say_similarity
from tasks.transferability.sampling import Sample, Target, read_target
from tasks.transferability.shift import estimate_shift, shift_by_group

log = logging.getLogger(__name__)

SCORED_IMAGES = 5_000  # at most, for scores whose time grows with the square of the images
SHOWN_IMAGES = 2_000  # at most, on the plane


@dataclass(frozen=True)
class Paths(StagePaths):
    """What the stage reads and writes."""

    manifest: Read
    origin: Read
    conversion: Read
    policy: Read
    train: Read
    features: Read
    probe: Read
    backbone: Read
    cards: Read
    similarity: Write
    profile: Write
    projection: Write
    pictures: Write


@dataclass(frozen=True, slots=True)
class Reference:
    """What the target is compared with.

    `card` and `ruler` are None where there is none for these weights at about the image size;
    `sizes` are those of all cards of the weights, in pixels.
    """

    card: SourceCard | None
    ruler: Ruler | None
    sizes: Sequence[int]


@dataclass(frozen=True, slots=True)
class UsedImages:
    """Numbers of training images, ascending, each class by its share; each part of the one before.

    `measured` are all that are used, `scored` those of the scores and of the pictures, `shown` are
    on the plane, of `looked` the pixels are looked at.
    """

    measured: Ints
    scored: Ints
    shown: Ints
    looked: Ints


def choose_used(manifest: Manifest, limit: int, *, seed: int) -> UsedImages:
    """Choose training images, at most `limit`."""
    train = manifest.of("train")
    rows, parts = np.arange(len(train)), []
    for most in (limit, SCORED_IMAGES, SHOWN_IMAGES, LOOKED_IMAGES):
        if most < len(rows):
            rows = rows[choose_rows([train[row] for row in rows], most, seed=seed)]
        parts.append(rows)
    return UsedImages(*parts)


def usable_moments(card: SourceCard | None, image_px: int) -> Mapping[str, LayerMoments]:
    """Give what layers see in the source images at exactly this size; empty where that is unknown.

    Nothing but 0 tells what a moment shift means, so that moments of another size are never used:
    the layers of EfficientNet-Lite0 see the same images .004 apart at sizes that are off by a
    seventh, .015 by a quarter, where a blur of 1 px gives .03 (docs/benchmarks/moments.md).
    """
    return card.moments if card is not None and card.image_px == image_px else {}


def measure_similarity(
    target: Target,
    reference: Reference,
    info: BackboneInfo,
    chosen: UsedImages,
    *,
    params: SimilarityParams,
    seed: int,
) -> Similarity:
    """Measure distance to the source and worth of the features on clean training images.

    Raises:
        ArtifactError: The features do not fit the backbone or the card, or are not finite.
    """
    sample = target.sample(chosen.measured)
    _check_features(sample.features, info)
    mmd = _compare(sample, reference.card, params=params, seed=seed)
    scored = target.sample(chosen.scored)
    predicted = classify_by_ridge(scored.features, scored.labels, scored.groups)
    gain = estimate_transfer_gain(
        target.sample(target.probe_rows), target.random_features, params=params, seed=seed
    )
    shift = estimate_shift(
        target.layers, images=len(target.probe_rows), confidence=params.confidence
    )
    batch, by_group, moments = (
        info.norm == "batch",
        shift_by_group(target.layers, info.groups),
        None,
    )
    if shift and reference.card and not batch:
        name = reference.card.name
        words = say_moments(name, shift, by_group)
        moments = MomentShift(source=name, shift=shift, groups=by_group, words=words)
    similarity = Similarity(
        images=len(sample.groups),
        mmd=mmd,
        shift=shift if batch else None,
        shift_groups=by_group if batch else [],
        ridge_accuracy=estimate_accuracy(predicted, scored, params=params, seed=seed),
        random_ridge_accuracy=gain.random_accuracy,
        transfer_gain=gain.gain,
        summary="",
        notes=[
            *_notes(target, reference, info, len(sample.groups)),
            *([moments.words] if moments else []),
        ],
        marks=reference.ruler.marks if reference.ruler else None,
        known=reference.ruler.sets if reference.ruler else [],
        moments=moments,
    )
    return similarity.model_copy(update={"summary": say_similarity(similarity)})


def _check_features(features: Features, info: BackboneInfo) -> None:
    if features.shape[1] != info.feature_dim:
        raise ArtifactError(
            f"the features have {features.shape[1]} columns, {info.name} gives {info.feature_dim}; "
            "rerun extract"
        )
    if not np.isfinite(features).all():
        raise ArtifactError(
            f"{info.name} gave features that are not finite; try other weights or another engine"
        )


def _compare(
    sample: Sample, card: SourceCard | None, *, params: SimilarityParams, seed: int
) -> MmdResult | None:
    if card is None:
        return None
    if card.features.shape[1] != sample.features.shape[1]:
        raise ArtifactError(
            f"source card {card.name!r} has {card.features.shape[1]} columns, the features have "
            f"{sample.features.shape[1]}; make the card again with this backbone"
        )
    return measure_mmd(
        card.features,
        sample.features,
        sample.groups,
        name=card.name,
        params=params,
        seed=seed,
    )


def _notes(
    target: Target, reference: Reference, info: BackboneInfo, measured: int
) -> Iterator[str]:
    train = target.manifest.of("train")
    if measured < len(train):
        yield f"Measured on {measured} of {len(train)} training images, each class by its share."
    if measured > SCORED_IMAGES:
        yield f"What the features are worth is measured on {SCORED_IMAGES} of these images."
    if len({row.group for row in train}) < len(train):
        yield "Images of one group are never compared with each other and are left out together."
    yield (
        f"Pretrained and random features are compared on the same {len(target.probe_rows)} images."
    )
    if not target.layers:
        why = _why_unmeasured(reference.card, info) if target.unlearned else ""
        yield f"{info.name} has no batch-norm layer{why}, so there is no shift profile."
    yield from _notes_on_reference(reference, info)


def _why_unmeasured(card: SourceCard | None, info: BackboneInfo) -> str:
    """Say why nothing tells what the other normalization layers see in the source."""
    image_px = info.input.image_px
    if card is None:
        return f", and no source card near {image_px} px tells what its other layers see there"
    if card.image_px != image_px:
        return (
            f", and the source card tells what its other layers see at {card.image_px} px, not at "
            f"{image_px} px (make one at this size)"
        )
    return (
        f", and the source card {card.name!r} does not tell what its other layers see: it is of an "
        "older version (make it again)"
    )


def _notes_on_reference(reference: Reference, info: BackboneInfo) -> Iterator[str]:
    card, ruler, image_px = reference.card, reference.ruler, info.input.image_px
    if card is None:
        sizes = listed([f"{size} px" for size in reference.sizes])
        others = f" (there are cards at {sizes})" if sizes else ""
        yield (
            f"There is no source card for these weights of {info.name} near {image_px} px{others}, "
            "so MMD was not measured; "
            "`python -m tasks.backbones.cards --help` says how to make one from any folder."
        )
    elif card.image_px != image_px:
        yield (
            f"The source card was made at {card.image_px} px, the features at {image_px} px; a "
            "small part of the MMD is due to that."
        )
    if card is not None and (ruler is None or ruler.marks is None):
        yield (
            "No ruler tells which MMD^2 is near for these weights and this size; "
            "`python -m tasks.transferability.measure_ruler --help` says how to make one."
        )


def project(target: Target, card: SourceCard | None, rows: Ints) -> list[PlaneRow]:
    """Place images on the plane of their two leading principal components, the source first."""
    train = target.manifest.of("train")
    shown = np.asarray(target.features[rows, 0])
    source = np.empty((0, shown.shape[1]), np.float32) if card is None else card.features
    both = np.concatenate([source, shown]).astype(np.float64)
    plane = PCA(n_components=2, svd_solver="covariance_eigh").fit_transform(both)
    places = [(float(x), float(y)) for x, y in plane]
    ours = zip(places[len(source) :], rows, strict=True)
    return [PlaneRow(*place, "source", "") for place in places[: len(source)]] + [
        PlaneRow(*place, "target", train[row].label) for place, row in ours
    ]


def look(
    paths: Paths, target: Target, card: SourceCard | None, chosen: UsedImages, fit: Fit
) -> Look:
    """Look at the pictures, write the nearest and farthest of them, say what was seen.

    Raises:
        ArtifactError: The pixels are missing, damaged or of another manifest.
    """
    manifest = target.manifest
    store = open_pixels(manifest, [paths.train])["train"]
    sample, conversion = target.sample(chosen.scored), read_record(paths.conversion, Conversion)
    pictured = see_pixels(store, manifest, conversion, chosen.looked, fit=fit)
    likeness = measure_likeness(sample.features, card.features) if card else np.empty(0)
    write_pictures(paths.pictures, likeness, chosen.scored, manifest, store)
    return look_at(pictured, sample, manifest.class_names, card=card, head=target.head)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the features, measure them, write what was found."""
    paths, params = read_arguments(
        Paths,
        "similarity",
        "Measure how far the data is from the source and what the features are worth.",
        argv,
    )
    info = read_record(paths.backbone, BackboneInfo)
    cards = find_cards(paths.cards, info.weights_sha256)
    ruler = find_ruler(paths.cards, info.weights_sha256, info.input.image_px)
    card = nearest_size(cards, info.input.image_px)
    target = read_target(
        paths.manifest, paths.features, paths.probe, usable_moments(card, info.input.image_px)
    )
    reference = Reference(
        card=card,
        ruler=ruler and ruler.without(read_record(paths.origin, ImageSource)),
        sizes=sorted(card.image_px for card in cards),
    )
    chosen = choose_used(target.manifest, params.similarity.max_images, seed=params.seed)
    similarity = measure_similarity(
        target, reference, info, chosen, params=params.similarity, seed=params.seed
    )
    seen = look(paths, target, reference.card, chosen, read_record(paths.policy, AugmentPolicy).fit)
    profile = [
        ShiftRow(layer.name, info.groups[layer.group].name, number, layer.value)
        for number, layer in enumerate(target.layers)
    ]
    plane = project(target, reference.card, chosen.shown)
    write_rows(paths.profile, ShiftRow, profile)
    write_rows(paths.projection, PlaneRow, plane)
    write_record(paths.similarity, similarity.model_copy(update={"look": seen}))
    log.info("%s", similarity.summary)
    log.info("%s", seen.words)
    worth = similarity.ridge_accuracy.value
    log.info("what the features are worth: ridge_accuracy %.3f", worth)


if __name__ == "__main__":
    sys.exit(run_stage("similarity", main))
