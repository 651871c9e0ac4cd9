"""Settings compared with each other on val: which one to choose, and how sure that is.

Test has no say here. The figures of the chosen setting flatter, as those of any best of several do.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tasks.artifacts.arrays import Bools, Floats, Logits
from tasks.artifacts.tables import Manifest
from tasks.judging.rule import ValSet, Verdict, judge_images


@dataclass(frozen=True, slots=True)
class Answers:
    """What the shipped model of one run said about its val images.

    Attributes:
        images: What tells the images apart, (N,).
        groups: Their groups, (N,).
        right: Whether each was classified correctly, bool (N,).
        losses: Calibrated negative log likelihood of each label, nats, float64 (N,).
        weights: What each image counts, float64 (N,); None: all the same.
    """

    images: tuple[str, ...]
    groups: tuple[str, ...]
    right: Bools
    losses: Floats
    weights: Floats | None = None

    @property
    def accuracy(self) -> float:
        """Share of images that are right, as images count."""
        return float(np.average(self.right, weights=self.weights))

    @property
    def loss(self) -> float:
        """Mean of the losses, as images count."""
        return float(np.average(self.losses, weights=self.weights))


def read_answers(manifest: Manifest, logits: Logits, *, balanced: bool) -> Answers:
    """Turn a model's logits on val, float32 (N, C), into answers.

    Args:
        manifest: Labels and groups of the images.
        logits: Of the model.
        balanced: Whether all classes count the same.
    """
    val = ValSet(manifest.labels("val"), manifest.groups("val"), balanced=balanced)
    return Answers(
        images=tuple(row.sha256 for row in manifest.of("val")),
        groups=tuple(val.groups),
        right=val.right(logits),
        losses=val.losses(logits),
        weights=val.weights,
    )


Runs = Mapping[int, Answers]  # those of one setting, by seed


@dataclass(frozen=True, slots=True)
class Ranked:
    """One setting among the others, the chosen one first.

    Attributes:
        setting: Its name.
        seeds: The seeds of its runs.
        accuracy: On val, mean over the seeds.
        loss: Calibrated, on val, mean over the seeds, nats.
        balanced: Whether all classes count the same in these figures.
        change: From the chosen setting to this one, on the same images and seeds; None of the
            chosen one itself, and where there are no such images.
    """

    setting: str
    seeds: tuple[int, ...]
    accuracy: float
    loss: float
    balanced: bool
    change: Verdict | None


def rank(runs: Mapping[str, Runs], *, confidence: float, seed: int) -> list[Ranked]:
    """Rank settings by calibrated val loss over their seeds, unless accuracy is sure.

    A setting that is better beyond doubt than the one with the lowest loss is chosen instead, and
    gives way to the next one of which that is true. All settings share the doubt (Bonferroni).

    A setting that lacks seeds that another one has comes after those that lack none: a mean over
    other splits is another number.

    Args:
        runs: Setting -> seed -> answers; settings without any run are left out.
        confidence: Of the intervals, in [0.5, 1).
        seed: Of the resamples.
    """
    found = {setting: by_seed for setting, by_seed in runs.items() if by_seed}
    order = sorted(found, key=lambda setting: (-len(found[setting]), _loss(found[setting])))
    chosen = order[0] if order else ""
    strict = 1 - (1 - confidence) / max(1, len(order) - 1)
    for setting in order[1:]:
        change = _judge(found[chosen], found[setting], confidence=strict, seed=seed)
        if change and change.better and len(found[setting]) == len(found[chosen]):
            chosen = setting
    return [
        Ranked(
            setting,
            tuple(sorted(found[setting])),
            float(np.mean([one.accuracy for one in found[setting].values()])),
            _loss(found[setting]),
            any(one.weights is not None for one in found[setting].values()),
            None
            if setting == chosen
            else _judge(found[chosen], found[setting], confidence=confidence, seed=seed),
        )
        for setting in sorted(order, key=lambda setting: setting != chosen)
    ]


def _loss(by_seed: Runs) -> float:
    return float(np.mean([one.loss for one in by_seed.values()]))


def _judge(chosen: Runs, other: Runs, *, confidence: float, seed: int) -> Verdict | None:
    """Compare image by image; an image that stands in val of several seeds stays in its group."""
    shared = [
        (chosen[number], other[number])
        for number in sorted(chosen.keys() & other.keys())
        if chosen[number].images == other[number].images
    ]
    if not shared:
        return None
    weights = [one.weights for one, _ in shared if one.weights is not None]
    return judge_images(
        np.concatenate([after.right.astype(np.float64) - before.right for before, after in shared]),
        np.concatenate([after.losses - before.losses for before, after in shared]),
        [group for one, _ in shared for group in one.groups],
        np.concatenate(weights) if weights else None,
        confidence=confidence,
        seed=seed,
    )
