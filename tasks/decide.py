"""Choose between training from scratch, frozen features and fine-tuning, and say why.

Reads the numbers of images and classes, the similarity and the backbone's layer groups; writes
decision.json with every rule and what it saw, and decision.md in words.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.artifacts.files import write_text
from tasks.artifacts.records import (
    BackboneInfo,
    Decision,
    Marks,
    Similarity,
    read_record,
    write_record,
)
from tasks.artifacts.tables import read_manifest
from tasks.params import DecideParams
from tasks.runtime.entry import Read, StagePaths, Write, read_arguments, run_stage
from tasks.transferability.decision_words import describe_change, describe_plan, explain, write_page
from tasks.transferability.doubts import assess, find_changes
from tasks.transferability.rules import Evidence, apply_rules, choose, choose_cuts

log = logging.getLogger(__name__)

ADVICE = (
    "The arm is in doubt: try the others with decide.arm in params.yaml and compare them on val."
)


@dataclass(frozen=True)
class Paths(StagePaths):
    """What the stage reads and writes."""

    manifest: Read
    similarity: Read
    backbone: Read
    decision: Write
    words: Write


def decide(
    similarity: Similarity,
    info: BackboneInfo,
    *,
    images: int,
    classes: int,
    params: DecideParams,
) -> Decision:
    """Choose how to transfer.

    A forced arm gets the phases that the rules would give it; what they recommend is recorded.

    Args:
        similarity: Measured on the training images.
        info: Its layer groups are what can be unfrozen.
        images: Number of training images.
        classes: Number of classes.
        params: Thresholds, and the arm if the user forces one.
    """
    params = set_marks(params, similarity.marks)
    evidence = gather_evidence(similarity, info, images=images, classes=classes)
    recommended = choose(evidence, params)
    arm = recommended.arm if params.arm == "auto" else params.arm
    assessment = assess(evidence, similarity, params)
    decision = Decision(
        arm=arm,
        forced=params.arm != "auto",
        recommended=recommended.arm,
        domain=recommended.domain,
        confidence=assessment.confidence,
        phases=list(choose_cuts(arm, evidence, params)),
        rules=apply_rules(evidence, params),
        would_change=[
            describe_change(change, info.groups) for change in find_changes(evidence, params)
        ],
        reasons=[],
    )
    reasons = [*explain(evidence, similarity, decision), *assessment.doubts]
    if assessment.confidence == "low":
        reasons.append(ADVICE)
    return decision.model_copy(update={"reasons": reasons})


def set_marks(params: DecideParams, marks: Marks | None) -> DecideParams:
    """Put the ruler's marks where the parameters say auto; without a ruler it stays."""
    if params.similar_mmd != "auto" or marks is None:
        return params
    return params.model_copy(update={"similar_mmd": marks.similar, "far_mmd": marks.far})


def gather_evidence(
    similarity: Similarity, info: BackboneInfo, *, images: int, classes: int
) -> Evidence:
    """Take from the measurements what the rules look at."""
    mmd, shift = similarity.mmd, similarity.shift
    return Evidence(
        images=images,
        classes=classes,
        groups=len(info.groups),
        mmd=mmd.matched.value if mmd else None,
        p_value=mmd.p_value if mmd else None,
        shift=shift.value if shift else None,
        gain=similarity.transfer_gain.value,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Read the measurements, decide, write the decision and its words."""
    paths, params = read_arguments(
        Paths,
        "decide",
        "Choose between scratch, frozen features and fine-tuning, with reasons.",
        argv,
    )
    manifest = read_manifest(paths.manifest)
    info = read_record(paths.backbone, BackboneInfo)
    decision = decide(
        read_record(paths.similarity, Similarity),
        info,
        images=len(manifest.of("train")),
        classes=len(manifest.class_names),
        params=params.decide,
    )
    write_record(paths.decision, decision)
    write_text(paths.words, write_page(decision, info.groups))
    log.info(
        "%s (domain %s, confidence %s)",
        describe_plan(decision.arm, decision.phases, info.groups),
        decision.domain,
        decision.confidence,
    )


if __name__ == "__main__":
    sys.exit(run_stage("decide", main))
