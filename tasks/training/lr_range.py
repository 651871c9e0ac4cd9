"""The learning-rate range test: a peak rate for the head, found by training at rising rates.

A short training that is undone: weights and random state are afterwards what they were.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.artifacts import read_record, write_record
from tasks.errors import ArtifactError, TrainingError
from tasks.params import FinetuneParams
from tasks.progress import Meter, progress
from tasks.records import RangeTest
from tasks.training.classifier import Classifier
from tasks.training.epochs import Examples
from tasks.training.freezing import (
    TrainingGroup,
    build_optimizer,
    set_rates,
    set_training_mode,
    unfreeze_from,
)
from tasks.training.losses import class_weights
from tasks.training.mixing import draw_mix
from tasks.training.phases import peak_rates
from tasks.training.sampling import Batch, epoch_batches, layer_seed
from tasks.training.state import copy_tensors, load_tensors
from tasks.training.steps import Parts, Stepper, TrainedPart

log = logging.getLogger(__name__)

FIRST, LAST, STEPS = 1e-7, 10.0, 100
SMOOTHING = 0.98  # share of the old average that stays
STOP = 4.0  # smoothed loss, as a multiple of its lowest value, at which the test ends
FALL = 0.01  # of the first loss: a smaller fall does not tell one rate from another
RISE = 1.1  # smoothed loss, as a multiple of its lowest value, that no rate may cause
SMALLEST = 1e-6  # nats; corrected losses may end below 0
PHASE = 0  # of the random numbers: phases count from 1

Doubles = NDArray[np.float64]


class RangeTester:
    """Trains the part of a phase at rising rates.

    A rate that is tried is the head's; the backbone gets what it would get beside it in training:
    backbone_lr, less with depth, never above the head's. (fastai's lr_find, too, suggests the
    highest of the rates that are then spread over the layers.)

    A head that was fitted on frozen features has little left to gain in a hundred steps; the
    differences between batches would hide it. So the loss that the start weights have on the same
    batch, with the same dropout, is subtracted from every loss, and their mean added: at the lowest
    rates the curve is flat.

    Args:
        classifier: What is trained; comes out as it went in.
        groups: Its layer groups, the head last.
        examples: What is learned.
        params: The `finetune` block.
        seed: The run's seed.

    Source: Smith 2017, 1506.01186, section 3.3; rates, smoothing and end are those of fastai's
    lr_find.
    """

    def __init__(
        self,
        classifier: Classifier,
        groups: Sequence[TrainingGroup],
        examples: Examples,
        params: FinetuneParams,
        *,
        seed: int,
    ) -> None:
        self._classifier, self._groups, self._examples = classifier, groups, examples
        self._batch_size, self._seed = params.batch_size, seed
        self._peak_rates = partial(peak_rates, groups, params=params)
        self._draw_mix = partial(draw_mix, params, seed=seed, phase=PHASE)
        self._optimizer = build_optimizer(classifier, groups, weight_decay=params.weight_decay)
        weights = class_weights(examples.labels, examples.classes)
        self._stepper = Stepper(
            classifier,
            self._optimizer,
            params,
            class_weights=weights if params.class_balanced else None,
        )

    def run_once(self, parts: Parts, unfrozen_from: int, *, folder: Path) -> RangeTest:
        """Run the test on a cut, or read what it left in this training's folder before a kill."""
        path = folder / "range_test.json"
        with suppress(ArtifactError):
            return read_record(path, RangeTest)
        found = self.run(parts.open(unfrozen_from), unfrozen_from)
        write_record(path, found)
        log.info("learning-rate range test: %.2g for the head", found.suggested)
        return found

    def run(self, part: TrainedPart, unfrozen_from: int) -> RangeTest:
        """Train until the loss breaks away, undo it, suggest a rate.

        Args:
            part: What the first phase trains.
            unfrozen_from: Its lowest layer group.

        Raises:
            TrainingError: The loss is not finite from the start.
        """
        device = next(self._classifier.parameters()).device
        start = copy_tensors(self._classifier, part.names)
        unfreeze_from(self._classifier, self._groups, unfrozen_from)
        set_training_mode(self._classifier, part.module, part.names, adapt_norm=False)
        try:
            with (
                torch.random.fork_rng([device] if device.type == "cuda" else []),
                progress("learning-rate range test", 2 * STEPS, "steps") as meter,
            ):
                before = self._start_losses(part, meter)
                losses = self._train(part, unfrozen_from, before, meter)
        finally:
            load_tensors(self._classifier, start)
            self._optimizer.zero_grad()
            self._classifier.eval()
        return suggest_rate(rates_tried()[: len(losses)], smooth_losses(losses))

    def _start_losses(self, part: TrainedPart, meter: Meter) -> Doubles:
        """Give the loss of the start weights on the batch of every step."""
        losses = []
        for step, batch in enumerate(self._batches(part)):
            losses.append(self._step(part, batch, step, learn=False))
            meter.advance()
        return np.array(losses)

    def _train(
        self, part: TrainedPart, unfrozen_from: int, before: Doubles, meter: Meter
    ) -> list[float]:
        """Give the corrected loss of every step until the end of the test."""
        losses: list[float] = []
        for step, batch in enumerate(self._batches(part)):
            rates = self._peak_rates(unfrozen_from, head_lr=float(rates_tried()[step]))
            set_rates(self._optimizer, rates, 1.0)
            loss = self._step(part, batch, step, learn=True)
            if not np.isfinite(loss):
                break
            losses.append(loss - before[step] + before.mean())
            curve = smooth_losses(losses)
            if curve[-1] > STOP * curve.min():
                break
            meter.advance()
        return losses

    def _batches(self, part: TrainedPart) -> Iterator[Batch]:
        """Yield the batches of the test, the same every time."""
        images, views = len(self._examples.labels), part.rows.train.views
        epochs = (
            epoch_batches(
                images, views, self._batch_size, seed=self._seed, phase=PHASE, epoch=epoch
            )
            for epoch in count(1)
        )
        return islice((batch for epoch in epochs for batch in epoch), STEPS)

    def _step(self, part: TrainedPart, batch: Batch, step: int, *, learn: bool) -> float:
        """Give the loss of a batch, NaN where it breaks down; dropout and mixing are the step's."""
        torch.manual_seed(layer_seed(self._seed, phase=PHASE, epoch=step))
        take = self._stepper.train if learn else self._stepper.measure
        labels = self._examples.labels[batch.images]
        result = take(part, batch.rows, labels, self._draw_mix(epoch=0, step=step))
        return result.loss if result.is_finite else float("nan")


def rates_tried() -> Doubles:
    """Rate of the head at every step, rising by a constant factor, float64 (STEPS,)."""
    rates: Doubles = FIRST * (LAST / FIRST) ** (np.arange(STEPS) / STEPS)
    return rates


def smooth_losses(losses: Sequence[float]) -> Doubles:
    """Moving average of losses, corrected for its start at 0; the same length, at least 1e-6."""
    average, smoothed = 0.0, []
    for number, loss in enumerate(losses, start=1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed.append(average / (1 - SMOOTHING**number))
    return np.maximum(smoothed, SMALLEST)


def suggest_rate(rates: Doubles, curve: Doubles) -> RangeTest:
    """Suggest the rate at which the loss falls steepest before its minimum.

    Where it does not fall by a hundredth, no rate is better than the others in so few steps: then
    the highest rate is suggested that does not make it rise by a tenth.

    Args:
        rates: Tried, at constant ratios, (n,).
        curve: Smoothed loss at each, (n,).

    Raises:
        TrainingError: There are not two rates to compare.

    Source: steepest descent over the logarithm of the rate is fastai's `steep`.
    """
    if len(curve) < 2:
        raise TrainingError(
            "finetune.head_lr is auto, but training breaks down at once, even at a rate of "
            f"{FIRST:g}: the weights or the images are damaged"
        )
    lowest = int(curve.argmin())
    falls = curve[lowest] <= (1 - FALL) * curve[0]
    if falls:
        suggested = int(np.diff(curve[: lowest + 1]).argmin())
    else:
        suggested = int(np.argmax([*(curve > RISE * curve[lowest]), True])) - 1
    return RangeTest(
        suggested=float(rates[suggested]),
        falls=bool(falls),
        steps=len(curve),
        first_loss=float(curve[0]),
        lowest_loss=float(curve[lowest]),
        lowest_at=float(rates[lowest]),
    )


def describe_range_test(test: RangeTest | None, params: FinetuneParams) -> list[str]:
    """Say in words what was found, if there was a test."""
    if test is None:
        return []
    saw = (
        f"the loss falls steepest there, from {test.first_loss:.3f} to {test.lowest_loss:.3f} at "
        f"{test.lowest_at:.2g}"
        if test.falls
        else f"no rate lowers the loss of {test.first_loss:.3f} by a hundredth, and above this one "
        "it rises by a tenth"
    )
    lowered = params.backbone_lr > test.suggested
    return [
        f"The learning-rate range test suggests {test.suggested:.2g} for the head: {saw} "
        f"({test.steps} steps)."
        + (f" The backbone's rate of {params.backbone_lr:.2g} is lowered to it." * lowered)
    ]
