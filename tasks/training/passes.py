"""A pass over the training images: its steps, saved on the way, left within it and gone on with."""

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch.optim import AdamW

from tasks.params import FinetuneParams
from tasks.progress import progress
from tasks.training.classifier import Classifier
from tasks.training.epochs import Examples, check_step, count_step
from tasks.training.freezing import set_rates, set_training_mode
from tasks.training.phases import PhasePlan
from tasks.training.sampling import Batch, count_steps, epoch_batches, layer_seed
from tasks.training.schedule import warmup_cosine
from tasks.training.signals import HeldSignals
from tasks.training.state import Checkpoints, Tally, TrainState, copy_moments, copy_tensors
from tasks.training.steps import Stepper
from tasks.training.trained_part import TrainedPart

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
