"""An epoch: its steps, saved on the way and gone on with, its sums, its row of the history."""

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from torch.optim import AdamW

from tasks.artifacts.arrays import Logits
from tasks.artifacts.tables import HistoryRow
from tasks.artifacts.words import listed
from tasks.errors import TrainingError
from tasks.heads.classifier import Classifier
from tasks.heads.schedule import Batch, count_steps, epoch_batches, layer_seed, warmup_cosine
from tasks.judging.metrics import image_losses
from tasks.judging.rule import ValSet
from tasks.params import FinetuneParams
from tasks.runtime.progress import progress
from tasks.runtime.signals import HeldSignals
from tasks.training.feed.rows import TrainedPart
from tasks.training.inputs import Examples
from tasks.training.phases import HEAD_GROUP, PhasePlan, set_training_mode
from tasks.training.resume.checkpoints import (
    Checkpoints,
    Tally,
    TrainState,
    copy_moments,
    copy_tensors,
)
from tasks.training.step import Stepper, StepResult, set_rates

log = logging.getLogger(__name__)

DIVERGED = 3.0  # mean train loss, as a multiple of the start's or guessing's, that is divergence


class DivergedError(TrainingError):
    """A loss or gradient is not a number any more, or the loss is far beyond that of guessing."""


def count_step(tally: Tally, result: StepResult, share: float) -> Tally:
    """Add a step, taken at a share of the peak rates, to the sums over those before it."""
    return Tally(
        steps=tally.steps + 1,
        shares=tally.shares + share,
        loss=tally.loss + result.loss * result.images,
        right=tally.right + result.right,
        images=tally.images + result.images,
    )


def check_step(plan: PhasePlan, place: str, result: StepResult, names: list[str]) -> None:
    """Refuse a step whose loss or gradient is not finite.

    Args:
        plan: The phase.
        place: Where in the phase, for the message.
        result: What the step saw.
        names: Paths of its images.

    Raises:
        DivergedError: It is not finite; the weights are still those before the step.
    """
    if not result.is_finite:
        raise DivergedError(
            f"phase {plan.number}, {place}: loss {result.loss:g}, gradient norm {result.norm:g} "
            f"on {listed(names, 3)}; {_advise(plan)}"
        )


def close_epoch(
    plan: PhasePlan, taken: TrainState, val_logits: Logits, examples: Examples
) -> HistoryRow:
    """Make the row of the history of an epoch.

    Args:
        plan: The phase.
        taken: The state after the last step of it.
        val_logits: Logits on val then.
        examples: What is learned, and what judges.

    Raises:
        DivergedError: The train loss is far beyond that of guessing and what the phase started
            with, or the val loss is not finite.
    """
    tally = taken.tally
    share = tally.shares / tally.steps
    row = HistoryRow(
        phase=plan.number,
        epoch=len(taken.history) + 1,
        rates={name: rate * share for name, rate in plan.rates.items()},
        train_loss=tally.loss / tally.images,
        train_accuracy=tally.right / tally.images,
        val_loss=examples.val.loss(val_logits),
        val_accuracy=examples.val.accuracy(val_logits),
    )
    guessing = math.log(max(examples.classes, 2))
    # A class-balanced loss may start far above guessing: no head was fitted to the rare classes.
    start = _raw_loss(taken.start.val_logits, examples.val)
    if row.train_loss > DIVERGED * max(guessing, start) or not math.isfinite(row.val_loss):
        raise DivergedError(
            f"phase {plan.number}, epoch {taken.epoch + 1}: train loss {row.train_loss:.3g}, "
            f"val loss {row.val_loss:.3g}, where guessing gives {guessing:.3g} and the phase "
            f"started at {start:.3g}; {_advise(plan)}"
        )
    return row


def _raw_loss(logits: Logits, val: ValSet) -> float:
    """Mean loss before calibration, as the train loss is one."""
    return float(np.average(image_losses(logits, val.labels), weights=val.weights))


def log_start(plan: PhasePlan, val_logits: Logits, val: ValSet) -> None:
    """Log one line about a phase before its first step."""
    log.info(
        "phase %d of %d, %s: starts at val loss %.3f, val accuracy %.3f",
        plan.number,
        plan.of,
        plan.name,
        val.loss(val_logits),
        val.accuracy(val_logits),
    )


def log_epoch(plan: PhasePlan, epoch: int, row: HistoryRow) -> None:
    """Log one line about an epoch, counted within its phase."""
    log.info(
        "phase %d of %d, epoch %d of %d: train loss %.3f, val loss %.3f, val accuracy %.3f "
        "(head %.1e, deepest %.1e)",
        plan.number,
        plan.of,
        epoch,
        plan.epochs,
        row.train_loss,
        row.val_loss,
        row.val_accuracy,
        row.rates[HEAD_GROUP],
        min(row.rates.values()),
    )


def _advise(plan: PhasePlan) -> str:
    if plan.adapt_norm:
        return "lower finetune.scratch_lr"
    rates = "finetune.backbone_lr and finetune.head_lr"
    return f"lower finetune.raise_lr, or {rates}" if plan.share > 1 else f"lower {rates}"


SAVE_SECONDS = 600.0  # between two states of one epoch


class TrainingPass:
    """Takes the steps of an epoch.

    Args:
        classifier: What is trained, in place.
        optimizer: Over all of its parameters.
        stepper: Takes a step of it.
        examples: What is learned.
        params: The `finetune` block.
        seed: The run's seed.
    """

    def __init__(
        self,
        classifier: Classifier,
        optimizer: AdamW,
        stepper: Stepper,
        examples: Examples,
        params: FinetuneParams,
        *,
        seed: int,
    ) -> None:
        self._classifier, self._optimizer, self._stepper = classifier, optimizer, stepper
        self._examples, self._seed, self._processes = examples, seed, stepper.processes
        self._batch_size, self._warmup_fraction = params.batch_size, params.warmup_fraction
        self._epoch_steps = count_steps(len(examples.labels), params.batch_size)

    def take(
        self,
        plan: PhasePlan,
        state: TrainState,
        part: TrainedPart,
        checkpoints: Checkpoints,
        held: HeldSignals,
    ) -> TrainState:
        """Take the steps that are left of the epoch after `state`, all or until a signal waits.

        Every `SAVE_SECONDS` the state is saved.

        Args:
            plan: The phase.
            state: Where training is; classifier and optimizer are as it says.
            part: What the phase trains.
            checkpoints: Where states are kept.
            held: The signals that wait for the end of a step.

        Returns:
            The state after the last step taken; val was not looked at.

        Raises:
            DivergedError: The loss or the gradient is not finite.
            TrainingError: Memory runs out with the smallest micro-batch, or for the optimizer.
        """
        set_training_mode(self._classifier, part.module, part.names, adapt_norm=plan.adapt_norm)
        tally, saved = state.tally, time.monotonic()
        left = len(self._examples.labels) - tally.images
        epoch = f"epoch {state.epoch + 1} of {plan.epochs}"
        with progress(f"phase {plan.number} of {plan.of}, {epoch}", left) as meter:
            for batch in self._batches_left(plan, state, part):
                step = state.epoch * self._epoch_steps + tally.steps
                tally = self._step(plan, part, batch, step=step, tally=tally)
                meter.advance(len(batch.images))
                if held.agree_to_stop():
                    break
                if self._processes.first and time.monotonic() - saved >= SAVE_SECONDS:
                    checkpoints.save(self._state_now(state, part, tally))
                    saved = time.monotonic()
        return self._state_now(state, part, tally)

    def _batches_left(
        self, plan: PhasePlan, state: TrainState, part: TrainedPart
    ) -> Iterator[Batch]:
        batches = epoch_batches(
            len(self._examples.labels),
            part.rows.train.views,
            self._batch_size,
            seed=self._seed,
            phase=plan.number,
            epoch=state.epoch + 1,
        )
        return islice(batches, state.tally.steps, None)

    def _step(
        self, plan: PhasePlan, part: TrainedPart, batch: Batch, *, step: int, tally: Tally
    ) -> Tally:
        """Take one step at its place in the phase and count it.

        Raises:
            DivergedError: The loss or the gradient is not finite.
        """
        steps = plan.epochs * self._epoch_steps
        share = warmup_cosine(step, steps=steps, warmup_fraction=self._warmup_fraction)
        set_rates(self._optimizer, plan.rates, share)
        epoch = step // self._epoch_steps + 1
        place = {"phase": plan.number, "epoch": epoch, "step": tally.steps}
        torch.manual_seed(layer_seed(self._seed, **place, process=self._processes.rank))
        result = self._stepper.train(part, batch.rows, self._examples.labels[batch.images])
        check_step(
            plan,
            f"epoch {epoch}, step {step + 1}, {share:.0%} of the peak rate",
            result,
            [self._examples.names[image] for image in batch.images],
        )
        return count_step(tally, result, share)

    def _state_now(self, state: TrainState, part: TrainedPart, tally: Tally) -> TrainState:
        return replace(
            state,
            weights=copy_tensors(self._classifier, part.names),
            moments=copy_moments(self._classifier, self._optimizer),
            micro_batch=self._stepper.micro_batches.largest,
            tally=tally,
        )
