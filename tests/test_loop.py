"""The loop learns, stops, rolls back, survives interruptions and never moves a frozen layer."""

import logging
import math
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tells, with_values
from tiny_finetune import make_inputs, phases_if_kept
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tasks.artifacts.arrays import Ints
from tasks.artifacts.records import Arm, Phase
from tasks.artifacts.tables import Manifest
from tasks.errors import ArtifactError, PeerError, TrainingError
from tasks.heads.classifier import start_classifier
from tasks.judging.metrics import image_losses
from tasks.judging.rule import ValSet
from tasks.params import FinetuneParams, Params
from tasks.runtime.machine import Machine
from tasks.training import epoch as epoch_module
from tasks.training.feed.parts import BackboneParts, CachePlan
from tasks.training.inputs import Examples, FinetuneInputs
from tasks.training.loop import Trainer
from tasks.training.phases import PhasePlan, TrainingGroup, training_groups
from tasks.training.resume.checkpoints import Tally, Tensors, TrainState, copy_tensors
from tasks.training.step import Stepper, StepResult, TrainedPart

MACHINE = Machine(device="cpu", engine="torch")

Setting = Callable[..., FinetuneParams]


class Memory:
    """Checkpoints in memory; stops the run after `stop_after` saves, as a kill would."""

    def __init__(self, stop_after: int | None = None, state: TrainState | None = None) -> None:
        self.states = [] if state is None else [state]
        self.stop_after = stop_after

    def save(self, state: TrainState) -> None:
        self.states.append(state)
        if len(self.states) == self.stop_after:
            raise InterruptedError

    def latest(self) -> TrainState | None:
        return self.states[-1] if self.states else None


@dataclass
class Run:
    """One training, and what it needs."""

    trainer: Trainer
    plans: list[PhasePlan]
    parts: BackboneParts
    classifier: torch.nn.Module
    groups: list[TrainingGroup]

    def go(self, memory: Memory | None = None) -> TrainState:
        def plan_next(finished: Sequence[Phase]) -> PhasePlan | None:
            return dict(enumerate(self.plans)).get(len(finished))

        return self.trainer.run_phases(plan_next, self.parts, memory or Memory())

    def weights(self) -> dict[str, torch.Tensor]:
        return copy_tensors(self.classifier, list(self.classifier.state_dict()))


@pytest.fixture
def setting(default_params: Params) -> Setting:
    """Make a `finetune` block that learns fast: `setting(epochs=3)`."""

    def make(**values: object) -> FinetuneParams:
        fast = {
            "early_epochs": 3,
            "epochs": 3,
            "batch_size": 8,
            "head_lr": 0.01,
            "backbone_lr": 0.003,
            "patience": 100,
            "scratch_epochs": 2,
            "label_smoothing": 0.0,
            "cache_gb": 1.0,
        }
        named = {f"finetune.{key}": value for key, value in {**fast, **values}.items()}
        return with_values(default_params, named).finetune

    return make


def make_run(
    folder: Path,
    params: FinetuneParams,
    inputs: FinetuneInputs | None = None,
    *,
    balanced: bool = False,
    **kind: object,
) -> Run:
    made = inputs or make_inputs(folder / "inputs", **kind)  # type: ignore[arg-type]
    arm: Arm = made.transfer.arm
    classifier = start_classifier(made.backbone, made.baseline, made.head, arm=arm, seed=17)
    groups = training_groups(classifier)
    manifest = made.manifest
    examples = Examples(
        labels=manifest.labels("train"),
        names=[row.path for row in manifest.of("train")],
        val=ValSet(manifest.labels("val"), manifest.groups("val"), balanced=balanced),
        classes=3,
    )
    plans = phases_if_kept(made.transfer, groups, params)
    parts = BackboneParts(
        classifier,
        groups,
        made.stores,
        made.backbone.input,
        MACHINE,
        CachePlan(folder / "activations", params.cache_gb, [plan.unfrozen_from for plan in plans]),
    )
    trainer = Trainer(classifier, groups, examples, params, seed=17)
    return Run(trainer, plans, parts, classifier, groups)


def assert_equal(one: Tensors, other: Tensors) -> None:
    assert one.keys() == other.keys()
    unequal = [name for name in one if not torch.equal(one[name], other[name])]
    assert not unequal


def test_only_the_last_phase_is_long(tmp_path: Path, setting: Setting):
    plans = make_run(tmp_path, setting(early_epochs=2, epochs=7), phases=[5, 4, 2]).plans
    assert [plan.epochs for plan in plans] == [2, 2, 7]


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_training_images_are_learned_by_heart(tmp_path: Path, setting: Setting, head: str):
    params = setting(epochs=20, backbone_lr=0.01)
    history = make_run(tmp_path, params, phases=[4], views=0, head=head).go().history
    assert max(row.train_accuracy for row in history) == 1.0
    assert history[-1].train_loss < 0.4 < history[0].train_loss


def test_frozen_groups_are_bit_equal_after_all_phases(tmp_path: Path, setting: Setting):
    run = make_run(tmp_path, setting(gate_confidence=0.99), phases=[5, 4])
    before = run.weights()
    assert [phase.kept for phase in run.go().finished] == [True, True]
    after = run.weights()
    frozen = [name for group in run.groups[:4] for name in group.tensors]
    assert frozen
    assert_equal({n: before[n] for n in frozen}, {n: after[n] for n in frozen})
    assert not torch.equal(before["head.weight"], after["head.weight"])
    deepest = [name for name in run.groups[4].tensors if name.endswith("conv_dw.weight")]
    assert deepest
    assert not any(torch.equal(before[name], after[name]) for name in deepest)


def test_history_has_a_row_an_epoch_and_rates_that_fall_with_depth(
    tmp_path: Path, setting: Setting
):
    run = make_run(tmp_path, setting(lr_decay=0.5, warmup_fraction=0.0))
    history = run.go().history
    assert [(row.phase, row.epoch) for row in history] == [
        (1, 1),
        (1, 2),
        (1, 3),
        (2, 4),
        (2, 5),
        (2, 6),
    ]
    top, deeper = run.groups[5].name, run.groups[4].name
    assert history[0].rates.keys() == {"head", top}
    last = history[-1].rates
    assert last.keys() == {"head", top, deeper}
    assert last["head"] / last[top] == pytest.approx(0.01 / 0.003)
    assert last[deeper] / last[top] == pytest.approx(0.5)
    shares = [0.5 * (1 + math.cos(math.pi * step / 12)) for step in range(4)]
    assert history[3].rates["head"] == pytest.approx(0.01 * np.mean(shares))


def test_cached_training_follows_the_uncached_one(tmp_path: Path, setting: Setting):
    inputs = make_inputs(tmp_path / "inputs")
    cached = make_run(tmp_path / "a", setting(), inputs).go().history
    inputs = make_inputs(tmp_path / "inputs again")
    computed = make_run(tmp_path / "b", setting(cache_gb=0.0), inputs).go().history
    assert len(cached) == 6
    for one, other in zip(cached, computed, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=3e-3)
        assert one.val_loss == pytest.approx(other.val_loss, abs=3e-3)


def test_two_runs_are_equal_to_the_last_bit(tmp_path: Path, setting: Setting):
    one = make_run(tmp_path / "a", setting(), head="mlp")
    other = make_run(tmp_path / "b", setting(), head="mlp")
    assert one.go().history == other.go().history
    assert_equal(one.weights(), other.weights())


@pytest.mark.parametrize(
    ("saves", "values"),
    [
        (1, {}),
        (3, {}),
        (4, {}),
        (5, {}),
        (6, {}),
        (7, {"weight_decay": 0.1}),
        (8, {"gate_confidence": 0.99}),
    ],
)
def test_a_run_stopped_after_any_checkpoint_ends_as_if_never_stopped(
    tmp_path: Path, setting: Setting, saves: int, values: dict[str, float]
):
    params = setting(**values)
    whole = make_run(tmp_path / "whole", params, head="mlp")
    expected = whole.go()
    stopped = Memory(stop_after=saves)
    with pytest.raises(InterruptedError):
        make_run(tmp_path / "stopped", params, head="mlp").go(stopped)
    resumed = make_run(tmp_path / "resumed", params, head="mlp")
    state = resumed.go(Memory(state=stopped.latest()))
    assert state.history == expected.history
    assert state.finished == expected.finished
    assert_equal(state.phase_average, expected.phase_average)
    assert_equal(whole.weights(), resumed.weights())


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give a list that grows by the number of every step that is taken, from 1 in each epoch."""
    real, steps = epoch_module.count_step, []

    def count_step(tally: Tally, *args: Any) -> Tally:
        steps.append(tally.steps + 1)
        return real(tally, *args)

    monkeypatch.setattr(epoch_module, "count_step", count_step)
    return steps


@pytest.mark.parametrize("arm", ["fine_tune", "scratch"])
def test_a_run_killed_within_an_epoch_goes_on_after_its_last_saved_step(
    tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch, arm: Arm
):
    params = setting(epochs=2)
    whole = make_run(tmp_path / "whole", params, head="mlp", arm=arm)
    expected = whole.go()
    killed = Memory(stop_after=9)  # start, four steps, end of the epoch, three steps
    with monkeypatch.context() as patch:
        patch.setattr(epoch_module, "SAVE_SECONDS", 0.0)
        with pytest.raises(InterruptedError):
            make_run(tmp_path / "killed", params, head="mlp", arm=arm).go(killed)
    left = killed.latest()
    assert left is not None
    assert left.place == "phase 1, step 3 of epoch 2"
    steps = count_steps(monkeypatch)
    resumed = make_run(tmp_path / "resumed", params, head="mlp", arm=arm)
    state = resumed.go(Memory(state=left))
    assert steps[:1] == [4]
    assert state.history == expected.history
    assert state.finished == expected.finished
    assert_equal(whole.weights(), resumed.weights())


def test_a_signal_while_an_epoch_is_saved_waits_until_it_is(tmp_path: Path, setting: Setting):
    class Signalled(Memory):
        def save(self, state: TrainState) -> None:
            if state.epoch == 2:
                signal.raise_signal(signal.SIGTERM)
            super().save(state)

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    memory, before = Signalled(), signal.signal(signal.SIGTERM, leave)
    try:
        with pytest.raises(SystemExit, match="143"):
            make_run(tmp_path, setting(), phases=[5]).go(memory)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert memory.states[-1].place == "phase 1, epoch 2"


def test_nothing_is_saved_within_an_epoch_before_its_time(tmp_path: Path, setting: Setting):
    memory = Memory()
    make_run(tmp_path, setting(), phases=[5]).go(memory)
    assert [state.place for state in memory.states] == [f"phase 1, epoch {n}" for n in range(4)]


@pytest.mark.parametrize("error", [SystemExit(143), KeyboardInterrupt(), PeerError("gone")])
def test_the_steps_of_an_epoch_are_saved_where_its_look_at_val_is_stopped(
    tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    stop_look(monkeypatch, error)
    memory = Memory()
    with pytest.raises(type(error)):
        make_run(tmp_path, setting(), phases=[5]).go(memory)
    assert [state.place for state in memory.states] == [
        "phase 1, epoch 0",
        "phase 1, step 4 of epoch 1",
    ]


def stop_look(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the second look at val end in an error."""
    real, looks = Stepper.predict_val, []

    def predict_val(*args: Any) -> np.ndarray:
        looks.append(args)
        if len(looks) == 2:
            raise error
        return real(*args)

    monkeypatch.setattr(Stepper, "predict_val", predict_val)


def test_a_full_disk_does_not_hide_that_a_run_was_stopped(
    tmp_path: Path,
    setting: Setting,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    class Full(Memory):
        def save(self, state: TrainState) -> None:
            if self.states:
                raise ArtifactError("no space left")
            super().save(state)

    stop_look(monkeypatch, SystemExit(143))
    with pytest.raises(SystemExit):
        make_run(tmp_path, setting(), phases=[5]).go(Full())
    assert caplog.messages == ["no space left"]


def starve(run: Run) -> None:
    """Let memory run out in the first step, and never again."""
    head, before = run.classifier.get_submodule("head"), []

    def refuse(layer: torch.nn.Module, inputs: object) -> None:
        if layer.training and not before:
            before.append(inputs)
            raise torch.OutOfMemoryError("CUDA out of memory.")

    head.register_forward_pre_hook(refuse)


def test_a_run_that_goes_on_cuts_batches_as_the_one_before(tmp_path: Path, setting: Setting):
    whole = make_run(tmp_path / "whole", setting())
    starve(whole)
    expected = whole.go()
    cut = make_run(tmp_path / "cut", setting())
    starve(cut)
    stopped = Memory(stop_after=3)
    with pytest.raises(InterruptedError):
        cut.go(stopped)
    resumed = make_run(tmp_path / "resumed", setting())
    state = resumed.go(Memory(state=stopped.latest()))
    assert expected.micro_batch == state.micro_batch == 4
    assert state.history == expected.history
    assert_equal(whole.weights(), resumed.weights())


def test_a_resumed_run_says_where_it_goes_on(
    tmp_path: Path, setting: Setting, caplog: pytest.LogCaptureFixture
):
    stopped = Memory(stop_after=3)
    with pytest.raises(InterruptedError):
        make_run(tmp_path / "a", setting()).go(stopped)
    with caplog.at_level(logging.INFO):
        make_run(tmp_path / "b", setting()).go(Memory(state=stopped.latest()))
    assert "resumed from phase 1, epoch 2" in caplog.text
    assert "phase 1 of 2, epoch 2 of" not in caplog.text
    assert "phase 1 of 2, epoch 3 of" in caplog.text


def test_the_next_phase_starts_from_the_best_epoch_of_the_one_before(
    tmp_path: Path, setting: Setting
):
    memory = Memory()
    make_run(tmp_path, setting()).go(memory)
    first = memory.states[3]
    second = next(state for state in memory.states if state.phase == 2)
    assert first.best is not None
    np.testing.assert_allclose(second.start.val_logits, first.best.val_logits, atol=5e-3)
    trained = first.best.weights
    assert "head.weight" in trained
    assert_equal({name: second.start.weights[name] for name in trained}, trained)


def script_val(monkeypatch: pytest.MonkeyPatch, labels: Ints, losses: list[float]) -> None:
    """Let val have these losses, one each time it is looked at."""
    monkeypatch.setattr(ValSet, "losses", lambda val, logits: image_losses(logits, val.labels))
    left = list(losses)

    def predict_val(self: Stepper, part: TrainedPart, count: int) -> np.ndarray:
        share = math.exp(-left.pop(0))
        logits = np.full((count, 3), math.log((1 - share) / 2), dtype=np.float32)
        logits[np.arange(count), labels] = math.log(share)
        return logits

    monkeypatch.setattr(Stepper, "predict_val", predict_val)


def test_the_epoch_with_the_lowest_val_loss_is_restored(
    tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch
):
    memory = Memory()
    run = make_run(tmp_path, setting(epochs=4), phases=[5])
    script_val(monkeypatch, np.arange(12) % 3, [0.9, 0.7, 0.5, 0.6, 0.5])
    (phase,) = run.go(memory).finished
    assert (phase.best_epoch, phase.epochs, phase.stopped) == (2, 4, "finished")
    assert phase.val_loss == pytest.approx(0.5)
    assert_equal(
        memory.states[2].weights, copy_tensors(run.classifier, list(memory.states[2].weights))
    )


def test_a_phase_ends_after_patience_epochs_without_a_better_val_loss(
    tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch
):
    run = make_run(tmp_path, setting(epochs=9, patience=2), phases=[5])
    script_val(monkeypatch, np.arange(12) % 3, [0.9, 0.7, 0.8, 0.6, 0.65, 0.6])
    (phase,) = run.go().finished
    assert (phase.best_epoch, phase.epochs, phase.stopped) == (3, 5, "patience")


def test_a_phase_that_makes_val_worse_is_rolled_back_and_the_next_starts_before_it(
    tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch
):
    memory = Memory()
    run = make_run(tmp_path, setting(early_epochs=2, epochs=2))
    before = run.weights()
    script_val(monkeypatch, np.arange(12) % 3, [0.2, 2.5, 2.6, 0.2, 0.15, 0.1])
    first, second = run.go(memory).finished
    assert (first.kept, second.kept) == (False, True)
    assert tells(first.reason, "rolled back", "val accuracy", "-100.0 points")
    start = next(state for state in memory.states if state.phase == 2).start
    assert "head.weight" in start.weights
    assert_equal(start.weights, {name: before[name] for name in start.weights})


def test_absurd_rates_roll_back_to_the_start_and_say_what_to_lower(
    tmp_path: Path, setting: Setting, caplog: pytest.LogCaptureFixture
):
    run = make_run(tmp_path, setting(head_lr=1.0, backbone_lr=1.0))
    run.plans[:] = [replace(plan, rates=dict.fromkeys(plan.rates, 1e30)) for plan in run.plans]
    before = run.weights()
    state = run.go()
    assert [phase.stopped for phase in state.finished] == ["diverged", "diverged"]
    assert not any(phase.kept for phase in state.finished)
    assert state.history == ()
    assert_equal(before, run.weights())
    assert tells(caplog.text, "lower finetune.backbone_lr", "finetune.head_lr", "train/")


def test_a_loss_far_beyond_guessing_is_a_breakdown(
    tmp_path: Path, setting: Setting, caplog: pytest.LogCaptureFixture
):
    run = make_run(tmp_path, setting(head_lr=1.0, backbone_lr=1.0, warmup_fraction=0.0))
    before = run.weights()
    phases = run.go().finished
    assert {phase.stopped for phase in phases} == {"diverged"}
    assert "guessing gives 1.1" in caplog.text
    assert_equal(before, run.weights())


def test_a_class_balanced_loss_learns_the_rare_class(tmp_path: Path, setting: Setting):
    shares = []
    for balanced in (False, True):
        inputs = make_inputs(tmp_path / f"inputs {balanced}", phases=[5])
        rows = [
            replace(row, label="blue") if number % 10 and row.split == "train" else row
            for number, row in enumerate(inputs.manifest.rows)
        ]
        inputs = replace(inputs, manifest=Manifest(rows))
        params = setting(epochs=1, backbone_lr=1e-6)
        memory = Memory()
        make_run(tmp_path / str(balanced), params, inputs, balanced=balanced).go(memory)
        best = memory.states[-1].best
        assert best is not None
        shares.append(best.val_logits[:, 0].mean() - best.val_logits[:, 1:].mean())
    assert shares[1] < shares[0]


def test_a_weighted_loss_that_starts_far_above_guessing_is_no_breakdown(
    tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch
):
    run = make_run(tmp_path, setting(epochs=1), phases=[5], balanced=True)
    logits = (np.eye(3)[(np.arange(12) + 1) % 3] * 9).astype(np.float32)  # sure, and all wrong
    monkeypatch.setattr(Stepper, "predict_val", lambda self, part, count: logits)
    real = Stepper.train

    def train(self: Stepper, *batch: Any) -> StepResult:
        return replace(real(self, *batch), loss=9.0)  # far above 3 ln 3

    monkeypatch.setattr(Stepper, "train", train)
    (phase,) = run.go().finished
    assert phase.stopped == "finished"


def test_training_from_scratch_has_a_patience_of_its_own(tmp_path: Path, setting: Setting):
    params = setting(patience=2, scratch_patience=9)
    assert [plan.patience for plan in make_run(tmp_path / "a", params).plans] == [2, 2]
    (plan,) = make_run(tmp_path / "b", params, arm="scratch").plans
    assert plan.patience == 9


def break_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let every step after so many see a loss that is not a number."""
    real, taken = Stepper.train, []

    def train(self: Stepper, part: TrainedPart, rows: Ints, *batch: object) -> StepResult:
        taken.append(rows)
        result = real(self, part, rows, *batch)
        if len(taken) <= steps:
            return result
        return StepResult(math.nan, result.right, result.images, result.norm)

    monkeypatch.setattr(Stepper, "train", train)


def test_a_breakdown_after_a_good_epoch_keeps_that_epoch(
    tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch
):
    break_after(monkeypatch, 4 * 2 + 1)
    memory = Memory()
    run = make_run(tmp_path, setting(), phases=[5])
    (phase,) = run.go(memory).finished
    assert (phase.stopped, phase.kept, phase.epochs) == ("diverged", True, 2)
    best = memory.states[-1].best
    assert best is not None
    assert "head.weight" in best.weights
    assert_equal(best.weights, {name: run.weights()[name] for name in best.weights})


def test_a_step_that_is_not_finite_leaves_the_weights_alone(
    tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch
):
    run = make_run(tmp_path, setting(), phases=[5])
    before = run.weights()
    with torch.no_grad():
        run.classifier.get_parameter("head.weight").fill_(torch.nan)
    broken = run.weights()
    (phase,) = run.go().finished
    assert phase.stopped == "diverged"
    changed = [name for name in before if not torch.equal(run.weights()[name], before[name])]
    assert changed == ["head.weight"]
    assert torch.equal(
        torch.isnan(run.weights()["head.weight"]), torch.isnan(broken["head.weight"])
    )


def test_training_from_scratch_that_breaks_down_at_once_is_an_error(
    tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch
):
    break_after(monkeypatch, 0)
    with pytest.raises(TrainingError, match=r"nothing .*lower finetune\.scratch_lr"):
        make_run(tmp_path, setting(), arm="scratch").go()


def test_training_from_scratch_moves_every_weight_and_every_statistic(
    tmp_path: Path, setting: Setting
):
    run = make_run(tmp_path, setting(scratch_lr=0.01, weight_decay=0.1), arm="scratch")
    before = run.weights()
    state = run.go()
    same = [name for name, tensor in run.weights().items() if torch.equal(tensor, before[name])]
    assert same == []
    assert set(state.history[0].rates.values()) == {state.history[0].rates["head"]}


def test_the_kept_phases_are_averaged_on_the_way(tmp_path: Path, setting: Setting):
    memory = Memory()
    run = make_run(tmp_path, setting(gate_confidence=0.99))
    state = run.go(memory)
    assert [phase.kept for phase in state.finished] == [True, True]
    first = next(one for one in memory.states if one.phase == 2)
    assert_equal(first.phase_average, {n: first.start.weights[n] for n in first.phase_average})
    assert first.phase_average.keys() < first.weights.keys() == state.phase_average.keys()
    for name, mean in state.phase_average.items():
        if mean.is_floating_point():
            expected = (first.start.weights[name] + state.weights[name]) / 2
            torch.testing.assert_close(mean, expected)


def test_a_phase_that_is_rolled_back_is_not_averaged(
    tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch
):
    run = make_run(tmp_path, setting(early_epochs=2, epochs=2))
    script_val(monkeypatch, np.arange(12) % 3, [0.2, 2.5, 2.6, 0.2, 0.15, 0.1])
    state = run.go()
    assert [phase.kept for phase in state.finished] == [False, True]
    assert_equal(state.phase_average, state.weights)


def test_the_gradient_is_limited_to_the_norm_asked_for(tmp_path: Path, setting: Setting):
    run = make_run(tmp_path, setting(clip_norm=0.01), phases=[5])
    norms: list[float] = []
    hook = register_optimizer_step_pre_hook(
        lambda opt, args, kwargs: norms.append(
            float(
                torch.stack(
                    [
                        item.grad.norm()
                        for o in opt.param_groups
                        for item in o["params"]
                        if item.grad is not None
                    ]
                ).norm()
            )
        )
    )
    run.go()
    hook.remove()
    assert len(norms) == 3 * 4
    assert max(norms) <= 0.0101
