"""The rules that choose how to transfer: evidence in, choice out, every rule open to inspection.

The field's guides agree on training from scratch only with very much data in a far domain. They
also advise frozen features for little data and similar domains, and deeper fine-tuning with more
data and in farther ones. With low rates below the head, and val that keeps the frozen features
where fine-tuning does not pay, that was not borne out (docs/decisions.md).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tasks.artifacts.records import (
    Arm,
    BackboneInfo,
    Baseline,
    Domain,
    Estimate,
    Marks,
    Race,
    Rule,
    Similarity,
)
from tasks.artifacts.tables import Manifest
from tasks.params import DecideParams
from tasks.transferability.arms import count_groups

ONE_PHASE = 20  # images a class up to which all layers are unfrozen at once
RAISE_ABOVE = 1.6  # loss of frozen features on val, as a multiple of that on train


@dataclass(frozen=True, slots=True)
class RaceWinner:
    """The arm that won a race and its lowest trained group."""

    arm: Arm
    cut: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the rules look at; numbers without their intervals, None where they were not measured.

    `images`: training images. `blocks`: of each layer group of the backbone. `mmd`: squared, to the
    source images that fit best; `p_value`: of the permutation test. `gain`: accuracy of pretrained
    minus random features, in [-1, 1]. `error`: share of images that frozen features have wrong, by
    folds; `room`: share of val that a model without mistakes would surely have right beyond them.
    `overfit`: loss of frozen features on val over that on train, above 0, perhaps infinite.
    `winner`: of a race; None where there was none.
    """

    images: int
    classes: int
    blocks: tuple[int, ...]
    mmd: float | None = None
    p_value: float | None = None
    gain: float | None = None
    error: float | None = None
    room: float | None = None
    overfit: float | None = None
    winner: RaceWinner | None = None

    @property
    def images_per_class(self) -> float:
        """Mean number of training images of a class."""
        return self.images / self.classes

    @property
    def groups(self) -> int:
        """Layer groups of the backbone."""
        return len(self.blocks)


@dataclass(frozen=True, slots=True)
class ArmChoice:
    """How to transfer. `phases`: lowest unfrozen group of each phase, top down.

    `raised`: whether the phases have raised rates.
    """

    domain: Domain | Literal["unknown"]
    arm: Arm
    phases: tuple[int, ...]
    raised: bool


def choose(evidence: Evidence, params: DecideParams) -> ArmChoice:
    """Choose arm and phases: the first rule that fires and votes decides."""
    arm = next(
        rule.votes_for for rule in apply_rules(evidence, params) if rule.fired and rule.votes_for
    )
    return ArmChoice(
        domain=domain_of(evidence, params),
        arm=arm,
        phases=choose_cuts(arm, evidence, params),
        raised=arm == "fine_tune" and raises_rates(evidence),
    )


def domain_of(evidence: Evidence, params: DecideParams) -> Domain | Literal["unknown"]:
    """What the matched MMD says; unknown where it was not measured or no mark tells its meaning."""
    if evidence.mmd is None or params.similar_mmd == "auto" or params.far_mmd == "auto":
        return "unknown"
    if evidence.mmd < params.similar_mmd:
        return "similar"
    return "far" if evidence.mmd > params.far_mmd else "intermediate"


# how deep ----------------------------------------------------------------------------------------


def choose_cuts(arm: Arm, evidence: Evidence, params: DecideParams) -> tuple[int, ...]:
    """Lowest unfrozen group of each phase, top down; scratch: (0,); frozen: ().

    Fine-tuning reaches its depth in at most three phases, by halves from the top, so that upper
    groups have settled before lower ones move. With few images there is one phase.

    Source: Howard and Ruder 2018 (1801.06146), gradual unfreezing.
    """
    if arm == "feature_extraction":
        return ()
    if arm == "scratch":
        return (0,)
    depth = _depth(evidence, params)
    steps = {depth}
    if evidence.images_per_class > ONE_PHASE:
        steps |= {math.ceil(depth / part) for part in (2, 4)} - {0, 1}
    return tuple(evidence.groups - step for step in sorted(steps))


def _depth(evidence: Evidence, params: DecideParams) -> int:
    """Number of groups to unfreeze, at least 1; a race that fine-tuning won has measured it."""
    winner = evidence.winner
    if winner is None or winner.arm != "fine_tune":
        return count_groups(params.depth, evidence.blocks)
    return evidence.groups - winner.cut


# the rules ---------------------------------------------------------------------------------------


def apply_rules(evidence: Evidence, params: DecideParams) -> list[Rule]:
    """Ask every rule, in order of precedence; a rule that votes silences the votes after it."""
    return list(_rules(evidence, params))


def _rules(evidence: Evidence, params: DecideParams) -> Iterator[Rule]:
    yield _mmd_rule(evidence, params)
    yield _gain_rule(evidence, params)
    yield _ceiling_rule(evidence, params)
    yield _race_rule(evidence)
    yield _scratch_rule(evidence, params)
    yield _fine_tune_rule(evidence, params)
    yield _rates_rule(evidence)


def _mmd_rule(evidence: Evidence, params: DecideParams) -> Rule:
    says = domain_of(evidence, params)
    return Rule(
        name="domain by MMD",
        statement=f"MMD^2 to the source images that fit best: below {_mark(params.similar_mmd)} "
        f"the domain is similar, above {_mark(params.far_mmd)} far.",
        inputs={"mmd": evidence.mmd, "p_value": evidence.p_value, "says": says},
        fired=says != "unknown",
        votes_for=None,
    )


def _mark(threshold: float | Literal["auto"]) -> str:
    return "the ruler's mark" if threshold == "auto" else f"{threshold:.3g}"


def gains_little(evidence: Evidence, params: DecideParams) -> bool:
    """Whether pretrained features are hardly better than random ones."""
    return evidence.gain is not None and evidence.gain < params.min_transfer_gain


def _gain_rule(evidence: Evidence, params: DecideParams) -> Rule:
    return Rule(
        name="transfer must gain",
        statement="A gain of pretrained over random features below "
        f"{params.min_transfer_gain:g} is a warning: there is little to transfer.",
        inputs={"transfer_gain": evidence.gain},
        fired=gains_little(evidence, params),
        votes_for=None,
    )


def at_ceiling(evidence: Evidence, params: DecideParams) -> bool:
    """Whether frozen features make hardly a mistake and val could not tell a better model."""
    if evidence.error is None or evidence.room is None:
        return False
    return evidence.error < params.ceiling_error and evidence.room <= 0


def _ceiling_rule(evidence: Evidence, params: DecideParams) -> Rule:
    return Rule(
        name="frozen at its ceiling",
        statement="Frozen features suffice where they err on less than "
        f"{params.ceiling_error:.1%} of the images, and val could not tell even a flawless model "
        "from them.",
        inputs={"error_by_folds": evidence.error, "sure_gain_of_a_flawless_model": evidence.room},
        fired=at_ceiling(evidence, params),
        votes_for="feature_extraction",
    )


def _race_rule(evidence: Evidence) -> Rule:
    winner = evidence.winner
    return Rule(
        name="the winner of a race",
        statement="An arm that wins a race on a part of these images, beyond doubt, is taken.",
        inputs={
            "winner": winner and winner.arm,
            "lowest_trained_group": winner and winner.cut,
        },
        fired=winner is not None,
        votes_for=winner and winner.arm,
    )


def _scratch_rule(evidence: Evidence, params: DecideParams) -> Rule:
    domain = domain_of(evidence, params)
    return Rule(
        name="scratch only for very much far data",
        statement=f"From scratch only with at least {params.scratch_min_images:,} training images, "
        f"a far domain and a transfer gain below {params.min_transfer_gain:g}.",
        inputs={"images": evidence.images, "domain": domain, "transfer_gain": evidence.gain},
        fired=evidence.images >= params.scratch_min_images
        and domain == "far"
        and gains_little(evidence, params),
        votes_for="scratch",
    )


def _fine_tune_rule(evidence: Evidence, params: DecideParams) -> Rule:
    return Rule(
        name="fine-tune",
        statement="Where nothing speaks against it, fine-tune: that paid nearly everywhere it was "
        "tried, and val keeps the frozen features where it does not.",
        inputs={
            "share_of_blocks": params.depth,
            "groups": count_groups(params.depth, evidence.blocks),
        },
        fired=True,
        votes_for="fine_tune",
    )


def raises_rates(evidence: Evidence) -> bool:
    """Whether fine-tuning bears higher rates.

    It does where the images are many and frozen features separate those of train far better than
    those of val. Where they cannot even fit train, higher rates did harm, and with few images no
    good (docs/benchmarks/rates.md).
    """
    many = evidence.images_per_class > ONE_PHASE
    return many and evidence.overfit is not None and evidence.overfit > RAISE_ABOVE


def _rates_rule(evidence: Evidence) -> Rule:
    return Rule(
        name="raised rates",
        statement="If it fine-tunes, it does so at raised rates (finetune.raise_lr) with more than "
        f"{ONE_PHASE} images a class, where the loss of frozen features on val is more than "
        f"{RAISE_ABOVE:g} times that on train.",
        inputs={
            "loss_on_val_over_train": evidence.overfit,
            "images_a_class": evidence.images_per_class,
        },
        fired=raises_rates(evidence),
        votes_for=None,
    )


# what stages before the decision measured, as the rules look at it --------------------------------


def set_marks(params: DecideParams, marks: Marks | None) -> DecideParams:
    """Put the ruler's marks where the parameters say auto; without a ruler it stays."""
    if params.similar_mmd != "auto" or marks is None:
        return params
    return params.model_copy(update={"similar_mmd": marks.similar, "far_mmd": marks.far})


def gather_evidence(
    info: BackboneInfo,
    manifest: Manifest,
    baseline: Baseline,
    similarity: Similarity | None = None,
    race: Race | None = None,
) -> Evidence:
    """Take from the measurements what the rules look at.

    Args:
        info: Its layer groups are what can be unfrozen.
        manifest: Tells the numbers of training images and classes.
        baseline: What frozen features make of the images.
        similarity: Measured on the training images; None where nothing is asked that it tells.
        race: What became of it; None before there was one.
    """
    mmd, folds, room = similarity and similarity.mmd, baseline.folds_accuracy, baseline.room
    return Evidence(
        images=len(manifest.of("train")),
        classes=len(manifest.class_names),
        blocks=tuple(group.blocks for group in info.groups),
        mmd=mmd.matched.value if mmd else None,
        p_value=mmd.p_value if mmd else None,
        gain=similarity.transfer_gain.value if similarity else None,
        error=1 - folds.value if folds else None,
        room=room.low if room else None,
        overfit=baseline.overfit,
        winner=_winner_of(race) if race else None,
    )


def _winner_of(race: Race) -> RaceWinner | None:
    return RaceWinner(race.winner.arm, race.winner.cut) if race.winner else None


def errors_by_folds(baseline: Baseline) -> Estimate | None:
    """Share of images that frozen features have wrong, by folds; None where it was not measured."""
    right = baseline.folds_accuracy
    if right is None:
        return None
    return Estimate(
        value=1 - right.value,
        low=None if right.high is None else 1 - right.high,
        high=None if right.low is None else 1 - right.low,
        n=right.n,
    )
