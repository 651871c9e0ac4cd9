"""Race arms on a part of the images, where the budget pays for it; val judges.

Writes race.json: the rounds and the winner, or why there was no race. A racer has a whole schedule
of its own on its part, against frozen features that learned from the same images.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tasks.artifacts.pixels import open_pixels
from tasks.artifacts.records import (
    BackboneInfo,
    Baseline,
    Race,
    read_record,
    write_record,
)
from tasks.artifacts.tables import read_manifest
from tasks.artifacts.words import ORDERS
from tasks.backbones.catalogue import create_architecture
from tasks.heads.features import read_features
from tasks.params import DecideParams
from tasks.racing.field import Field, choose_field
from tasks.racing.race import Ground, Means, run_race, say_race
from tasks.runtime.device import configure_torch
from tasks.runtime.entry import Read, StagePaths, Write, read_arguments, run_stage
from tasks.runtime.machine import read_machine
from tasks.training.costs import Workload, measure_costs
from tasks.training.feed.rows import Stores
from tasks.training.phases import last_epochs
from tasks.training.resume.workspace import Workspace
from tasks.transferability.rules import (
    Evidence,
    at_ceiling,
    choose_cuts,
    gather_evidence,
    raises_rates,
)

log = logging.getLogger(__name__)

OVERSHOOT = 1.5  # times the images that the budget pays for, where groups come whole


@dataclass(frozen=True)
class Paths(StagePaths):
    """What the stage reads and writes."""

    manifest: Read
    train: Read
    val: Read
    train_features: Read
    val_features: Read
    backbone: Read
    baseline: Read
    race: Write


def find_reason_to_skip(evidence: Evidence, params: DecideParams) -> str | None:
    """Say why there is nothing that a race could settle; None where there is.

    Args:
        evidence: What the rules look at.
        params: The `decide` block.
    """
    if params.arm != "auto":
        return f"No race: the user asked to {ORDERS[params.arm]}."
    if at_ceiling(evidence, params):
        return "No race: frozen features are at their ceiling."
    return None


def plan_race(
    evidence: Evidence, ground: Ground, decide: DecideParams, means: Means
) -> Field | None:
    """Choose who races on how many images, within a share of what fine-tuning would cost."""
    info, stores = ground.backbone, ground.stores
    costs = measure_costs(create_architecture(info.name, image_px=info.input.image_px))
    work = Workload(evidence.images, stores.train.info.views, stores.val.info.count, 0, 0)
    cuts = choose_cuts("fine_tune", evidence, decide)
    tuning = means.tuning
    if raises_rates(evidence):
        epochs = last_epochs(tuning, tuning.raise_lr)
        tuning = tuning.model_copy(update={"epochs": epochs})
    return choose_field(info.groups, costs, cuts, work, means.params, tuning)


def race_or_skip(ground: Ground, decide: DecideParams, means: Means) -> Race:
    """Race where it can settle something and the budget affords it, else say why there is none.

    Args:
        ground: What is raced on.
        decide: The `decide` block.
        means: How racers are trained, within which budget.
    """
    params = means.params
    evidence = gather_evidence(ground.backbone, ground.manifest, ground.baseline)
    reason = find_reason_to_skip(evidence, decide)
    if reason is not None:
        return Race(skipped=reason)
    field = plan_race(evidence, ground, decide, means)
    if field is None:
        return Race(
            skipped=f"No race: {params.share:.0%} of the cost of fine-tuning (race.share) does not "
            f"pay for one on {params.min_images:,} images (race.min_images)."
        )
    if len(ground.part(field.images)) > OVERSHOOT * field.images:
        return Race(skipped="No race: groups are so large that they leave no small part of train.")
    race = run_race(ground, field, means)
    return race.model_copy(update={"words": say_race(race)})


def main(argv: Sequence[str] | None) -> None:
    """Read what earlier stages measured and made, race or not, write what became of it."""
    what = "Race arms on a part of the images, where the budget pays for it"
    paths, params = read_arguments(Paths, "race", what, argv)
    machine = read_machine()
    configure_torch(machine, params.seed)
    manifest = read_manifest(paths.manifest)
    balanced = params.class_balanced
    ground = Ground(
        manifest=manifest,
        backbone=read_record(paths.backbone, BackboneInfo),
        baseline=read_record(paths.baseline, Baseline),
        stores=Stores(*open_pixels(manifest, [paths.train, paths.val]).values()),
        train=replace(read_features(paths.train_features, manifest, "train"), balanced=balanced),
        val=replace(read_features(paths.val_features, manifest, "val"), balanced=balanced),
        strengths=params.baseline.l2_strengths,
        seed=params.seed,
    )
    values = [str(params.race), str(params.finetune), str(params.seed), str(balanced)]
    workspace = Workspace.of(machine.scratch, paths.read, values, Path(__file__))
    means = Means(params.race, params.finetune, machine, workspace.activations)
    with workspace.holding():
        try:
            race = race_or_skip(ground, params.decide, means)
        finally:
            workspace.remove()
    write_record(paths.race, race)
    log.info("%s", race.skipped or race.words)


if __name__ == "__main__":
    sys.exit(run_stage("race", main))
