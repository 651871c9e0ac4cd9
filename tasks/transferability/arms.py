"""The ways to transfer that are told apart: frozen features, three depths, from scratch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.artifacts.records import Arm, ConsideredArm, Decision, Estimate, LayerGroup, Race, Racer

DEPTHS = {"top": 1 / 3, "most": 2 / 3, "all": 1.0}  # share of the blocks that are trained
IN_WORDS = {
    "frozen": "frozen features",
    "top": "fine-tuning the top third of the blocks",
    "most": "fine-tuning the upper two thirds of the blocks",
    "all": "fine-tuning all blocks",
    "scratch": "training from scratch",
}


@dataclass(frozen=True)
class NamedArm:
    """An arm and its lowest trained layer group; of frozen features, the one after the last."""

    name: str
    arm: Arm
    cut: int

    @property
    def phases(self) -> list[int]:
        """The one phase that it takes where it is trained at once."""
        return [] if self.arm == "feature_extraction" else [self.cut]


def count_groups(share: float, blocks: Sequence[int]) -> int:
    """Give the number of layer groups, from the top, whose blocks are nearest to a share of all.

    Groups of one network differ much in size, and those of two networks too: the last of
    ConvNeXt's four stages holds three blocks and half of the parameters.

    Args:
        share: In [0, 1].
        blocks: Of each layer group, in forward order.

    Returns:
        At least 1; of two that are as near, the fewer.
    """
    reached = np.cumsum(blocks[::-1]) / sum(blocks)
    return int(np.argmin(np.abs(reached - share).round(6))) + 1


def name_arms(groups: Sequence[LayerGroup]) -> list[NamedArm]:
    """Name every arm, from the cheapest to the dearest.

    Args:
        groups: Of the backbone.
    """
    blocks = [group.blocks for group in groups]
    tuned = {name: len(groups) - count_groups(share, blocks) for name, share in DEPTHS.items()}
    return [
        NamedArm("frozen", "feature_extraction", len(groups)),
        *(NamedArm(name, "fine_tune", cut) for name, cut in tuned.items()),
        NamedArm("scratch", "scratch", 0),
    ]


def consider_arms(
    decision: Decision, race: Race | None, groups: Sequence[LayerGroup]
) -> list[ConsideredArm]:
    """Say of every arm whether it was chosen, and what a race said of it."""
    arms = name_arms(groups)
    same = [one for one in arms if one.arm == decision.arm]
    lowest = min(decision.phases, default=len(groups))
    chosen = min(same, key=lambda one: abs(one.cut - lowest))
    raced = {racer.name: racer for done in (race.rounds if race else []) for racer in done.racers}
    return [
        ConsideredArm(
            name=one.name,
            arm=one.arm,
            cut=one.cut if one.phases else None,
            chosen=one is chosen,
            said=_what_a_race_said(one, raced),
        )
        for one in arms
    ]


def _what_a_race_said(arm: NamedArm, raced: dict[str, Racer]) -> str:
    if not raced:
        return "Not raced."
    if arm.arm == "feature_extraction":
        return "What all others were raced against."
    return f"Raced: {say_gain(raced[arm.name])}." if arm.name in raced else "Not raced."


def say_gain(racer: Racer) -> str:
    """Say what a racer gained over frozen features."""
    loss = racer.loss_change
    return (
        f"accuracy {say_points(racer.accuracy_gain)}, calibrated loss {loss.value:+.3f}"
        f"{_bounds(loss, 1, 3)}"
    )


def say_points(change: Estimate) -> str:
    """Say a change of accuracy in points, with its interval."""
    return f"{100 * change.value:+.1f} points{_bounds(change, 100, 1)}"


def _bounds(change: Estimate, scale: float, digits: int) -> str:
    if change.low is None or change.high is None:
        return ""
    return f" [{scale * change.low:+.{digits}f}, {scale * change.high:+.{digits}f}]"
