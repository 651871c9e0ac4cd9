"""Fine-tune as the decision says: gradual unfreezing, or from scratch, or not at all.

Starts from the pretrained backbone and the baseline's head, keeps what val does not speak against,
and ends between start and end where val is best. Killed and run again, it goes on where it was.
"""

import logging
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tasks.artifacts import (
    write_array,
    write_record,
)
from tasks.backbones.launch import run_in_processes
from tasks.backbones.processes import ALONE, Processes, join_processes
from tasks.backbones.runtime import configure_torch, find_device
from tasks.entry import read_paths
from tasks.machine import Machine, read_machine
from tasks.params import FinetuneParams, load_params
from tasks.records import Finetuned, Phase
from tasks.statistics import accuracy_interval
from tasks.training.checkpoints import CheckpointFolder
from tasks.training.classifier import Classifier, write_classifier
from tasks.training.fingerprint import fingerprint
from tasks.training.freezing import TrainingGroup, training_groups
from tasks.training.gate import RESAMPLES
from tasks.training.history import write_history
from tasks.training.inputs import FinetuneInputs, read_inputs
from tasks.training.interpolation import Interpolated, choose_interpolation
from tasks.training.loop import Trainer
from tasks.training.losses import right_images
from tasks.training.parts import BackboneParts, CachePlan
from tasks.training.phases import plan_phases
from tasks.training.start import start_classifier
from tasks.training.state import HistoryRow, Logits, copy_tensors
from tasks.training.verdicts import val_loss
from tasks.training.workspace import Workspace

log = logging.getLogger(__name__)

CONFIDENCE = 0.95  # of the interval of the val accuracy
CODE = Path(__file__).parent


@dataclass(frozen=True)
class FinetunedModel:
    """The final classifier, how it came about, and its logits on val, float32 (N_val, C)."""

    classifier: Classifier
    groups: Sequence[TrainingGroup]
    history: Sequence[HistoryRow]
    phases: Sequence[Phase]
    interpolation: float
    val_logits: Logits
    notes: Sequence[str]


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
    plans = plan_phases(inputs.decision, groups, params)
    if not plans:
        note = "The decision was to train nothing but the head: the model is the frozen baseline."
        return FinetunedModel(classifier, groups, (), (), 0.0, inputs.baseline_logits, [note])
    theta_0 = copy_tensors(classifier, list(classifier.state_dict()))
    trainer = Trainer(classifier, groups, inputs.examples(), params, seed=seed, processes=processes)
    parts = BackboneParts(
        classifier,
        groups,
        inputs.stores,
        inputs.backbone.input,
        machine,
        CachePlan(workspace.activations, params.cache_gb, [plan.unfrozen_from for plan in plans]),
        processes,
    )
    state = trainer.run_phases(plans, parts, CheckpointFolder(workspace.checkpoints, processes))
    trained = FinetunedModel(
        classifier, groups, state.history, state.finished, 0.0, inputs.baseline_logits, []
    )
    if not any(phase.kept for phase in state.finished):
        note = "Every phase was rolled back: the model is the frozen baseline."
        return replace(trained, notes=[note])
    part = parts.open(plans[-1].unfrozen_from)
    chosen = choose_interpolation(
        classifier,
        {name: theta_0[name] for name in part.names},
        copy_tensors(classifier, part.names),
        shares=[1.0] if inputs.decision.arm == "scratch" else params.interpolation,
        predict_val=lambda: trainer.predict_val(part),
        val=inputs.examples().val,
    )
    return replace(
        trained,
        interpolation=chosen.alpha,
        val_logits=chosen.val_logits,
        notes=_explain_interpolation(chosen),
    )


def summarize(model: FinetunedModel, inputs: FinetuneInputs, *, seed: int) -> Finetuned:
    """Describe a fine-tuned model."""
    baseline, val = inputs.baseline, inputs.examples().val
    return Finetuned(
        arm=inputs.decision.arm,
        backbone=inputs.backbone.name,
        input=inputs.backbone.input,
        head=baseline.head,
        hidden=baseline.hidden,
        dropout=baseline.dropout,
        feature_dim=baseline.feature_dim,
        classes=baseline.classes,
        phases=list(model.phases),
        interpolation=model.interpolation,
        val_accuracy=accuracy_interval(
            right_images(model.val_logits, val.labels),
            val.groups,
            confidence=CONFIDENCE,
            resamples=RESAMPLES,
            seed=seed,
        ),
        val_loss=val_loss(model.val_logits, val),
        notes=list(model.notes),
    )


def _explain_interpolation(chosen: Interpolated) -> list[str]:
    if len(chosen.val_losses) == 1:
        return []
    tried = ", ".join(f"{alpha:g}: {loss:.4f}" for alpha, loss in chosen.val_losses.items())
    return [
        f"Of the shares of fine-tuned weights, {chosen.alpha:g} has the lowest val loss ({tried})."
    ]


def _open_workspace(
    paths: Namespace, params: FinetuneParams, machine: Machine, *, seed: int
) -> Workspace:
    """Name the folders of this very training in the scratch folder."""
    reads = [
        paths.manifest,
        paths.train,
        paths.val,
        paths.decision,
        paths.backbone,
        paths.head,
        paths.baseline,
    ]
    code = [CODE / "training", CODE / "backbones", CODE / "finetune.py"]
    key = fingerprint(reads, [str(params), str(seed)], code)
    return Workspace(machine.scratch / "checkpoints" / key, machine.scratch / "activations" / key)


def main(argv: Sequence[str] | None) -> None:
    """Read what earlier stages made, fine-tune, write the model."""
    paths = read_paths(
        "finetune",
        "Unfreeze from the top down with discriminative learning rates",
        argv,
        reads=[
            "manifest",
            "train",
            "val",
            "decision",
            "backbone",
            "head",
            "baseline",
            "baseline-logits",
        ],
        writes=["model", "summary", "history", "val-logits"],
    )
    params = load_params(paths.params)
    machine = read_machine()
    inputs = read_inputs(paths)
    workspace = _open_workspace(paths, params.finetune, machine, seed=params.seed)
    with join_processes(machine) as processes, workspace.saying_where_to_go_on():
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
    if processes.first:
        workspace.remove()


def _write(paths: Namespace, model: FinetunedModel, inputs: FinetuneInputs, *, seed: int) -> None:
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
