"""How sure a choice is and what would change it: the rules asked again with other evidence."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np

from tasks.artifacts.records import Distance, Estimate, Similarity
from tasks.params import DecideParams
from tasks.transferability.rules import (
    ONE_PHASE,
    ArmChoice,
    Evidence,
    at_ceiling,
    choose,
    gains_little,
)

Confidence = Literal["low", "medium", "high"]
Quantity = Literal["images", "mmd", "gain", "error", "overfit"]

# Of how many choices that were tried (docs/decisions.md), how many were within a point of the best.
PROVEN: dict[Confidence, tuple[int, int]] = {"high": (57, 44), "medium": (72, 51), "low": (12, 3)}
FEW_VAL = 20  # images in val below which it hardly tells which of two models is better
LARGEST_IMAGES = 10**8
LARGEST_RATIO = 100.0  # of losses
STEPS = 120  # of the search along one quantity, before bisection
BISECTIONS = 60


@dataclass(frozen=True, slots=True)
class Assessment:
    """Confidence in a choice, and the sentences that say why it is not higher."""

    confidence: Confidence
    doubts: list[str]


@dataclass(frozen=True, slots=True)
class Change:
    """The nearest value of one quantity at which the choice is another one."""

    quantity: Quantity
    at: float
    rises: bool
    choice: ArmChoice


# how sure ----------------------------------------------------------------------------------------


def assess(
    evidence: Evidence,
    similarity: Similarity,
    params: DecideParams,
    *,
    val_images: int,
    errors: Estimate | None = None,
) -> Assessment:
    """Rate a choice by how often one like it was right (docs/decisions.md).

    Low where val is too small to tell models apart or the rules themselves waver, medium with few
    images a class or little left to gain, else high. Where frozen features are at their ceiling, or
    a race has a winner, nothing of this is asked any more.

    Args:
        evidence: What the rules look at.
        similarity: The same with intervals.
        params: The `decide` block.
        val_images: How many judge.
        errors: Share of images that frozen features have wrong, with its interval.
    """
    if at_ceiling(evidence, params):
        doubts = list(_doubts_of_ceiling(errors, params))
        return Assessment("medium" if doubts else "high", doubts)
    if evidence.winner is not None:
        return Assessment("high", [])
    doubts = list(_doubts(evidence, similarity, params, val_images))
    if doubts:
        return Assessment("low", doubts)
    doubts = list(_mild_doubts(evidence))
    return Assessment("medium" if doubts else "high", doubts)


def _doubts_of_ceiling(errors: Estimate | None, params: DecideParams) -> Iterator[str]:
    if errors is not None and (errors.high is None or errors.high > params.ceiling_error):
        most = 1.0 if errors.high is None else errors.high
        yield f"There are so few images that frozen features may still err on {most:.1%} of others."


def _doubts(
    evidence: Evidence, similarity: Similarity, params: DecideParams, val_images: int
) -> Iterator[str]:
    chosen = choose(evidence, params)
    if any(choose(other, params).arm != chosen.arm for other in within(evidence, similarity)):
        yield "Within the intervals of the measurements the rules name different arms."
    if val_images < FEW_VAL:
        yield f"Val has {val_images} images: with fewer than {FEW_VAL}, a worse model often wins."
    if gains_little(evidence, params):
        yield "Pretrained features hardly beat random ones, so transfer itself is in doubt."


def _mild_doubts(evidence: Evidence) -> Iterator[str]:
    if evidence.images_per_class <= ONE_PHASE:
        yield f"With at most {ONE_PHASE} images a class, chance has a say in which arm is best."
    if evidence.room is not None and evidence.room <= 0:
        yield "Val could not show even a flawless model to be better than frozen features."


def within(evidence: Evidence, similarity: Similarity) -> Iterator[Evidence]:
    """Yield the evidence at all combinations of the interval ends of what the rules look at."""
    distances = _ends(similarity.mmd.matched if similarity.mmd else None)
    for distance, gain in product(distances, _ends(similarity.transfer_gain)):
        moved = evidence if gain is None else _with(evidence, "gain", gain)
        yield moved if distance is None else _with(moved, "mmd", distance)


def _ends(measured: Estimate | Distance | None) -> tuple[float | None, ...]:
    return (None,) if measured is None else (measured.low, measured.value, measured.high)


# what would change it ----------------------------------------------------------------------------


def find_changes(evidence: Evidence, params: DecideParams) -> list[Change]:
    """Find the nearest value of each quantity, up and down, at which choice or arm change.

    Every answer was found by asking the rules again; none is assumed.
    """
    changes: list[Change] = []
    for quantity, values in _paths(evidence, params):
        for same in (_same_arm, _same_choice):
            change = _first_change(evidence, params, quantity, values, same)
            if change is not None and change not in changes:
                changes.append(change)
    return changes


def _same_arm(a: ArmChoice, b: ArmChoice) -> bool:
    return a.arm == b.arm


def _same_choice(a: ArmChoice, b: ArmChoice) -> bool:
    return (a.arm, a.phases, a.raised) == (b.arm, b.phases, b.raised)


def _paths(evidence: Evidence, params: DecideParams) -> Iterator[tuple[Quantity, Sequence[float]]]:
    """Yield values of each quantity that lead away from the evidence, starting at it."""
    images = evidence.images
    yield "images", _whole(np.geomspace(images, max(LARGEST_IMAGES, images), STEPS))
    yield "images", _whole(np.geomspace(images, min(evidence.classes, images), STEPS))
    if evidence.mmd is not None:
        yield "mmd", np.linspace(evidence.mmd, 2.0, STEPS).tolist()
        yield "mmd", np.linspace(evidence.mmd, 0.0, STEPS).tolist()
    if evidence.error is not None and at_ceiling(evidence, params):
        yield "error", np.linspace(evidence.error, 1.0, STEPS).tolist()
    if evidence.overfit is not None:
        start = min(evidence.overfit, LARGEST_RATIO)  # it may be infinite
        for end in (LARGEST_RATIO, 0.0):
            yield "overfit", [evidence.overfit, *np.linspace(start, end, STEPS).tolist()]
    if evidence.gain is not None:
        yield "gain", np.linspace(evidence.gain, 1.0, STEPS).tolist()
        yield "gain", np.linspace(evidence.gain, -1.0, STEPS).tolist()


def _whole(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> list[float]:
    return [int(value) for value in np.round(values)]


def _first_change(
    evidence: Evidence,
    params: DecideParams,
    quantity: Quantity,
    values: Sequence[float],
    same: Callable[[ArmChoice, ArmChoice], bool],
) -> Change | None:
    chosen = choose(evidence, params)

    def choice_at(value: float) -> ArmChoice:
        return choose(_with(evidence, quantity, value), params)

    last = values[0]
    for value in values[1:]:
        if not same(choice_at(value), chosen):
            at = _bisect(last, value, lambda middle: not same(choice_at(middle), chosen))
            return Change(quantity, at, at > values[0], choice_at(at))
        last = value
    return None


def _bisect(before: float, after: float, changed: Callable[[float], bool]) -> float:
    """Value nearest to `before` that is changed, as `after` is; whole between whole numbers."""
    whole = isinstance(before, int)
    for _ in range(BISECTIONS):
        middle = (before + after) // 2 if whole else (before + after) / 2
        if middle in (before, after):
            break
        before, after = (before, middle) if changed(middle) else (middle, after)
    return after


def _with(evidence: Evidence, quantity: Quantity, value: float) -> Evidence:
    if quantity == "images":
        return replace(evidence, images=int(value))
    if quantity == "mmd":
        return replace(evidence, mmd=value)
    if quantity == "error":
        return replace(evidence, error=value)
    if quantity == "overfit":
        return replace(evidence, overfit=value)
    return replace(evidence, gain=value)
