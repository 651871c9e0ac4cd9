"""Fine-tune as the decision says: gradual unfreezing, or from scratch, or not at all.

Starts from the pretrained backbone and the baseline's head, keeps what val does not speak against,
and ends between start and end, or with the average of its phases, where val is best. Killed and run
again, it goes on where it was.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tasks.artifacts.arrays import write_array
from tasks.artifacts.records import write_record
from tasks.heads.classifier import Classifier, start_classifier, write_classifier
from tasks.params import FinetuneParams
from tasks.params_file import load_params
from tasks.runtime.device import configure_torch, find_device
from tasks.runtime.entry import Write, read_paths
from tasks.runtime.launch import run_in_processes
from tasks.runtime.machine import Machine, read_machine
from tasks.runtime.processes import ALONE, Processes, join_processes
from tasks.training.feed.parts import BackboneParts, CachePlan
from tasks.training.inputs import FinetuneInputs, InputPaths, read_inputs
from tasks.training.loop import Trainer
from tasks.training.outcome import START, FinetunedModel, summarize, write_history
from tasks.training.phases import phase_cuts, plan_phases, training_groups
from tasks.training.resume.checkpoints import CheckpointFolder
from tasks.training.resume.state import Tensors, TrainState, copy_tensors
from tasks.training.resume.workspace import Workspace, fingerprint
from tasks.training.verdicts import Chosen, choose_weights, explain_choice, note_overfitting

log = logging.getLogger(__name__)

TASKS = Path(__file__).parent
CONSTRAINTS = TASKS.parent / "constraints.txt"  # versions of all libraries
BALANCED = (
    "All classes count the same in training and where val judges it (finetune.class_balanced)."
)


@dataclass(frozen=True)
class Paths(InputPaths):
    """What the stage reads and writes."""

    model: Write
    summary: Write
    history: Write
    val_logits: Write


def finetune(
    inputs: FinetuneInputs,
    params: FinetuneParams,
    *,
    seed: int,
    machine: Machine,
    workspace: Workspace,
    processes: Processes = ALONE,
) -> FinetunedModel:
    """Train the phases of the decision and choose the final weights on val.

    Args:
        inputs: What earlier stages found and made.
        params: The `finetune` block.
        seed: The run's seed.
        machine: Device, threads and engine.
        workspace: Where checkpoints and activations are kept while it runs.
        processes: Train together, each on its part of every batch; all end with the same model.
    """
    classifier = start_classifier(
        inputs.backbone, inputs.baseline, inputs.head, arm=inputs.decision.arm, seed=seed
    )
    classifier.to(find_device(machine)).to(memory_format=torch.channels_last)
    groups = training_groups(classifier)
    if not phase_cuts(inputs.decision, groups):
        note = "The decision was to train nothing but the head: the model is the frozen baseline."
        return FinetunedModel(classifier, groups, (), (), START, inputs.baseline_logits, [note])
    parts = BackboneParts(
        classifier,
        groups,
        inputs.stores,
        inputs.backbone.input,
        machine,
        CachePlan(workspace.activations, params.cache_gb, inputs.decision.phases),
        processes,
    )
    theta_0 = copy_tensors(classifier, list(classifier.state_dict()))
    examples = inputs.examples(balanced=params.class_balanced)
    trainer = Trainer(classifier, groups, examples, params, seed=seed, processes=processes)
    plans = plan_phases(inputs.decision, groups, params)
    state = trainer.run_phases(plans, parts, CheckpointFolder(workspace.checkpoints, processes))
    notes = [BALANCED] if params.class_balanced else []
    chosen = _choose_weights(classifier, trainer, parts, state, theta_0, inputs, params)
    return FinetunedModel(
        classifier,
        groups,
        state.history,
        state.finished,
        chosen.best if chosen else START,
        chosen.val_logits if chosen else inputs.baseline_logits,
        [*notes, *note_overfitting(state), *explain_choice(chosen)],
        params.class_balanced,
    )


def _choose_weights(
    classifier: Classifier,
    trainer: Trainer,
    parts: BackboneParts,
    state: TrainState,
    theta_0: Tensors,
    inputs: FinetuneInputs,
    params: FinetuneParams,
) -> Chosen | None:
    """Choose between start, end and the average of the kept phases; None where none was kept."""
    kept = sum(phase.kept for phase in state.finished)
    if not kept:
        return None
    part = parts.open(inputs.decision.phases[-1])
    return choose_weights(
        classifier,
        {name: theta_0[name] for name in part.names},
        copy_tensors(classifier, part.names),
        shares=[1.0] if inputs.decision.arm == "scratch" else params.interpolation,
        average=state.phase_average if kept > 1 else None,
        predict_val=lambda: trainer.predict_val(part),
        val=inputs.examples(balanced=params.class_balanced).val,
    )


def _open_workspace(
    paths: Paths, params: FinetuneParams, machine: Machine, *, seed: int
) -> Workspace:
    """Name the folders of this very training in the scratch folder."""
    code = [TASKS, *([CONSTRAINTS] if CONSTRAINTS.exists() else [])]
    key = fingerprint(paths.read, [str(params), str(seed)], code)
    return Workspace(machine.scratch / "checkpoints" / key, machine.scratch / "activations" / key)


def main(argv: Sequence[str] | None) -> None:
    """Read what earlier stages made, fine-tune, write the model."""
    paths = read_paths(
        Paths, "finetune", "Unfreeze from the top down with discriminative learning rates", argv
    )
    params = load_params(paths.params)
    machine = read_machine()
    inputs = read_inputs(paths)
    workspace = _open_workspace(paths, params.finetune, machine, seed=params.seed)
    with (
        join_processes(machine) as processes,
        workspace.holding(first=processes.first),
        workspace.saying_where_to_go_on(first=processes.first),
    ):
        configure_torch(machine, params.seed)
        if processes.first:
            workspace.mention_others()
        model = finetune(
            inputs,
            params.finetune,
            seed=params.seed,
            machine=machine,
            workspace=workspace,
            processes=processes,
        )
        if processes.first:
            _write(paths, model, inputs, seed=params.seed)
            workspace.remove()


def _write(paths: Paths, model: FinetunedModel, inputs: FinetuneInputs, *, seed: int) -> None:
    """Write the model and all about it, and log the outcome."""
    summary = summarize(model, inputs, seed=seed)
    write_classifier(paths.model, model.classifier)
    write_history(paths.history, model.history, model.groups)
    write_array(paths.val_logits, model.val_logits)
    write_record(paths.summary, summary)
    for note in summary.notes:
        log.info("%s", note)
    log.info(
        "val accuracy %.3f [%.3f, %.3f], val loss %.3f; the baseline had %.3f and %.3f",
        summary.val_accuracy.value,
        summary.val_accuracy.low,
        summary.val_accuracy.high,
        summary.val_loss,
        inputs.baseline.val_accuracy.value,
        inputs.baseline.val_loss,
    )


if __name__ == "__main__":
    sys.exit(run_in_processes("finetune", main))
