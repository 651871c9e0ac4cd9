"""How sure a choice is and what would change it: the rules asked again with other evidence."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np

from tasks.artifacts.records import Distance, Estimate, Race, Similarity
from tasks.params import DecideParams
from tasks.transferability.rules import (
    DOMAINS,
    ArmChoice,
    Evidence,
    at_ceiling,
    choose,
    domain_by_mmd,
    domain_by_shift,
)

Confidence = Literal["low", "medium", "high"]
Quantity = Literal["images", "mmd", "shift", "gain", "error", "overfit"]

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
    errors: Estimate | None = None,
    race: Race | None = None,
) -> Assessment:
    """Rate a choice: low where the arm is in doubt, medium where its domain is, else high.

    Where frozen features are at their ceiling, or a race has a winner, neither domain nor rules are
    asked any more.

    Args:
        evidence: What the rules look at.
        similarity: The same with intervals.
        params: The `decide` block.
        errors: Share of images that frozen features have wrong, with its interval.
        race: What became of it; None before there was one.
    """
    if at_ceiling(evidence, params):
        mild = list(_doubts_of_ceiling(errors, params))
        return Assessment("medium" if mild else "high", mild)
    if evidence.winner is not None:
        return Assessment("high", [])
    grave = list(_grave_doubts(evidence, similarity, params))
    mild = list(_mild_doubts(evidence, similarity, params))
    lost = [race.words] if race and race.words and (grave or mild) else []
    return Assessment("low" if grave else "medium" if mild else "high", [*grave, *mild, *lost])


def _doubts_of_ceiling(errors: Estimate | None, params: DecideParams) -> Iterator[str]:
    if errors is not None and (errors.high is None or errors.high > params.ceiling_error):
        most = 1.0 if errors.high is None else errors.high
        yield f"There are so few images that frozen features may still err on {most:.1%} of others."


def _grave_doubts(
    evidence: Evidence, similarity: Similarity, params: DecideParams
) -> Iterator[str]:
    chosen = choose(evidence, params)
    if domain_by_mmd(evidence, params) is None and evidence.shift is None:
        yield "Nothing tells how far the domain is."
    if any(choose(other, params).arm != chosen.arm for other in within(evidence, similarity)):
        yield "Within the intervals of the measurements the rules name different arms."
    if evidence.room is not None and evidence.room <= 0:
        yield "Val is too small: it could not tell even a flawless model from frozen features."
    if _disagreement(evidence, params) > 1:
        yield "MMD and batch-norm shift contradict each other about the domain."
    if evidence.gain < params.min_transfer_gain:
        yield "Pretrained features hardly beat random ones, so transfer itself is in doubt."
    if (
        evidence.p_value is not None
        and evidence.p_value > params.max_p_value
        and chosen.domain != "similar"
    ):
        yield (
            f"The images cannot be told from the source (p = {evidence.p_value:.2f}): too few of "
            "them to trust the distance."
        )


def _mild_doubts(evidence: Evidence, similarity: Similarity, params: DecideParams) -> Iterator[str]:
    chosen = choose(evidence, params)
    others = [choose(other, params) for other in within(evidence, similarity)]
    if any(other.arm == chosen.arm and other != chosen for other in others):
        yield "Within the intervals of the measurements the rules name different domains."
    if _disagreement(evidence, params) == 1:
        yield (
            f"MMD says {domain_by_mmd(evidence, params)}, batch-norm shift says "
            f"{domain_by_shift(evidence, params)}."
        )
    if domain_by_mmd(evidence, params) is None and evidence.shift is not None:
        yield "The domain rests on batch-norm shift alone: no source card or ruler fits."


def _disagreement(evidence: Evidence, params: DecideParams) -> int:
    """Steps between what MMD and shift say about the domain; 0 where one of them is missing."""
    by_mmd, by_shift = domain_by_mmd(evidence, params), domain_by_shift(evidence, params)
    if by_mmd is None or by_shift is None:
        return 0
    return abs(DOMAINS.index(by_mmd) - DOMAINS.index(by_shift))


def within(evidence: Evidence, similarity: Similarity) -> Iterator[Evidence]:
    """Yield the evidence at all combinations of the interval ends of what the rules look at."""
    quantity: Quantity = "mmd" if similarity.mmd else "shift"
    distances = _ends(similarity.mmd.matched if similarity.mmd else similarity.shift)
    for distance, gain in product(distances, _ends(similarity.transfer_gain)):
        moved = evidence if gain is None else _with(evidence, "gain", gain)
        yield moved if distance is None else _with(moved, quantity, distance)


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
    elif evidence.shift is not None:
        yield "shift", np.linspace(evidence.shift, evidence.shift + 100, 10 * STEPS).tolist()
        yield "shift", np.linspace(evidence.shift, 0.0, STEPS).tolist()
    if evidence.error is not None and at_ceiling(evidence, params):
        yield "error", np.linspace(evidence.error, 1.0, STEPS).tolist()
    if evidence.overfit is not None:
        start = min(evidence.overfit, LARGEST_RATIO)  # it may be infinite
        for end in (LARGEST_RATIO, 0.0):
            yield "overfit", [evidence.overfit, *np.linspace(start, end, STEPS).tolist()]
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
    if quantity == "shift":
        return replace(evidence, shift=value)
    if quantity == "error":
        return replace(evidence, error=value)
    if quantity == "overfit":
        return replace(evidence, overfit=value)
    return replace(evidence, gain=value)
