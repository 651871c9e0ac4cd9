"""The race: rounds on more and more images, the better half stays, val names a winner or none."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from tasks.artifacts.arrays import Ints, Logits
from tasks.artifacts.pixels import ChosenPixels
from tasks.artifacts.records import (
    BackboneInfo,
    Baseline,
    Estimate,
    Race,
    Racer,
    RaceRound,
)
from tasks.artifacts.sampling import nested_turns
from tasks.artifacts.tables import Manifest
from tasks.heads.features import Labeled
from tasks.heads.linear import choose_linear, to_module
from tasks.heads.registry import soften_head
from tasks.judging.rule import ValSet, judge_change
from tasks.params import FinetuneParams, RaceParams
from tasks.racing.field import ROUNDS, VAL_IMAGES, Field, staying
from tasks.racing.racers import Track, train_racer
from tasks.runtime.machine import Machine
from tasks.training.feed.rows import Stores
from tasks.training.inputs import Examples
from tasks.transferability.arms import IN_WORDS, NamedArm, say_gain, say_points

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ground:
    """What a race is run on.

    Attributes:
        manifest: Names the images.
        backbone: Pretrained; its weights made the features.
        baseline: The frozen baseline.
        stores: Pixels of train and val.
        train: Features of the training images in all of their views.
        val: Features of the val images.
        strengths: L2 strengths that the heads are chosen from.
        seed: The run's seed.
    """

    manifest: Manifest
    backbone: BackboneInfo
    baseline: Baseline
    stores: Stores
    train: Labeled
    val: Labeled
    strengths: Sequence[float]
    seed: int

    def frozen(self, images: Ints) -> tuple[nn.Module, Logits]:
        """Fit a head on frozen features of training images.

        Returns:
            The head, and its logits on all of val, float32 (N_val, C).
        """
        path = choose_linear(
            self.train,
            self.val,
            self.strengths,
            classes=len(self.manifest.class_names),
            seed=self.seed,
            images=images,
        )
        return to_module(path.chosen), path.chosen.logits(self.val.features[:, 0])

    def part(self, images: int) -> Ints:
        """Give about so many training images, int64 (n,); a smaller part is among them."""
        turns = nested_turns(self.train.labels, self.train.groups, seed=self.seed)
        return np.flatnonzero(turns < images / len(turns))

    def judges(self) -> Ints:
        """Give the val images that judge racers, int64 (n,): about `VAL_IMAGES`, groups whole."""
        turns = nested_turns(self.val.labels, self.val.groups, seed=self.seed)
        return np.flatnonzero(turns < VAL_IMAGES / len(turns))


@dataclass(frozen=True)
class Means:
    """How racers are trained.

    Attributes:
        params: The `race` block.
        tuning: The `finetune` block.
        machine: Device, threads and engine.
        folder: Where activations may be cached.
    """

    params: RaceParams
    tuning: FinetuneParams
    machine: Machine
    folder: Path


@dataclass(frozen=True)
class Lap:
    """What a round ended with: logits on the val images that judge, float32 (n, C), of each."""

    images: Ints
    frozen: Logits
    raced: Mapping[NamedArm, Logits]


def run_race(ground: Ground, field: Field, means: Means) -> Race:
    """Run the rounds of a race and judge the arms that are left against frozen features.

    Args:
        ground: What is raced on.
        field: Who takes part.
        means: How they are trained.
    """
    confidence = confidence_of_each(means.params, len(field.entries))
    judges = ground.judges()
    labels, groups = ground.val.labels[judges], [ground.val.groups[image] for image in judges]
    val = ValSet(labels, groups, balanced=ground.val.balanced)
    entries, rounds = list(field.entries), list[RaceRound]()
    while True:
        images = ground.part(2 ** len(rounds) * field.images)
        lap = _run_round(ground, images, judges, val, entries, means)
        rounds.append(_describe_round(lap, val, means.params.epochs, confidence, seed=ground.seed))
        log.info("%s", _round_in_words(rounds[-1]))
        if len(rounds) == ROUNDS or all(racer.worse for racer in rounds[-1].racers):
            break
        ranked = sorted(entries, key=lambda entry: val.loss(lap.raced[entry]))
        kept = ranked[: staying(len(entries))]
        entries = [entry for entry in entries if entry in kept]
    winner = find_winner(lap, val, confidence=confidence, seed=ground.seed)
    return Race(
        skipped=None,
        rounds=rounds,
        winner=None if winner is None else rounds[-1].racers[entries.index(winner)],
        val_images=len(judges),
        cost=field.share,
        twice_the_images=_compare_with_more(ground, lap, judges, val, confidence),
    )


def confidence_of_each(params: RaceParams, racers: int) -> float:
    """Give the confidence of the intervals of each racer: all together have that of the params.

    Source: Bonferroni's inequality.
    """
    return 1 - (1 - params.confidence) / racers


def find_winner(lap: Lap, val: ValSet, *, confidence: float, seed: int) -> NamedArm | None:
    """Give the winner of the last round; None where frozen features are not beaten.

    From the cheapest arm up, each one takes the place of the best so far, at first of frozen
    features, where it is better beyond doubt.

    Args:
        lap: The last round; its racers from the cheapest to the dearest.
        val: What judges.
        confidence: Of the intervals of each racer.
        seed: The run's seed.
    """
    winner, best = None, lap.frozen
    for entry, logits in lap.raced.items():
        if judge_change(best, logits, val, confidence=confidence, seed=seed).better:
            winner, best = entry, logits
    return winner


def _run_round(
    ground: Ground,
    images: Ints,
    judges: Ints,
    val: ValSet,
    entries: Sequence[NamedArm],
    means: Means,
) -> Lap:
    head, frozen = ground.frozen(images)
    soften_head(head, val.temperature(frozen[judges]))
    names = [row.path for row in ground.manifest.of("train")]
    track = Track(
        backbone=ground.backbone,
        baseline=ground.baseline,
        head=head,
        stores=Stores(
            ChosenPixels(ground.stores.train, images), ChosenPixels(ground.stores.val, judges)
        ),
        examples=Examples(
            labels=ground.train.labels[images],
            names=[names[image] for image in images],
            val=val,
            classes=len(ground.manifest.class_names),
        ),
        epochs=means.params.epochs,
        params=means.tuning,
        seed=ground.seed,
    )
    folder = means.folder / str(len(images))  # of a killed race; parts of one size are the same
    raced = {entry: train_racer(entry, track, means.machine, folder) for entry in entries}
    return Lap(images, frozen[judges], raced)


def _describe_round(
    lap: Lap, val: ValSet, epochs: int, confidence: float, *, seed: int
) -> RaceRound:
    racers = []
    for entry, logits in lap.raced.items():
        verdict = judge_change(lap.frozen, logits, val, confidence=confidence, seed=seed)
        racers.append(
            Racer(
                name=entry.name,
                arm=entry.arm,
                cut=entry.cut,
                val_accuracy=val.accuracy(logits),
                val_loss=val.loss(logits),
                accuracy_gain=verdict.accuracy,
                loss_change=verdict.loss,
                better=verdict.better,
                worse=verdict.worse,
            )
        )
    return RaceRound(
        images=len(lap.images),
        epochs=epochs,
        frozen_accuracy=val.accuracy(lap.frozen),
        frozen_loss=val.loss(lap.frozen),
        racers=racers,
    )


def _compare_with_more(
    ground: Ground, lap: Lap, judges: Ints, val: ValSet, confidence: float
) -> Estimate | None:
    """Compare frozen features on twice the images with the best racer; None: there are no more."""
    if 2 * len(lap.images) > len(ground.train.labels):
        return None
    _, more = ground.frozen(ground.part(2 * len(lap.images)))
    best = min(lap.raced.values(), key=val.loss)
    change = judge_change(best, more[judges], val, confidence=confidence, seed=ground.seed)
    return change.accuracy


def _round_in_words(done: RaceRound) -> str:
    racers = ", ".join(
        f"{racer.name} {racer.val_accuracy:.3f} and {racer.val_loss:.3f}" for racer in done.racers
    )
    return (
        f"on {done.images:,} images, val accuracy and loss: frozen {done.frozen_accuracy:.3f} and "
        f"{done.frozen_loss:.3f}, {racers}"
    )


def say_race(race: Race) -> str:
    """Say in one to three sentences what a race came to."""
    last, more = race.rounds[-1], race.twice_the_images
    raced = ", ".join(racer.name for racer in race.rounds[0].racers)
    where = (
        f"In a race ({raced}) on {last.images:,} of the training images, judged by "
        f"{race.val_images:,} of val,"
    )
    if race.winner is not None:
        return (
            f"{where} {IN_WORDS[race.winner.name]} beat frozen features: {say_gain(race.winner)}."
        )
    best = min(last.racers, key=lambda racer: racer.val_loss)
    said = (
        f"{where} no arm beat frozen features beyond doubt; {IN_WORDS[best.name]} came nearest: "
        f"{say_gain(best)}. Fine-tuning gains with more images, so that this does not settle it."
    )
    if more is not None and more.low is not None and more.low > 0:
        said += f" Twice these images did more for frozen features: {say_points(more)} against it."
    return said
