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

from tasks.artifacts import read_record, write_record
from tasks.backbones.processes import ALONE, Processes
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
from tasks.training.lr_suggestion import (
    BROKEN,
    Doubles,
    rates_tried,
    smooth_losses,
    suggest_rate,
)
from tasks.training.mixing import draw_mix
from tasks.training.phases import peak_rates
from tasks.training.sampling import Batch, epoch_batches, layer_seed
from tasks.training.state import copy_tensors, load_tensors
from tasks.training.steps import Stepper
from tasks.training.trained_part import Parts, TrainedPart

log = logging.getLogger(__name__)

STOP = 4.0  # smoothed loss, as a multiple of its lowest value, at which the test ends
PHASE = 0  # of the random numbers: phases count from 1


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
        processes: Share every batch; all find the same.

    Source: Smith 2017, 1506.01186, section 3.3; the end and the suggestion are those of fastai's
    lr_find, which tries higher rates and smooths more, because it corrects no loss.
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
        self._processes, self._rates = processes, rates_tried()
        self._classifier, self._groups, self._examples = classifier, groups, examples
        self._batch_size, self._seed = params.batch_size, seed
        self._peak_rates = partial(peak_rates, groups, params=params)
        self._draw_mix = partial(draw_mix, params, seed=seed, phase=PHASE)
        self._optimizer = build_optimizer(
            classifier,
            groups,
            weight_decay=params.weight_decay,
            backbone_decays=not params.l2_sp,  # which takes its place
        )
        weights = class_weights(examples.labels, examples.classes)
        self._stepper = Stepper(
            classifier,
            self._optimizer,
            params,
            class_weights=weights if params.class_balanced else None,
            processes=processes,
        )

    def run_once(self, parts: Parts, unfrozen_from: int, *, folder: Path) -> RangeTest:
        """Run the test on a cut, or read what it left in this training's folder before a kill."""
        path = folder / "range_test.json"
        left = self._processes.tell(_read_result(path) if self._processes.first else None)
        if left is not None:
            return RangeTest.model_validate_json(left)
        found = self.run(parts.open(unfrozen_from), unfrozen_from)
        if self._processes.first:
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
                progress("learning-rate range test", 2 * len(self._rates), "steps") as meter,
            ):
                before = self._start_losses(part, meter)
                losses = self._train(part, unfrozen_from, before, meter)
        finally:
            load_tensors(self._classifier, start)
            self._optimizer.zero_grad()
            self._classifier.eval()
        return suggest_rate(self._rates[: len(losses)], smooth_losses(losses))

    def _start_losses(self, part: TrainedPart, meter: Meter) -> Doubles:
        """Give the loss of the start weights on the batch of every step."""
        losses = []
        for step, batch in enumerate(self._batches(part)):
            losses.append(self._step(part, batch, step, learn=False))
            meter.advance()
        if not np.isfinite(losses).all():
            raise TrainingError(BROKEN)
        return np.array(losses)

    def _train(
        self, part: TrainedPart, unfrozen_from: int, before: Doubles, meter: Meter
    ) -> list[float]:
        """Give the corrected loss of every step until the end of the test."""
        losses: list[float] = []
        for step, batch in enumerate(self._batches(part)):
            rates = self._peak_rates(unfrozen_from, head_lr=float(self._rates[step]))
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
        return islice((batch for epoch in epochs for batch in epoch), len(self._rates))

    def _step(self, part: TrainedPart, batch: Batch, step: int, *, learn: bool) -> float:
        """Give the loss of a batch, NaN where it breaks down; dropout and mixing are the step's."""
        place = {"phase": PHASE, "epoch": 0, "step": step}
        torch.manual_seed(layer_seed(self._seed, **place, process=self._processes.rank))
        take = self._stepper.train if learn else self._stepper.measure
        labels = self._examples.labels[batch.images]
        result = take(part, batch.rows, labels, self._draw_mix(epoch=0, step=step))
        return result.loss if result.is_finite else float("nan")


def _read_result(path: Path) -> str | None:
    with suppress(ArtifactError):
        return read_record(path, RangeTest).model_dump_json()
    return None
