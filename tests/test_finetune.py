"""The finetune stage: what each arm writes, what it refuses, how a killed run ends."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, tells, with_values
from ruamel.yaml import YAML
from tiny_finetune import BACKBONE, COUNTS, make_inputs
from torch import nn

from tasks import finetune as stage
from tasks.artifacts.arrays import read_array, read_tensors, write_array, write_tensors
from tasks.artifacts.records import Arm, Finetuned, Transfer, ValSummary, read_record, write_record
from tasks.artifacts.tables import HistoryRow, Manifest, read_rows, write_manifest
from tasks.backbones.catalogue import load_backbone
from tasks.errors import ArtifactError, EngineError
from tasks.heads.classifier import load_finetuned
from tasks.heads.registry import apply_head, to_arrays, write_head
from tasks.judging.rule import judge_change
from tasks.params import Params
from tasks.runtime.device import normalize
from tasks.runtime.machine import read_machine
from tasks.training import epoch, loop, outcome
from tasks.training.feed import parts
from tasks.training.inputs import FinetuneInputs
from tasks.training.phases import TRIES, PhasePlan
from tasks.training.verdicts import Chosen

FAST = {
    "finetune.early_epochs": 2,
    "finetune.epochs": 2,
    "finetune.batch_size": 8,
    "finetune.head_lr": 0.01,
    "finetune.backbone_lr": 0.003,
    "finetune.scratch_epochs": 2,
    "finetune.gate_confidence": 0.99,
}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A scratch folder of its own."""
    set_machine(monkeypatch, tmp_path / "scratch")
    return tmp_path / "scratch"


def set_machine(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    """One thread, no GPU, torch as engine."""
    for name, value in (("THREADS", "1"), ("DEVICE", "cpu"), ("ENGINE", "torch")):
        monkeypatch.setenv(f"REGRAFT_{name}", value)
    monkeypatch.setenv("REGRAFT_SCRATCH", str(scratch))


def write_inputs(folder: Path, inputs: FinetuneInputs, params: Params) -> list[str]:
    """Write what the stage reads; give its arguments."""
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(params.model_dump(mode="json"), file)
    features = features_of(inputs, inputs.stores.val.rows(inputs.stores.val.clean_rows()))
    write_manifest(folder / "manifest.csv", inputs.manifest)
    write_record(folder / "transfer.json", inputs.transfer)
    write_record(folder / "backbone.json", inputs.backbone)
    write_record(folder / "baseline.json", inputs.baseline)
    write_head(folder / "head.safetensors", inputs.head)
    write_array(folder / "baseline_logits.npy", apply_head(inputs.head, features))
    return arguments_in(folder)


def arguments_in(folder: Path) -> list[str]:
    """The stage's arguments for the inputs in a folder."""
    return [
        f"--params={folder / 'params.yaml'}",
        f"--manifest={folder / 'manifest.csv'}",
        f"--train={folder / 'train'}",
        f"--val={folder / 'val'}",
        f"--transfer={folder / 'transfer.json'}",
        f"--backbone={folder / 'backbone.json'}",
        f"--head={folder / 'head.safetensors'}",
        f"--baseline={folder / 'baseline.json'}",
        f"--baseline-logits={folder / 'baseline_logits.npy'}",
    ]


def features_of(inputs: FinetuneInputs, pixels: np.ndarray) -> np.ndarray:
    info = inputs.backbone
    model = load_backbone(info.name, info.weights, image_px=info.input.image_px, seed=17).model
    with torch.no_grad():
        maps = model.forward_features(normalize(torch.from_numpy(pixels), info.input))
        pooled: np.ndarray = model.forward_head(maps, pre_logits=True).numpy()
    return pooled


def outputs(folder: Path) -> list[str]:
    return [
        f"--model={folder / 'model.safetensors'}",
        f"--summary={folder / 'finetune.json'}",
        f"--history={folder / 'history.csv'}",
        f"--val-logits={folder / 'val_logits.npy'}",
        f"--phase-logits={folder / 'phase_logits.npy'}",
        f"--val-summary={folder / 'val.json'}",
    ]


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


class Project:
    """Inputs on disk and the stage run on them."""

    def __init__(self, root: Path, defaults: Params) -> None:
        self.root, self.defaults = root, defaults
        self.inputs: FinetuneInputs | None = None

    def arguments(
        self, arm: Arm = "fine_tune", values: Mapping[str, object] = {}, **kind: object
    ) -> list[str]:
        folder = self.root / "in"
        self.inputs = make_inputs(folder, arm=arm, **kind)  # type: ignore[arg-type]
        params = with_values(self.defaults, {**FAST, **values})
        return write_inputs(folder, self.inputs, params)

    def run(self, arguments: list[str], name: str = "out") -> Finetuned:
        stage.main(arguments + outputs(self.root / name))
        return read_record(self.root / name / "finetune.json", Finetuned)

    def logits_of_model(self, summary: Finetuned, name: str = "out") -> np.ndarray:
        assert self.inputs is not None
        val = self.inputs.stores.val
        classifier = load_finetuned(self.root / name / "model.safetensors", summary)
        assert not classifier.training
        with torch.no_grad():
            pixels = torch.from_numpy(val.rows(val.clean_rows()))
            logits: np.ndarray = classifier(normalize(pixels, summary.input)).numpy()
        return logits


@pytest.fixture
def project(tmp_path: Path, default_params: Params) -> Project:
    return Project(tmp_path, default_params)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_the_written_model_gives_the_written_logits(project: Project, head: str):
    summary = project.run(project.arguments(head=head))
    written = read_array(project.root / "out" / "val_logits.npy")
    np.testing.assert_allclose(project.logits_of_model(summary), written, atol=1e-2)
    labels = np.arange(COUNTS["val"]) % 3
    assert summary.val_accuracy.value == np.mean(written.argmax(axis=1) == labels)
    frozen = read_array(project.root / "in" / "baseline_logits.npy").argmax(axis=1) == labels
    assert summary.val_gain is not None
    assert summary.val_gain.value == pytest.approx(summary.val_accuracy.value - np.mean(frozen))
    assert [phase.kept for phase in summary.phases] == [True, True]
    assert summary.lost_share == 0
    assert summary.interpolation in (0.25, 0.5, 0.75, 1.0)
    assert summary.backbone == BACKBONE


def test_history_has_a_row_an_epoch_with_the_rate_of_every_group(project: Project):
    project.run(project.arguments())
    path = project.root / "out" / "history.csv"
    rows, columns = read_rows(path, HistoryRow), path.read_text().splitlines()[0].split(",")
    assert project.inputs is not None
    names = [group.name for group in project.inputs.backbone.groups]
    assert columns == [
        "phase",
        "epoch",
        "lr_head",
        *(f"lr_{name}" for name in names),
        "train_loss",
        "train_accuracy",
        "val_loss",
        "val_accuracy",
    ]
    assert [(row.phase, row.epoch) for row in rows] == [(1, 1), (1, 2), (2, 3), (2, 4)]
    assert rows[0].rates[names[4]] == 0 < rows[2].rates[names[4]]
    for row in rows:
        assert row.rates["head"] > row.rates[names[5]] > row.rates[names[4]]
        assert row.rates[names[0]] == 0
    plots = YAML(typ="safe").load(ROOT / "dvc.yaml")["plots"]
    assert plots
    for plot in plots:
        (curves,) = plot.values()
        assert {curves["x"], *curves["y"]["data/finetune/history.csv"]} <= set(columns)


def test_first_epoch_starts_from_the_baseline(project: Project, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    project.run(project.arguments())
    logits = read_array(project.root / "in" / "baseline_logits.npy").astype(np.float64)
    assert project.inputs is not None
    loss = project.inputs.examples().val.loss(logits)
    first = next(line for line in caplog.messages if line.startswith("phase 1 of 2"))
    assert f"val loss {loss:.3f}" in first


@pytest.mark.parametrize("balanced", [False, True])
def test_training_starts_from_a_head_as_sure_as_val_finds_right(
    project: Project, balanced: bool
) -> None:
    project.arguments()
    assert project.inputs is not None
    logits = np.zeros_like(project.inputs.baseline_logits)
    logits[:, 0] = 12  # it always names the first class, far too sure
    first, *_ = project.inputs.manifest.class_names
    rows = [  # most val images are of one class
        replace(row, label=first) if row.split == "val" and number % 5 else row
        for number, row in enumerate(project.inputs.manifest.rows)
    ]
    inputs = replace(project.inputs, manifest=Manifest(rows), baseline_logits=logits)
    other, temperature = (
        inputs.examples(balanced=one).val.temperature(logits) for one in (not balanced, balanced)
    )
    assert temperature > 2
    assert abs(temperature / other - 1) > 1e-3
    before = to_arrays(inputs.head)
    start = inputs.start(seed=17, balanced=balanced, machine=read_machine())
    for name, values in to_arrays(start.head).items():
        np.testing.assert_allclose(values, before[name] / temperature, rtol=1e-5)
    np.testing.assert_array_equal(to_arrays(inputs.head)["weight"], before["weight"])


def test_nothing_to_train_gives_the_frozen_baseline(project: Project):
    summary = project.run(project.arguments("feature_extraction"))
    assert summary.phases == []
    assert summary.interpolation == 0
    written = read_array(project.root / "out" / "val_logits.npy")
    baseline = read_array(project.root / "in" / "baseline_logits.npy")
    np.testing.assert_array_equal(written, baseline)
    np.testing.assert_allclose(project.logits_of_model(summary), baseline, atol=1e-5)
    assert read_rows(project.root / "out" / "history.csv", HistoryRow) == []


def test_training_from_scratch_forgets_the_pretrained_weights(project: Project):
    values = {"finetune.scratch_lr": 0.01}
    summary = project.run(project.arguments("scratch", values))
    written = read_array(project.root / "out" / "val_logits.npy")
    np.testing.assert_allclose(project.logits_of_model(summary), written, atol=1e-4)
    assert [(phase.name, phase.kept) for phase in summary.phases] == [("from scratch", True)]
    assert summary.interpolation == 1
    assert summary.arm == "scratch"


def test_classes_that_count_the_same_are_told_to_the_reader_and_to_later_stages(project: Project):
    summary = project.run(project.arguments(values={"class_balanced": True}))
    assert summary.class_balanced
    assert "class_balanced" in summary.notes[0]
    assert "class-balanced val accuracy" in summary.phases[0].reason


def test_a_cut_that_cannot_be_made_is_refused_before_anything_is_computed(
    project: Project, machine: Path, monkeypatch: pytest.MonkeyPatch
):
    real = parts.split_at

    def split_at(model: nn.Module, group: int) -> tuple[nn.Module, nn.Module]:
        if group == 4:  # of the second phase
            raise EngineError("cannot be cut there")
        return real(model, group)

    monkeypatch.setattr(parts, "split_at", split_at)
    with pytest.raises(EngineError, match="cannot be cut there"):
        project.run(project.arguments(values={"finetune.cache_gb": 0.0}))
    assert not list(machine.rglob("*.safetensors"))


def test_phases_that_all_break_down_leave_the_baseline(
    project: Project, monkeypatch: pytest.MonkeyPatch
):
    real = stage.next_phase

    def plan(*args: Any) -> PhasePlan | None:
        one = real(*args)
        return one and replace(one, rates=dict.fromkeys(one.rates, 1e30))

    monkeypatch.setattr(stage, "next_phase", plan)
    summary = project.run(project.arguments())
    assert [phase.stopped for phase in summary.phases] == ["diverged"] * (1 + TRIES)
    assert [phase.unfrozen_from for phase in summary.phases] == [5, *[4] * TRIES]
    assert summary.interpolation == 0
    assert summary.lost_share is not None
    assert summary.lost_share > 0
    assert summary.val_gain is not None
    assert summary.val_gain.value == 0
    (note,) = summary.notes
    assert tells(note, "rejected", "every phase", "rolled back")
    baseline = read_array(project.root / "in" / "baseline_logits.npy")
    np.testing.assert_allclose(project.logits_of_model(summary), baseline, atol=1e-5)


def test_the_same_inputs_give_the_same_bytes_and_leave_no_scratch(project: Project, machine: Path):
    arguments = project.arguments()
    project.run(arguments, "one")
    assert not list(machine.rglob("*.safetensors"))
    assert not list(machine.rglob("*.npy"))
    project.run(arguments, "two")
    assert digests(project.root / "one") == digests(project.root / "two")
    assert len(digests(project.root / "one")) == len(outputs(project.root))


def test_the_average_of_the_kept_phases_may_be_the_final_model(
    project: Project, monkeypatch: pytest.MonkeyPatch
):
    real, asked = loop.choose_weights, []

    def choose(*args: object, **named: object) -> Chosen:
        asked.append(named["average"])
        return real(*args, **{**named, "shares": [0.0]})  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "choose_weights", choose)
    summary = project.run(project.arguments())
    assert (summary.averaged, summary.interpolation) == (True, 1.0)
    assert [phase.kept for phase in summary.phases] == [True, True]
    written = read_tensors(project.root / "out" / "model.safetensors")
    for name, tensor in asked[0].items():
        np.testing.assert_array_equal(written[name], tensor.numpy())
    best, _, tried = summary.notes[-1].partition("(")
    assert tells(best, "the average of the phases", "lowest loss")
    assert tells(tried, "0: ", "the average of the phases: ")
    logits = read_array(project.root / "out" / "val_logits.npy")
    np.testing.assert_allclose(project.logits_of_model(summary), logits, atol=1e-2)


def test_what_the_phases_were_judged_by_is_kept(project: Project):
    values = {
        "finetune.gate_confidence": 0.5,
        "finetune.backbone_lr": 0.02,
        "finetune.head_lr": 0.02,
    }
    summary = project.run(project.arguments(values=values))
    judged = read_array(project.root / "out" / "phase_logits.npy")
    assert len(judged) == len(summary.phases)
    assert {phase.kept for phase in summary.phases} == {True, False}
    assert project.inputs is not None
    val = project.inputs.examples().val
    before = read_array(project.root / "in" / "baseline_logits.npy")
    for phase, after in zip(summary.phases, judged, strict=True):
        verdict = judge_change(before, after, val, confidence=0.5, seed=project.defaults.seed)
        assert phase.val_loss == pytest.approx(val.loss(after))
        assert phase.kept != verdict.worse
        before = after if phase.kept else before


def test_where_the_decision_raises_the_rates_all_phases_have_them(project: Project):
    arguments = project.arguments(values={"finetune.raise_lr": 3.0})
    assert project.inputs is not None
    raised = project.inputs.transfer.model_copy(update={"raised": True})
    write_record(project.root / "in" / "transfer.json", raised)
    summary = project.run(arguments)
    assert [phase.rate_share for phase in summary.phases[:2]] == [3.0, 3.0]
    assert summary.phases[0].name.endswith(", at 3 times the rates")


def test_runs_are_chosen_by_numbers_of_val_alone(project: Project):
    summary = project.run(project.arguments())
    assert project.inputs is not None
    val, folder = project.inputs.examples().val, project.root
    told = read_record(folder / "out" / "val.json", ValSummary)
    tuned = read_array(folder / "out" / "val_logits.npy")
    frozen = read_array(folder / "in" / "baseline_logits.npy")
    assert told.val_accuracy == summary.val_accuracy.value == pytest.approx(val.accuracy(tuned))
    assert told.val_loss == pytest.approx(val.loss(tuned))
    assert told.val_loss_frozen == pytest.approx(val.loss(frozen))
    assert told.val_accuracy_frozen == project.inputs.baseline.val_accuracy.value


def test_one_kept_phase_is_not_averaged(project: Project):
    summary = project.run(project.arguments(phases=[5]))
    assert not summary.averaged
    assert "average" not in summary.notes[-1]


@pytest.mark.parametrize("stopped", ["patience", "finished"])
def test_a_phase_that_learns_by_heart_is_told(
    project: Project, monkeypatch: pytest.MonkeyPatch, stopped: str
):
    real = stage.Trainer.run_phases

    def run_phases(*args: object) -> object:
        state = real(*args)  # type: ignore[arg-type]
        losses = [(0.9, 0.8), (0.5, 0.6), (0.2, 0.9), (0.1, 0.95)]
        rows = [
            replace(row, phase=2, train_loss=train, val_loss=val)
            for row, (train, val) in zip(state.history, losses, strict=True)
        ]
        changes = {"stopped": stopped, "best_epoch": 2}
        second = state.finished[1].model_copy(update=changes)
        first = [row for row in state.history if row.phase == 1]
        return replace(state, history=(*first, *rows), finished=(state.finished[0], second))

    monkeypatch.setattr(stage.Trainer, "run_phases", run_phases)
    summary = project.run(project.arguments())
    facts = "Phase 2 overfits", "0.500 to 0.100", "0.600 to 0.950", "epoch 2 was kept"
    assert tells(summary.notes[0], *facts)


# killed and run again ----------------------------------------------------------------------------

# Forks a run for every line of its input, which kills itself at a call of a function: the one after
# `before` others that had `text` in their arguments, as paths or as open files.
KILLING = """
import json, os, pathlib, shutil, signal, sys
import torch
from tasks import finetune
from tasks.training import epoch, loop, outcome, verdicts
from tasks.training.feed import activations, parts

OWNERS = {
    "cut": (parts, "cache_together"),
    "shard": (activations, "write_array"),
    "read": (activations.CachedRows, "read"),
    "step": (torch.optim.AdamW, "step"),
    "count": (epoch, "count_step"),
    "end": (loop, "end_phase"),
    "mix": (verdicts, "interpolate"),
    "model": (outcome, "write_classifier"),
    "history": (outcome, "write_history"),
    "logits": (outcome, "write_array"),
    "sync": (os, "fsync"),
    "rename": (os, "replace"),
    "delete": (pathlib.Path, "unlink"),
    "clear": (shutil, "rmtree"),
}

def names(arguments):
    for one in arguments:
        yield os.readlink(f"/proc/self/fd/{one}") if isinstance(one, int) else str(one)

def kill_at(owner, name, text, calls):
    real = getattr(owner, name)
    def call(*args, **named):
        if not text or text in " ".join(names(args)):
            calls.pop() if calls else os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **named)
    setattr(owner, name, call)

for line in sys.stdin:
    function, text, before, seconds, arguments, environment = json.loads(line)
    child = os.fork()
    if child == 0:
        os.environ.update(environment)
        epoch.SAVE_SECONDS = seconds
        kill_at(*OWNERS[function], text, [None] * before)
        finetune.main(arguments)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

# Two phases of two epochs of four steps; a look at val reads twice. What is called, with which text
# in its arguments, after how many such calls; and the last state that is on disk then. Where that
# is one within an epoch, every step is saved.
POINTS = {
    "nothing cached": ("cut", "", 0, ""),
    "one shard written": ("shard", "", 1, ""),
    "all shards but one": ("shard", "", 3, ""),
    "first look at val": ("read", "", 1, ""),
    "before a step": ("step", "", 1, "phase 1, epoch 0"),
    "step not counted": ("count", "", 5, "phase 1, epoch 1"),
    "look at val": ("read", "", 7, "phase 1, epoch 0"),
    "checkpoint not synced": ("sync", "/.phase-001-epoch-000001", 0, "phase 1, epoch 0"),
    "checkpoint not renamed": ("rename", "phase-001-epoch-000002", 0, "phase 1, epoch 1"),
    "checkpoint renamed": ("sync", "/checkpoints/", 3, "phase 1, epoch 1"),
    "old checkpoint kept": ("delete", "/phase-001-epoch-000000", 0, "phase 1, epoch 2"),
    "phase not closed": ("end", "", 0, "phase 1, epoch 2"),
    "cache half deleted": ("clear", "/activations/", 1, "phase 1, epoch 2"),
    "phase not begun": ("rename", "phase-002-epoch-000000", 0, "phase 1, epoch 2"),
    "second phase": ("step", "", 9, "phase 2, epoch 0"),
    "last epoch": ("step", "", 13, "phase 2, epoch 1"),
    "interpolation": ("mix", "", 2, "phase 2, epoch 2"),
    "look at an interpolation": ("read", "", 31, "phase 2, epoch 2"),
    "nothing written": ("model", "", 0, "phase 2, epoch 2"),
    "model not renamed": ("rename", "model.safetensors", 0, "phase 2, epoch 2"),
    "model written": ("history", "", 0, "phase 2, epoch 2"),
    "history written": ("logits", "", 0, "phase 2, epoch 2"),
    "summary not renamed": ("rename", "finetune.json", 0, "phase 2, epoch 2"),
    "scratch half deleted": ("clear", "/activations/", 2, ""),
    "within an epoch": ("step", "", 6, "phase 1, step 2 of epoch 2"),
    "within the second phase": ("count", "", 9, "phase 2, step 1 of epoch 1"),
    "step not renamed": ("rename", "epoch-000000-step-000000003", 0, "phase 1, step 2 of epoch 1"),
    "look at val after saved steps": ("read", "", 7, "phase 1, step 4 of epoch 1"),
}
QUICK = {  # one of each kind; the others are slow together
    "one shard written",
    "before a step",
    "look at val",
    "checkpoint not synced",
    "checkpoint renamed",
    "phase not closed",
    "last epoch",
    "look at an interpolation",
    "summary not renamed",
    "within an epoch",
}


class Killer:
    """Runs the stage in forks of one process that has imported everything."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", KILLING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def run(self, point: tuple[str, str, int], seconds: float, arguments: list[str]) -> int:
        """Run until the point, on the machine that this process is set to; give the exit code.

        A state is saved after so many seconds within an epoch.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        machine = {name: value for name, value in os.environ.items() if name.startswith("REGRAFT")}
        self.process.stdin.write(json.dumps([*point, seconds, arguments, machine]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, default_params: Params) -> Project:
    """A run that nobody disturbed, in the folder `whole`."""
    project = Project(tmp_path_factory.mktemp("project"), default_params)
    with pytest.MonkeyPatch.context() as patch:
        set_machine(patch, project.root / "scratch")
        project.run(project.arguments(), "whole")
    return project


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    """One for all points: importing everything takes longer than a run."""
    killer = Killer()
    yield killer
    killer.process.communicate()


def assert_goes_on(project: Project, name: str, scratch: Path) -> None:
    """The stage run again writes what the undisturbed run wrote, and leaves no scratch."""
    project.run(arguments_in(project.root / "in"), name)
    assert digests(project.root / name) == digests(project.root / "whole")
    assert not list(scratch.rglob("*.safetensors"))
    assert not list(scratch.rglob("*.npy"))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in POINTS],
)
def test_a_killed_stage_run_again_writes_the_same_bytes(
    whole: Project, killer: Killer, machine: Path, caplog: pytest.LogCaptureFixture, name: str
):
    *point, state = POINTS[name]
    arguments = arguments_in(whole.root / "in") + outputs(whole.root / name)
    seconds = 0.0 if "step" in state else epoch.SAVE_SECONDS
    assert killer.run(tuple(point), seconds, arguments) == -signal.SIGKILL
    caplog.set_level("INFO")
    assert_goes_on(whole, name, machine)
    resumed = [line for line in caplog.messages if line.startswith("resumed")]
    assert resumed == ([f"resumed from {state}"] if state else [])


# Waits in the second step of the second epoch for a line of its input.
WAITING = """
import sys
from tasks import finetune
from tasks.runtime.entry import run_stage
from tasks.training import epoch

count_step, counted = epoch.count_step, []
def wait(*args):
    counted.append(args)
    if len(counted) == 6:
        print("ready", flush=True)
        sys.stdin.readline()
    return count_step(*args)

epoch.count_step = wait
sys.exit(run_stage("finetune", lambda _: finetune.main(sys.argv[1:])))
"""


def start_waiting(whole: Project, name: str) -> subprocess.Popen[str]:
    """Start the stage and let it come to its sixth step."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            WAITING,
            *arguments_in(whole.root / "in"),
            *outputs(whole.root / name),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        # A test run in the background ignores Ctrl-C, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def count_steps_of(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Give a list that grows by one with every step of training."""
    real, steps = epoch.count_step, []

    def count_step(*args: object) -> object:
        steps.append(args)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(epoch, "count_step", count_step)
    return steps


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
    ids=["TERM", "INT"],
)
def test_a_stopped_stage_saves_its_steps_and_says_where_the_next_run_goes_on(
    whole: Project,
    machine: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: signal.Signals,
    status: int,
):
    name = f"stopped by {number.name}"
    process = start_waiting(whole, name)
    process.send_signal(number)
    _, errors = process.communicate("\n")
    assert process.returncode == status
    facts = "finetune: stopped", "after step 2", "epoch 2", "phase 1"
    assert tells(errors.splitlines()[-1], *facts)
    assert errors.count("stopped") == 1
    assert "Traceback" not in errors
    newest = max(path.stem for path in machine.rglob("phase-*"))
    assert newest == "phase-001-epoch-000001-step-000000002"
    caplog.set_level("INFO")
    steps = count_steps_of(monkeypatch)
    assert_goes_on(whole, name, machine)
    assert "resumed from phase 1, step 2 of epoch 2" in caplog.text
    assert len(steps) == 16 - 6


@pytest.mark.slow
def test_a_second_signal_stops_at_once(whole: Project, machine: Path):
    process = start_waiting(whole, "stopped twice")
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)  # two signals at once would be one
    _, errors = process.communicate()  # and no line to go on
    assert process.returncode == 143
    facts = "finetune: stopped", "from the end of epoch 1", "phase 1"
    assert tells(errors.splitlines()[-1], *facts)
    assert not list(machine.rglob("*step*"))
    assert_goes_on(whole, "stopped twice", machine)


def test_a_checkpoint_of_other_rates_is_not_resumed(
    project: Project, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    arguments = project.arguments()

    def stop(*args: object) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(outcome, "write_history", stop)
        with pytest.raises(InterruptedError):
            project.run(arguments)
    params = with_values(project.defaults, {**FAST, "finetune.head_lr": 0.02})
    with (project.root / "in" / "params.yaml").open("w") as file:
        YAML().dump(params.model_dump(mode="json"), file)
    caplog.clear()
    project.run(arguments)
    assert "resumed" not in caplog.text
    assert "left behind" in caplog.text
    assert "phase 1 of 2, epoch 1 of" in caplog.text


# refused inputs ----------------------------------------------------------------------------------


def test_weights_that_did_not_make_the_features_are_refused(project: Project):
    arguments = project.arguments()
    assert project.inputs is not None
    other = project.inputs.backbone.model_copy(update={"weights_sha256": "f" * 64})
    write_record(project.root / "in" / "backbone.json", other)
    with pytest.raises(ArtifactError, match=r"ffffffffffff.*rerun extract"):
        project.run(arguments)


@pytest.mark.parametrize("phases", [[], [4, 5], [5, 5], [99], [-1]])
def test_phases_that_do_not_unfreeze_downwards_are_refused(project: Project, phases: list[int]):
    arguments = project.arguments()
    assert project.inputs is not None
    transfer = Transfer(arm=project.inputs.transfer.arm, phases=phases)
    write_record(project.root / "in" / "transfer.json", transfer)
    with pytest.raises(ArtifactError, match=rf"{re.escape(str(phases))}.*falling.*rerun decide"):
        project.run(arguments)


def test_pixels_of_another_size_are_refused(project: Project):
    arguments = project.arguments()
    assert project.inputs is not None
    spec = project.inputs.backbone.input.model_copy(update={"image_px": 64})
    info = project.inputs.backbone.model_copy(update={"input": spec})
    write_record(project.root / "in" / "backbone.json", info)
    with pytest.raises(ArtifactError, match=r"train: .*32 px.* 64 px.*rerun augment"):
        project.run(arguments)


def test_a_baseline_of_other_images_is_refused(project: Project):
    arguments = project.arguments()
    write_array(project.root / "in" / "baseline_logits.npy", np.zeros((11, 3), "f4"))
    with pytest.raises(ArtifactError, match=r"baseline\.json: .*manifest\.csv; rerun baseline"):
        project.run(arguments)


def test_a_model_file_of_another_architecture_is_refused(project: Project):
    summary = project.run(project.arguments("feature_extraction"))
    renamed = summary.model_copy(update={"backbone": "test_resnet"})
    with pytest.raises(ArtifactError, match=r"model\.safetensors: tensor backbone\.\S+ "):
        load_finetuned(project.root / "out" / "model.safetensors", renamed)


def test_a_model_file_with_a_strange_tensor_is_refused(project: Project):
    summary = project.run(project.arguments("feature_extraction"))
    path = project.root / "out" / "model.safetensors"
    write_tensors(path, {**read_tensors(path), "extra": np.zeros(1, "f4")})
    with pytest.raises(ArtifactError, match=r"model\.safetensors: tensor extra .*rerun finetune"):
        load_finetuned(path, summary)
