"""Fine-tune as the decision says: gradual unfreezing, or from scratch, or not at all.

Starts from the pretrained backbone and the baseline's head, keeps what val does not speak against,
and ends between start and end, or with the average of its phases, where val is best. Killed and run
again, it goes on where it was.
"""

import logging
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tasks.artifacts import write_array, write_record
from tasks.backbones.runtime import configure_torch, find_device
from tasks.entry import read_paths, run_stage
from tasks.machine import Machine, read_machine
from tasks.params import FinetuneParams, load_params
from tasks.records import Finetuned, Phase, RangeTest
from tasks.statistics import accuracy_interval
from tasks.training.checkpoints import CheckpointFolder
from tasks.training.classifier import Classifier, write_classifier
from tasks.training.fingerprint import fingerprint
from tasks.training.freezing import TrainingGroup, training_groups
from tasks.training.gate import RESAMPLES
from tasks.training.history import write_history
from tasks.training.inputs import FinetuneInputs, read_inputs
from tasks.training.interpolation import Candidate, Chosen, choose_weights, explain_choice
from tasks.training.loop import Trainer
from tasks.training.losses import right_images
from tasks.training.lr_range import RangeTester, describe_range_test
from tasks.training.mixing import check_mixing
from tasks.training.parts import BackboneParts
from tasks.training.phases import phase_cuts, plan_phases
from tasks.training.start import start_classifier
from tasks.training.state import HistoryRow, Logits, Tensors, TrainState, copy_tensors
from tasks.training.verdicts import note_overfitting, val_loss
from tasks.training.workspace import Workspace

log = logging.getLogger(__name__)

CONFIDENCE = 0.95  # of the interval of the val accuracy
START = Candidate(0.0)
CODE = Path(__file__).parent
READS = (
    "manifest",
    "train",
    "val",
    "decision",
    "backbone",
    "head",
    "baseline",
    "baseline-logits",
)


@dataclass(frozen=True)
class FinetunedModel:
    """The final classifier, how it came about, and its logits on val, float32 (N_val, C)."""

    classifier: Classifier
    groups: Sequence[TrainingGroup]
    history: Sequence[HistoryRow]
    phases: Sequence[Phase]
    weights: Candidate
    val_logits: Logits
    notes: Sequence[str]
    range_test: RangeTest | None = None


def finetune(
    inputs: FinetuneInputs,
    params: FinetuneParams,
    *,
    seed: int,
    machine: Machine,
    workspace: Workspace,
) -> FinetunedModel:
    """Train the phases of the decision and choose the final weights on val.

    Args:
        inputs: What earlier stages found and made.
        params: The `finetune` block.
        seed: The run's seed.
        machine: Device, threads and engine.
        workspace: Where checkpoints and activations are kept while it runs.
    """
    classifier = start_classifier(
        inputs.backbone, inputs.baseline, inputs.head, arm=inputs.decision.arm, seed=seed
    )
    classifier.to(find_device(machine)).to(memory_format=torch.channels_last)
    groups = training_groups(classifier)
    if not phase_cuts(inputs.decision, groups):
        note = "The decision was to train nothing but the head: the model is the frozen baseline."
        return FinetunedModel(classifier, groups, (), (), START, inputs.baseline_logits, [note])
    parts = _open_parts(classifier, groups, inputs, params, machine, workspace)
    theta_0 = copy_tensors(classifier, list(classifier.state_dict()))
    found = None
    if params.head_lr == "auto" and inputs.decision.arm != "scratch":
        tester = RangeTester(classifier, groups, inputs.examples(), params, seed=seed)
        found = tester.run_once(parts, inputs.decision.phases[0], folder=workspace.checkpoints)
    trainer = Trainer(classifier, groups, inputs.examples(), params, seed=seed)
    plans = plan_phases(inputs.decision, groups, params, found=found)
    state = trainer.run_phases(plans, parts, CheckpointFolder(workspace.checkpoints))
    chosen = _choose_weights(classifier, trainer, parts, state, theta_0, inputs, params)
    return FinetunedModel(
        classifier,
        groups,
        state.history,
        state.finished,
        chosen.best if chosen else START,
        chosen.val_logits if chosen else inputs.baseline_logits,
        [*describe_range_test(found, params), *note_overfitting(state), *explain_choice(chosen)],
        found,
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
        interpolation=model.weights.alpha,
        averaged=model.weights.averaged,
        range_test=model.range_test,
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


def _open_parts(
    classifier: Classifier,
    groups: list[TrainingGroup],
    inputs: FinetuneInputs,
    params: FinetuneParams,
    machine: Machine,
    workspace: Workspace,
) -> BackboneParts:
    """Prepare the cuts; refuse mixing that a phase cannot have before anything is computed."""
    parts = BackboneParts(
        classifier,
        groups,
        inputs.stores,
        inputs.backbone.input,
        machine,
        folder=workspace.activations,
        cache_gb=params.cache_gb,
    )
    if params.cutmix_alpha:
        for cut in inputs.decision.phases:
            check_mixing(parts.input_shape(cut), params)
    return parts


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
        val=inputs.examples().val,
    )


def _open_workspace(
    paths: Namespace, params: FinetuneParams, machine: Machine, *, seed: int
) -> Workspace:
    """Name the folders of this very training in the scratch folder."""
    reads = [getattr(paths, name.replace("-", "_")) for name in READS]
    code = [CODE / "training", CODE / "backbones", CODE / "finetune.py"]
    key = fingerprint(reads, [str(params), str(seed)], code)
    return Workspace(machine.scratch / "checkpoints" / key, machine.scratch / "activations" / key)


def main(argv: Sequence[str] | None) -> None:
    """Read what earlier stages made, fine-tune, write the model."""
    paths = read_paths(
        "finetune",
        "Unfreeze from the top down with discriminative learning rates",
        argv,
        reads=READS,
        writes=["model", "summary", "history", "val-logits"],
    )
    params = load_params(paths.params)
    machine = read_machine()
    configure_torch(machine, params.seed)
    inputs = read_inputs(paths)
    workspace = _open_workspace(paths, params.finetune, machine, seed=params.seed)
    model = finetune(
        inputs, params.finetune, seed=params.seed, machine=machine, workspace=workspace
    )
    summary = summarize(model, inputs, seed=params.seed)
    write_classifier(paths.model, model.classifier)
    write_history(paths.history, model.history, model.groups)
    write_array(paths.val_logits, model.val_logits)
    write_record(paths.summary, summary)
    workspace.remove()
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
    sys.exit(run_stage("finetune", main))
