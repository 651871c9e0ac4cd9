"""Cuts a classifier at a layer group: frozen below, and what the trained part above reads."""

from pathlib import Path

import torch
from torch import nn

from tasks.backbones.engine import make_engine
from tasks.backbones.split import example_images, split_at
from tasks.machine import Machine
from tasks.records import InputSpec
from tasks.training.classifier import Classifier
from tasks.training.freezing import TrainingGroup, tensors_from
from tasks.training.rows import PixelRows, Rows, Stores, open_rows
from tasks.training.steps import TrainedPart

SAMPLE_ROWS = 8  # images on which an engine is compared with torch


class BackboneParts:
    """Opens the trained part above a cut; at most one cut's cache is on disk at a time.

    The layers below a cut must not have been trained yet: the plan unfreezes from the top down.

    Args:
        classifier: What is cut; the parts share its layers.
        groups: Its layer groups, the head last.
        stores: Pixels of train and val.
        spec: What the backbone expects.
        machine: What runs the frozen layers.
        folder: Where activations may be cached.
        cache_gb: Disk that they may take, GB.
    """

    def __init__(
        self,
        classifier: Classifier,
        groups: list[TrainingGroup],
        stores: Stores,
        spec: InputSpec,
        machine: Machine,
        *,
        folder: Path,
        cache_gb: float,
    ) -> None:
        self._classifier, self._groups, self._stores = classifier, groups, stores
        self._spec, self._machine = spec, machine
        self._folder, self._cache_gb = folder, cache_gb
        self._cut: int | None = None
        self._part: TrainedPart | None = None

    def open(self, unfrozen_from: int) -> TrainedPart:
        """Give the part from a layer group on; what an earlier cut had cached is deleted.

        Raises:
            TrainingError: The disk is too small for the cache, or activations cannot be stored.
            EngineError: The backbone cannot be cut there.
        """
        if self._part is None or self._cut != unfrozen_from:
            self.close()
            self._part, self._cut = self._make(unfrozen_from), unfrozen_from
        return self._part

    @torch.no_grad()
    def input_shape(self, unfrozen_from: int) -> tuple[int, ...]:
        """Shape of what the part from a layer group on reads of one image; nothing is cached."""
        backbone = self._classifier.eval().backbone
        prefix, _ = split_at(backbone, unfrozen_from)
        return tuple(prefix(example_images(backbone, count=2)).shape[1:])

    def close(self) -> None:
        """Delete what was cached."""
        if self._part is not None:
            self._part.rows.remove()
            self._part = None

    def _make(self, unfrozen_from: int) -> TrainedPart:
        self._classifier.eval()
        prefix, suffix = split_at(self._classifier.backbone, unfrozen_from)
        return TrainedPart(
            module=nn.Sequential(suffix, self._classifier.head),
            names=tensors_from(self._groups, unfrozen_from),
            rows=self._rows_above(prefix, unfrozen_from),
        )

    def _rows_above(self, prefix: nn.Module, unfrozen_from: int) -> Rows:
        train, val = self._stores.train, self._stores.val
        if unfrozen_from == 0:
            return Rows(PixelRows(train, self._spec), PixelRows(val, self._spec))
        sample = train.rows(train.clean_rows()[:SAMPLE_ROWS])
        engine = make_engine(prefix, self._spec, self._machine, sample)
        return open_rows(
            self._stores,
            engine,
            folder=self._folder / f"group-{unfrozen_from}-{engine.name}",
            budget_gb=self._cache_gb,
        )
