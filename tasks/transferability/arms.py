"""The ways to transfer that are told apart: frozen features, three depths, from scratch."""

import math
from dataclasses import dataclass

from tasks.artifacts.records import Arm, ConsideredArm, Decision, Estimate, Race, Racer

DEPTHS = {"top": 0.25, "half": 0.5, "all": 1.0}  # share of the layer groups that are trained
IN_WORDS = {
    "frozen": "frozen features",
    "top": "fine-tuning the top quarter of the layer groups",
    "half": "fine-tuning the upper half of the layer groups",
    "all": "fine-tuning all layer groups",
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


def name_arms(groups: int) -> list[NamedArm]:
    """Name every arm, from the cheapest to the dearest.

    Args:
        groups: Layer groups of the backbone.
    """
    tuned = {name: groups - math.ceil(share * groups) for name, share in DEPTHS.items()}
    return [
        NamedArm("frozen", "feature_extraction", groups),
        *(NamedArm(name, "fine_tune", cut) for name, cut in tuned.items()),
        NamedArm("scratch", "scratch", 0),
    ]


def consider_arms(decision: Decision, race: Race | None, groups: int) -> list[ConsideredArm]:
    """Say of every arm whether it was chosen, and what a race said of it."""
    arms = name_arms(groups)
    same = [one for one in arms if one.arm == decision.arm]
    lowest = min(decision.phases, default=groups)
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
