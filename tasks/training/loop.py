"""The upper rungs of training: all phases, one phase, one epoch.

Everything random in an epoch comes from (seed, phase, epoch), and all else is in TrainState: a run
that goes on from a state ends with the same weights as one that was never interrupted.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from tasks.backbones.processes import ALONE, Processes
from tasks.params import FinetuneParams
from tasks.progress import progress
from tasks.training.averaging import update_average
from tasks.training.classifier import Classifier
from tasks.training.epochs import (
    DivergedError,
    Examples,
    Tally,
    check_step,
    close_epoch,
    log_epoch,
    log_start,
)
from tasks.training.freezing import (
    TrainingGroup,
    build_optimizer,
    set_rates,
    set_training_mode,
    unfreeze_from,
)
from tasks.training.losses import class_weights
from tasks.training.mixing import draw_mix
from tasks.training.phases import PhasePlan
from tasks.training.sampling import Batch, count_steps, epoch_batches, layer_seed
from tasks.training.schedule import warmup_cosine
from tasks.training.state import (
    Checkpoints,
    Logits,
    Snapshot,
    TrainState,
    copy_moments,
    copy_tensors,
    load_moments,
    load_tensors,
)
from tasks.training.steps import Stepper
from tasks.training.trained_part import Parts, TrainedPart
from tasks.training.verdicts import end_phase, state_after, val_loss

log = logging.getLogger(__name__)


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
        self._patience, self._confidence = params.patience, params.gate_confidence
        self._batch_size, self._warmup_fraction = params.batch_size, params.warmup_fraction
        self._ema_decay, self._seed, self._rank = params.ema_decay, seed, processes.rank
        self._draw_mix = partial(draw_mix, params, seed=seed)
        self._optimizer = build_optimizer(classifier, groups, weight_decay=params.weight_decay)
        weights = class_weights(examples.labels, examples.classes)
        self._stepper = Stepper(
            classifier,
            self._optimizer,
            params,
            class_weights=weights if params.class_balanced else None,
            processes=processes,
        )
        self._epoch_steps = count_steps(len(examples.labels), params.batch_size)

    def run_phases(
        self, plans: Sequence[PhasePlan], parts: Parts, checkpoints: Checkpoints
    ) -> TrainState:
        """Run the phases that are not done yet; the classifier ends with the kept weights."""
        state = checkpoints.latest()
        if state is not None:
            log.info("resumed from phase %d, epoch %d", state.phase, state.epoch)
        for plan in plans:
            if state is None or plan.number >= state.phase:
                state = self.run_phase(plan, state, parts, checkpoints)
        assert state is not None
        return state

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
                state = self.run_epoch(plan, state, parts.open(plan.unfrozen_from))
                checkpoints.save(state)
        except DivergedError as err:
            log.warning("%s", err)
            diverged = str(err)
        return self._end(plan, state, diverged)

    def run_epoch(self, plan: PhasePlan, state: TrainState, part: TrainedPart) -> TrainState:
        """Show every training image once, then look at val.

        Raises:
            DivergedError: Training broke down in this epoch.
        """
        number, images = state.epoch + 1, len(self._examples.labels)
        torch.manual_seed(layer_seed(self._seed, phase=plan.number, epoch=number) + self._rank)
        set_training_mode(self._classifier, part.module, part.names, adapt_norm=plan.adapt_norm)
        place = {"seed": self._seed, "phase": plan.number, "epoch": number}
        batches = epoch_batches(images, part.rows.train.views, self._batch_size, **place)
        average = {name: tensor.clone() for name, tensor in state.average.items()}
        tally = Tally()
        with progress(f"phase {plan.number} of {plan.of}, epoch {number}", images) as meter:
            for step, batch in enumerate(batches, start=state.epoch * self._epoch_steps):
                self.run_step(plan, part, batch, step=step, tally=tally)
                update_average(average, self._classifier, self._ema_decay, step=step)
                meter.advance(len(batch.images))
        return self._close_epoch(plan, state, part, average=average, tally=tally)

    def run_step(
        self, plan: PhasePlan, part: TrainedPart, batch: Batch, *, step: int, tally: Tally
    ) -> None:
        """Take one step at its place in the phase and count it.

        Raises:
            DivergedError: The loss or the gradient is not finite.
        """
        steps = plan.epochs * self._epoch_steps
        share = warmup_cosine(step, steps=steps, warmup_fraction=self._warmup_fraction)
        set_rates(self._optimizer, plan.rates, share)
        epoch = step // self._epoch_steps + 1
        mix = self._draw_mix(phase=plan.number, epoch=epoch, step=step % self._epoch_steps)
        result = self._stepper.train(part, batch.rows, self._examples.labels[batch.images], mix)
        check_step(
            plan,
            f"epoch {epoch}, step {step + 1}, {share:.0%} of the peak rate",
            result,
            [self._examples.names[image] for image in batch.images],
        )
        tally.add(result, share)

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
            average=weights if self._ema_decay else {},
            moments={},
            history=before.history if before else (),
            finished=before.finished if before else (),
            phase_average=before.phase_average if before else {},
            micro_batch=self._stepper.micro_batches.largest,
        )

    def _is_over(self, plan: PhasePlan, state: TrainState) -> bool:
        stale = state.epoch - (state.best.epoch if state.best else 0)
        return state.epoch >= plan.epochs or stale >= self._patience

    def _close_epoch(
        self,
        plan: PhasePlan,
        state: TrainState,
        part: TrainedPart,
        *,
        average: dict[str, Tensor],
        tally: Tally,
    ) -> TrainState:
        """Look at val, by the averaged weights where there are any, and make the next state."""
        weights = copy_tensors(self._classifier, part.names)
        load_tensors(self._classifier, average)
        judged = Snapshot(state.epoch + 1, average or weights, self.predict_val(part))
        load_tensors(self._classifier, weights)
        row = close_epoch(plan, state, tally, judged.val_logits, self._examples)
        log_epoch(plan, judged.epoch, row)
        best = state.best
        if best is None or row.val_loss < val_loss(best.val_logits, self._examples.val):
            best = judged
        return replace(
            state,
            epoch=judged.epoch,
            best=best,
            weights=weights,
            average=average,
            moments=copy_moments(self._classifier, self._optimizer),
            history=(*state.history, row),
            micro_batch=self._stepper.micro_batches.largest,
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
