"""One racer: an arm that is trained on a part of the images, with a whole schedule of its own."""

import copy
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tasks.artifacts.arrays import Ints, Logits
from tasks.artifacts.records import BackboneInfo, Baseline, Transfer
from tasks.errors import TrainingError
from tasks.heads.classifier import start_classifier
from tasks.params import FinetuneParams
from tasks.runtime.device import find_device
from tasks.runtime.machine import Machine
from tasks.training.feed.parts import BackboneParts, CachePlan
from tasks.training.feed.rows import Parts, Rows, RowSource, Stores, TrainedPart
from tasks.training.inputs import Examples
from tasks.training.loop import Trainer
from tasks.training.phases import next_phase, training_groups
from tasks.training.resume.checkpoints import TrainState
from tasks.transferability.arms import NamedArm

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Track:
    """What all racers of a round start from and are judged by.

    Attributes:
        backbone: Pretrained; its weights made the features.
        baseline: Says what kind of head there is.
        head: Fitted on frozen features of the images of this round.
        stores: Pixels of these images and of val.
        examples: Their labels, and val's.
        epochs: How often each image is shown.
        params: The `finetune` block.
        seed: The run's seed.
    """

    backbone: BackboneInfo
    baseline: Baseline
    head: nn.Module
    stores: Stores
    examples: Examples
    epochs: int
    params: FinetuneParams
    seed: int


class _Repeated:
    """Rows of some images, each of which is several ones, so that an epoch shows it as often.

    Val is looked at after an epoch: it would cost more than the racer where images are few.
    """

    def __init__(self, rows: RowSource, images: int) -> None:
        self._rows, self._count = rows, images * (rows.views + 1)
        self.views = rows.views

    def read(self, rows: Ints) -> Tensor:
        """Read rows; the images after the last one are the first ones again."""
        return self._rows.read(rows % self._count)

    def remove(self) -> None:
        """Delete what was stored on disk to read from."""
        self._rows.remove()


class _RepeatedParts:
    """Cuts the classifier as `parts` does; every training image is several ones."""

    def __init__(self, parts: Parts, images: int) -> None:
        self._parts, self._images = parts, images

    def open(self, unfrozen_from: int) -> TrainedPart:
        """Give the part from a layer group on."""
        part = self._parts.open(unfrozen_from)
        rows = Rows(_Repeated(part.rows.train, self._images), part.rows.val)
        return replace(part, rows=rows)


class _NoCheckpoints:
    """A racer is soon done: one that was stopped starts again."""

    def save(self, state: TrainState) -> None:
        """Keep nothing."""

    def latest(self) -> TrainState | None:
        """There is none."""
        return None


def train_racer(entry: NamedArm, track: Track, machine: Machine, folder: Path) -> Logits:
    """Train an arm and give its logits on val, float32 (N_val, C), at the end of its schedule.

    Args:
        entry: The arm.
        track: Where it starts, and what judges it.
        machine: Device, threads and engine.
        folder: Where activations may be cached.

    Returns:
        All zero where training from scratch breaks down.

    Raises:
        TrainingError: Fine-tuning broke down.
    """
    classifier = start_classifier(
        track.backbone, track.baseline, copy.deepcopy(track.head), arm=entry.arm, seed=track.seed
    )
    classifier = classifier.to(find_device(machine)).to(memory_format=torch.channels_last)
    groups = training_groups(classifier)
    once = {"epochs": 1, "scratch_epochs": 1}  # in which each image is shown several times
    params = track.params.model_copy(update=once)
    plan = next_phase(Transfer(arm=entry.arm, phases=list(entry.phases)), groups, params, ())
    assert plan is not None
    plan_of_cache = CachePlan(folder, params.cache_gb, [entry.cut])
    parts = BackboneParts(
        classifier, groups, track.stores, track.backbone.input, machine, plan_of_cache
    )
    examples = replace(
        track.examples,
        labels=np.tile(track.examples.labels, track.epochs),
        names=[*track.examples.names] * track.epochs,
    )
    trainer = Trainer(classifier, groups, examples, params, seed=track.seed)
    repeated = _RepeatedParts(parts, len(track.examples.labels))
    try:
        state = trainer.run_phase(plan, None, repeated, _NoCheckpoints())
    except TrainingError as err:
        if entry.arm != "scratch":
            raise
        log.warning("training from scratch counts as having learned nothing: %s", err)
        return np.zeros((len(examples.val.labels), examples.classes), np.float32)
    finally:
        parts.close()
    return state.judged[-1]
