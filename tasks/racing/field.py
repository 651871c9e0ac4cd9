"""Who takes part in a race, on how many images: as a budget affords.

The budget is in multiply-adds, so that it is the same on every machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tasks.artifacts.records import LayerGroup
from tasks.params import FinetuneParams, RaceParams
from tasks.training.costs import Workload, cost_of_cache, cost_of_phase
from tasks.transferability.arms import NamedArm, name_arms

LOOKS = 2  # at val, of a racer
VAL_IMAGES = 2000  # that judge a racer, at most (somewhat more where groups are large)
ROUNDS = 2  # of halving; each later one has twice the images


@dataclass(frozen=True)
class Field:
    """The arms of the first round and its number of images.

    `share`: what all rounds cost at most on so many images, of what fine-tuning is expected to
    cost.
    """

    entries: Sequence[NamedArm]
    images: int
    share: float


def choose_field(
    groups: Sequence[LayerGroup],
    costs: Sequence[float],
    cuts: Sequence[int],
    work: Workload,
    params: RaceParams,
    tuning: FinetuneParams,
) -> Field | None:
    """Choose the largest field that the budget affords with enough images; None: it affords none.

    Every depth takes part, and scratch where there are means for it too. A race of the upper layers
    alone could change nothing, since the rules go deeper than those.

    Args:
        groups: Of the backbone.
        costs: Share of a forward pass that each of them takes.
        cuts: Lowest trained group of each phase that the rules plan.
        work: All images; its epochs do not matter.
        params: The `race` block.
        tuning: The `finetune` block.
    """
    whole = expected_cost(costs, cuts, work, tuning)
    trained = [one for one in name_arms(groups) if one.phases]
    for entries in (trained, trained[:-1]):
        images = _affordable_images(costs, entries, params.share * whole, work, params.epochs)
        if images >= params.min_images:
            cost = cost_of_race(costs, entries, images, work, params.epochs)
            return Field(entries, images, cost / whole)
    return None


def expected_cost(
    costs: Sequence[float], cuts: Sequence[int], work: Workload, tuning: FinetuneParams
) -> float:
    """Give what fine-tuning costs, in forward passes of one image through all layers.

    Its last phase counts as neither repeated nor given up early.
    """
    epochs = [*[tuning.early_epochs] * (len(cuts) - 1), tuning.epochs]
    phases = sum(
        cost_of_phase(costs, cut, replace(work, epochs=some, looks=some + 1))
        for cut, some in zip(cuts, epochs, strict=True)
    )
    return phases + cost_of_cache(costs, max(cuts), work)


def cost_of_race(
    costs: Sequence[float], entries: Sequence[NamedArm], images: float, work: Workload, epochs: int
) -> float:
    """Give what all rounds cost at most, as `expected_cost`: those that stay are the dearest."""
    total = 0.0
    for number in range(ROUNDS):
        val = min(work.val, VAL_IMAGES)
        some = Workload(2**number * images, work.views, val, epochs, LOOKS)
        total += sum(
            cost_of_phase(costs, entry.cut, some) + cost_of_cache(costs, entry.cut, some)
            for entry in entries
        )
        entries = entries[-staying(len(entries)) :]
    return total


def staying(racers: int) -> int:
    """How many of some racers take part in the next round."""
    return max(1, racers // 2)


def _affordable_images(
    costs: Sequence[float],
    entries: Sequence[NamedArm],
    budget: float,
    work: Workload,
    epochs: int,
) -> int:
    """Most images of the first round; the last one cannot have more than there are."""
    fixed = cost_of_race(costs, entries, 0, work, epochs)
    slope = cost_of_race(costs, entries, 1, work, epochs) - fixed
    most: float = work.images // 2 ** (ROUNDS - 1)
    return int(min(most, (budget - fixed) / slope))
