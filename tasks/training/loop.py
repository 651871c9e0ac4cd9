"""The upper rungs of training: all phases, one phase, one epoch.

Everything random comes from (seed, phase, epoch, step, process), and all else is in TrainState: a
run that goes on from a state ends with the same weights as one that was never interrupted.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from tasks.artifacts.arrays import Logits
from tasks.artifacts.records import Phase
from tasks.errors import ArtifactError, PeerError
from tasks.heads.classifier import Classifier
from tasks.params import FinetuneParams
from tasks.runtime.processes import ALONE, Processes
from tasks.runtime.signals import holding_signals
from tasks.training.epoch import DivergedError, TrainingPass, close_epoch, log_epoch, log_start
from tasks.training.feed.rows import Parts, TrainedPart
from tasks.training.inputs import Examples
from tasks.training.phases import PhasePlan, TrainingGroup, build_optimizer, unfreeze_from
from tasks.training.resume.checkpoints import (
    Checkpoints,
    Snapshot,
    Tally,
    TrainState,
    copy_tensors,
    load_moments,
    load_tensors,
)
from tasks.training.step import Stepper, class_weights
from tasks.training.verdicts import Chosen, choose_weights, end_phase, state_after

log = logging.getLogger(__name__)

PlanNext = Callable[[Sequence[Phase]], PhasePlan | None]


class Trainer:
    """Trains a classifier phase by phase and keeps what val does not speak against.

    Args:
        classifier: What is trained, in place.
        groups: Its layer groups, the head last.
        examples: What is learned, and what judges.
        params: The `finetune` block.
        seed: The run's seed.
        processes: Share every batch.
    """

    def __init__(
        self,
        classifier: Classifier,
        groups: Sequence[TrainingGroup],
        examples: Examples,
        params: FinetuneParams,
        *,
        seed: int,
        processes: Processes = ALONE,
    ) -> None:
        self._classifier, self._groups, self._examples = classifier, groups, examples
        self._start = copy_tensors(classifier, list(classifier.state_dict()))
        self._confidence, self._seed, self._processes = params.gate_confidence, seed, processes
        self._optimizer = build_optimizer(classifier, groups, weight_decay=params.weight_decay)
        weights = class_weights(examples.labels, examples.classes)
        self._stepper = Stepper(
            classifier,
            self._optimizer,
            params,
            class_weights=weights if examples.val.balanced else None,
            processes=processes,
        )
        self._pass = TrainingPass(
            classifier, self._optimizer, self._stepper, examples, params, seed=seed
        )

    def run_phases(self, plan_next: PlanNext, parts: Parts, checkpoints: Checkpoints) -> TrainState:
        """Run the phases that are not done yet; the classifier ends with the kept weights."""
        state = checkpoints.latest()
        if state is not None:
            log.info("resumed from %s", state.place)
        while plan := plan_next(state.finished if state else ()):
            state = self.run_phase(plan, state, parts, checkpoints)
        assert state is not None
        return state

    def choose_weights(
        self, state: TrainState, parts: Parts, *, unfrozen_from: int, shares: Sequence[float]
    ) -> Chosen | None:
        """Choose between the start, the end and the average of the kept phases.

        Args:
            state: After the last phase.
            parts: Open the part that was trained.
            unfrozen_from: Its lowest layer group.
            shares: Of the weights at the end that are tried, in [0, 1].

        Returns:
            What the classifier has become; None, and the start, where no phase was kept.
        """
        kept = sum(phase.kept for phase in state.finished)
        if not kept:
            return None
        part = parts.open(unfrozen_from)
        return choose_weights(
            self._classifier,
            {name: self._start[name] for name in part.names},
            copy_tensors(self._classifier, part.names),
            shares=shares,
            average=state.phase_average if kept > 1 else None,
            predict_val=lambda: self.predict_val(part),
            val=self._examples.val,
        )

    def run_phase(
        self,
        plan: PhasePlan,
        state: TrainState | None,
        parts: Parts,
        checkpoints: Checkpoints,
    ) -> TrainState:
        """Run or finish one phase, then keep its best epoch or roll it back.

        The optimizer starts each phase without memory: a phase depends on nothing but its start.
        """
        unfreeze_from(self._classifier, self._groups, plan.unfrozen_from)
        if state is None or state.phase != plan.number:
            state = self._begin(plan, state, parts.open(plan.unfrozen_from))
            checkpoints.save(state)
        load_tensors(self._classifier, state.weights)
        load_moments(self._classifier, self._optimizer, state.moments)
        self._stepper.micro_batches.largest = state.micro_batch
        diverged = None
        try:
            while not self._is_over(plan, state):
                part = parts.open(plan.unfrozen_from)
                state = self.run_epoch(plan, state, part, checkpoints)
                with holding_signals(self._processes):
                    checkpoints.save(state)
        except DivergedError as err:
            log.warning("%s", err)
            diverged = str(err)
        return self._end(plan, state, diverged)

    def run_epoch(
        self, plan: PhasePlan, state: TrainState, part: TrainedPart, checkpoints: Checkpoints
    ) -> TrainState:
        """Show every training image once, or those that are left of it, then look at val.

        A signal that ends the run, or another process that has ended, finds the steps saved: of a
        step that is being taken, a first signal waits for the end.

        Raises:
            DivergedError: Training broke down in this epoch.
        """
        taken = None
        try:
            with holding_signals(self._processes) as held:
                taken = self._pass.take(plan, state, part, checkpoints, held)
            return self._close_epoch(plan, taken, part)
        except (SystemExit, KeyboardInterrupt, PeerError):
            if taken is not None:
                _save_before_exit(checkpoints, taken)
            raise

    def _begin(self, plan: PhasePlan, before: TrainState | None, part: TrainedPart) -> TrainState:
        """Look at val before the first step."""
        weights = copy_tensors(self._classifier, part.names)
        start = Snapshot(0, weights, self.predict_val(part))
        log_start(plan, start.val_logits, self._examples.val)
        return TrainState(
            phase=plan.number,
            epoch=0,
            start=start,
            best=None,
            weights=weights,
            moments={},
            history=before.history if before else (),
            finished=before.finished if before else (),
            judged=before.judged if before else (),
            phase_average=before.phase_average if before else {},
            micro_batch=self._stepper.micro_batches.largest,
        )

    def _is_over(self, plan: PhasePlan, state: TrainState) -> bool:
        stale = state.epoch - (state.best.epoch if state.best else 0)
        return state.epoch >= plan.epochs or stale >= plan.patience

    def _close_epoch(self, plan: PhasePlan, taken: TrainState, part: TrainedPart) -> TrainState:
        """Look at val and make the next state."""
        judged = Snapshot(taken.epoch + 1, taken.weights, self.predict_val(part))
        row = close_epoch(plan, taken, judged.val_logits, self._examples)
        log_epoch(plan, judged.epoch, row)
        best = taken.best
        if best is None or row.val_loss < self._examples.val.loss(best.val_logits):
            best = judged
        return replace(
            taken, epoch=judged.epoch, best=best, history=(*taken.history, row), tally=Tally()
        )

    def predict_val(self, part: TrainedPart) -> Logits:
        """Give the logits of the classifier as it is on val, float32 (N_val, C)."""
        return self._stepper.predict_val(part, len(self._examples.val.labels))

    def _end(self, plan: PhasePlan, state: TrainState, diverged: str | None) -> TrainState:
        """Put the kept weights into the classifier and record the phase."""
        end = end_phase(
            plan,
            state,
            self._examples.val,
            confidence=self._confidence,
            seed=self._seed,
            diverged=diverged,
        )
        load_tensors(self._classifier, end.kept.weights)
        log.info("phase %d of %d %s", plan.number, plan.of, end.record.reason)
        return state_after(state, end)


def _save_before_exit(checkpoints: Checkpoints, state: TrainState) -> None:
    """Keep a state; the run ends anyway, so that it cannot be kept is only said."""
    try:
        checkpoints.save(state)
    except ArtifactError as err:
        log.warning("%s", err)
