"""Fine-tune as the decision says: gradual unfreezing, or from scratch, or not at all.

Starts from the pretrained backbone and the baseline's head, keeps what val does not speak against,
and ends between start and end, or with the average of its phases, where val is best. Killed and run
again, it goes on where it was.
"""

import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tasks.artifacts.records import Finetuned
from tasks.params import FinetuneParams
from tasks.runtime.entry import read_arguments
from tasks.runtime.launch import run_in_processes
from tasks.runtime.machine import Machine, read_machine
from tasks.runtime.processes import ALONE, Processes, join_processes
from tasks.training.feed.parts import BackboneParts, CachePlan
from tasks.training.inputs import FinetuneInputs, read_finetune_inputs
from tasks.training.loop import Trainer
from tasks.training.outcome import (
    FinetunedModel,
    OutcomePaths,
    describe,
    describe_finetuned,
    summarize_val,
    write_outcome,
)
from tasks.training.phases import next_phase, phase_cuts, training_groups
from tasks.training.resume.workspace import Workspace

log = logging.getLogger(__name__)


def finetune(
    inputs: FinetuneInputs,
    params: FinetuneParams,
    *,
    seed: int,
    balanced: bool,
    machine: Machine,
    workspace: Workspace,
    processes: Processes = ALONE,
) -> FinetunedModel:
    """Train the phases of the decision and choose the final weights on val.

    Args:
        inputs: What earlier stages found and made.
        params: The `finetune` block.
        seed: The run's seed.
        balanced: Whether all classes count the same.
        machine: Device, threads and engine.
        workspace: Where checkpoints and activations are kept while it runs.
        processes: Train together, each on its part of every batch; all end with the same model.
    """
    scratch = inputs.transfer.arm == "scratch"
    classifier = inputs.start(seed=seed, balanced=balanced, machine=machine)
    groups = training_groups(classifier)
    cuts = phase_cuts(inputs.transfer, groups)
    if not cuts:
        return describe(classifier, groups, inputs, None, None, balanced=balanced)
    parts = BackboneParts(
        classifier,
        groups,
        inputs.stores,
        inputs.backbone.input,
        machine,
        CachePlan(workspace.activations, params.cache_gb, cuts),
        processes,
    )
    examples = inputs.examples(balanced=balanced)
    trainer = Trainer(classifier, groups, examples, params, seed=seed, processes=processes)
    plan_next = partial(next_phase, inputs.transfer, groups, params)
    state = trainer.run_phases(plan_next, parts, workspace.open_checkpoints(processes))
    shares = [1.0] if scratch else params.interpolation
    chosen = trainer.choose_weights(state, parts, unfrozen_from=cuts[-1], shares=shares)
    return describe(classifier, groups, inputs, state, chosen, balanced=balanced)


def main(argv: Sequence[str] | None) -> None:
    """Read what earlier stages made, fine-tune, write the model."""
    what = "Unfreeze from the top down with discriminative learning rates"
    paths, params = read_arguments(OutcomePaths, "finetune", what, argv)
    machine = read_machine()
    inputs = read_finetune_inputs(paths)
    values = [str(params.finetune), str(params.seed), str(params.class_balanced)]
    workspace = Workspace.of(machine.scratch, paths.read, values, Path(__file__))
    with (
        join_processes(machine, seed=params.seed) as processes,
        workspace.holding(first=processes.first),
        workspace.saying_where_to_go_on(first=processes.first),
    ):
        if processes.first:
            workspace.mention_others()
        model = finetune(
            inputs,
            params.finetune,
            seed=params.seed,
            balanced=params.class_balanced,
            machine=machine,
            workspace=workspace,
            processes=processes,
        )
        if processes.first:
            summary = describe_finetuned(model, inputs, seed=params.seed)
            write_outcome(paths, model, summary, summarize_val(summary, inputs))
            _tell(summary, inputs)
            workspace.remove()


def _tell(summary: Finetuned, inputs: FinetuneInputs) -> None:
    for note in summary.notes:
        log.info("%s", note)
    log.info(
        "val accuracy %.3f [%.3f, %.3f], val loss %.3f; the baseline had %.3f and %.3f",
        summary.val_accuracy.value,
        summary.val_accuracy.low,
        summary.val_accuracy.high,
        summary.val_loss,
        inputs.baseline.val_accuracy.value,
        summary.baseline_val_loss,
    )


if __name__ == "__main__":
    sys.exit(run_in_processes("finetune", main))
