"""Settings compared with each other on val: which one to choose, and how sure that is.

Test has no say here. The figures of the chosen setting flatter, as those of any best of several do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.artifacts.arrays import Bools, Logits
from tasks.artifacts.records import Estimate
from tasks.artifacts.tables import Manifest
from tasks.judging.rule import ValSet
from tasks.judging.statistics import paired_accuracy_interval


@dataclass(frozen=True, slots=True)
class Answers:
    """What the shipped model of one run said about its val images.

    Attributes:
        images: What tells the images apart, (N,).
        groups: Their groups, (N,).
        right: Whether each was classified correctly, bool (N,).
        loss: Mean calibrated negative log likelihood, nats.
    """

    images: tuple[str, ...]
    groups: tuple[str, ...]
    right: Bools
    loss: float

    @property
    def accuracy(self) -> float:
        """Share of images that are right."""
        return float(np.mean(self.right))


def read_answers(manifest: Manifest, logits: Logits) -> Answers:
    """Turn a model's logits on val, float32 (N, C), into answers."""
    val = ValSet(manifest.labels("val"), manifest.groups("val"))
    return Answers(
        images=tuple(row.sha256 for row in manifest.of("val")),
        groups=tuple(val.groups),
        right=val.right(logits),
        loss=val.loss(logits),
    )


@dataclass(frozen=True, slots=True)
class Ranked:
    """One setting among the others, the best one first.

    Attributes:
        setting: Its name.
        seeds: The seeds of its runs.
        accuracy: On val, mean over the seeds.
        difference: Accuracy minus that of the chosen setting, on the same images and seeds; None of
            the chosen one itself, and where there are no such images.
    """

    setting: str
    seeds: tuple[int, ...]
    accuracy: float
    difference: Estimate | None


def rank(
    runs: Mapping[str, Mapping[int, Answers]], *, confidence: float, resamples: int, seed: int
) -> list[Ranked]:
    """Rank settings by val accuracy over their seeds; ties by calibrated loss.

    A setting that lacks seeds that another one has comes after those that lack none: a mean over
    other splits is another number.

    Args:
        runs: Setting -> seed -> answers; settings without any run are left out.
        confidence: Of the intervals, in (0, 1).
        resamples: Of the bootstrap over groups.
        seed: Of the resamples.
    """
    found = {setting: by_seed for setting, by_seed in runs.items() if by_seed}
    order = sorted(found, key=lambda setting: _standing(found[setting]))
    return [
        Ranked(
            setting,
            tuple(sorted(found[setting])),
            float(np.mean([answers.accuracy for answers in found[setting].values()])),
            None
            if setting == order[0]
            else _difference(
                found[order[0]],
                found[setting],
                confidence=confidence,
                resamples=resamples,
                seed=seed,
            ),
        )
        for setting in order
    ]


def _standing(by_seed: Mapping[int, Answers]) -> tuple[int, float, float]:
    answers = by_seed.values()
    accuracy = float(np.mean([one.accuracy for one in answers]))
    return -len(by_seed), -accuracy, float(np.mean([one.loss for one in answers]))


def _difference(
    chosen: Mapping[int, Answers],
    other: Mapping[int, Answers],
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> Estimate | None:
    """Compare image by image; an image that stands in val of several seeds stays in its group."""
    shared = [
        number
        for number in sorted(chosen.keys() & other.keys())
        if chosen[number].images == other[number].images
    ]
    if not shared:
        return None
    groups = [group for number in shared for group in chosen[number].groups]
    return paired_accuracy_interval(
        _joined([chosen[number] for number in shared]),
        _joined([other[number] for number in shared]),
        groups,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def _joined(answers: Sequence[Answers]) -> Bools:
    return np.concatenate([one.right for one in answers])
