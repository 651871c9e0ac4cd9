"""Choose between training from scratch, frozen features and fine-tuning, and say why.

Reads the numbers of images and classes, the similarity, what frozen features make of the images,
the race and the backbone's layer groups; writes decision.json with every rule and what it saw,
transfer.json with what fine-tuning does, and decision.md in words.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.artifacts.files import write_text
from tasks.artifacts.records import (
    BackboneInfo,
    Baseline,
    Decision,
    DecisionEvidence,
    Race,
    Similarity,
    Transfer,
    read_record,
    write_record,
)
from tasks.artifacts.tables import Manifest, read_manifest
from tasks.params import DecideParams
from tasks.runtime.entry import Read, StagePaths, Write, read_arguments, run_stage
from tasks.transferability.arms import consider_arms
from tasks.transferability.decision_words import describe_change, describe_plan, explain, write_page
from tasks.transferability.doubts import assess, find_changes
from tasks.transferability.rules import (
    apply_rules,
    at_ceiling,
    choose,
    choose_cuts,
    errors_by_folds,
    gather_evidence,
    raises_rates,
    set_marks,
)

log = logging.getLogger(__name__)

ADVICE = (
    "The arm is in doubt: try the others with decide.arm in params.yaml, each with several seeds, "
    "and compare them on val; more images in val tell more."
)


@dataclass(frozen=True)
class Paths(StagePaths):
    """What the stage reads and writes."""

    manifest: Read
    similarity: Read
    backbone: Read
    baseline: Read
    race: Read
    decision: Write
    transfer: Write
    words: Write


@dataclass(frozen=True)
class Measured:
    """What the stages before found."""

    manifest: Manifest
    similarity: Similarity
    backbone: BackboneInfo
    baseline: Baseline
    race: Race


def decide(found: Measured, params: DecideParams) -> Decision:
    """Choose how to transfer.

    A forced arm gets the phases that the rules would give it; what they recommend is recorded.

    Args:
        found: The images, what was measured on them, and the layer groups that can be unfrozen.
        params: Thresholds, and the arm if the user forces one.
    """
    similarity, info, baseline, race = found.similarity, found.backbone, found.baseline, found.race
    params = set_marks(params, similarity.marks)
    evidence = gather_evidence(info, found.manifest, baseline, similarity, race)
    recommended = choose(evidence, params)
    arm = recommended.arm if params.arm == "auto" else params.arm
    errors = errors_by_folds(baseline)
    val_images = baseline.val_accuracy.n
    assessment = assess(evidence, similarity, params, val_images=val_images, errors=errors)
    decision = Decision(
        arm=arm,
        forced=params.arm != "auto",
        recommended=recommended.arm,
        domain=recommended.domain,
        confidence=assessment.confidence,
        phases=list(choose_cuts(arm, evidence, params)),
        raised=arm == "fine_tune" and raises_rates(evidence),
        rules=apply_rules(evidence, params),
        would_change=[
            describe_change(change, info.groups) for change in find_changes(evidence, params)
        ],
        reasons=[],
        evidence=DecisionEvidence(
            frozen_accuracy=baseline.val_accuracy,
            folds_accuracy=baseline.folds_accuracy,
            room=baseline.room,
            at_ceiling=at_ceiling(evidence, params),
            curve=baseline.curve,
            race=race,
        ),
    )
    reasons = [*explain(evidence, similarity, decision), *assessment.doubts]
    if assessment.confidence == "low":
        reasons.append(ADVICE)
    return decision.model_copy(
        update={"reasons": reasons, "arms": consider_arms(decision, race, info.groups)}
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Read the measurements, decide, write the decision and its words."""
    paths, params = read_arguments(
        Paths,
        "decide",
        "Choose between scratch, frozen features and fine-tuning, with reasons.",
        argv,
    )
    found = Measured(
        manifest=read_manifest(paths.manifest),
        similarity=read_record(paths.similarity, Similarity),
        backbone=read_record(paths.backbone, BackboneInfo),
        baseline=read_record(paths.baseline, Baseline),
        race=read_record(paths.race, Race),
    )
    decision, groups = decide(found, params.decide), found.backbone.groups
    write_record(paths.decision, decision)
    transfer = Transfer(arm=decision.arm, phases=decision.phases, raised=decision.raised)
    write_record(paths.transfer, transfer)
    write_text(paths.words, write_page(decision, groups, found.similarity.look))
    log.info(
        "%s (domain %s, confidence %s)",
        describe_plan(decision.arm, decision.phases, groups, raised=decision.raised),
        decision.domain,
        decision.confidence,
    )


if __name__ == "__main__":
    sys.exit(run_stage("decide", main))
