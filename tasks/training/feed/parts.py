"""Cuts a classifier at a layer group: frozen below, and what the trained part above reads."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from tasks.artifacts.records import InputSpec
from tasks.backbones.cuts import prefixes_at, split_at
from tasks.backbones.engine import Engine, make_engine
from tasks.heads.classifier import Classifier
from tasks.runtime.machine import Machine
from tasks.runtime.processes import ALONE, Processes
from tasks.training.feed.rows import PixelRows, Rows, Stores, TrainedPart, cache_together, open_rows
from tasks.training.phases import TrainingGroup, tensors_from

SAMPLE_ROWS = 8  # images on which an engine is compared with torch


@dataclass(frozen=True)
class CachePlan:
    """What may be cached.

    Attributes:
        folder: Where activations go.
        budget_gb: Disk that they may take, GB; 0: none.
        cuts: Lowest trained layer group of each planned phase, falling.
    """

    folder: Path
    budget_gb: float
    cuts: Sequence[int]


class BackboneParts:
    """Opens the trained part above a cut.

    The layers below a cut must not have been trained yet: the plan unfreezes from the top down. So
    the activations at all planned cuts are known before the first phase, and are cached in one pass
    over the pixels where they fit together. Otherwise one cut's cache is on disk at a time. Which
    views are used does not depend on where an interrupted run goes on.

    Args:
        classifier: What is cut; the parts share its layers. None of them has been trained yet.
        groups: Its layer groups, the head last.
        stores: Pixels of train and val.
        spec: What the backbone expects.
        machine: What runs the frozen layers.
        cache: Where activations may be cached, and for which cuts.
        processes: Open the same cuts in the same order and fill the caches together.

    Raises:
        EngineError: The backbone cannot be cut at one of the planned cuts.
    """

    def __init__(
        self,
        classifier: Classifier,
        groups: list[TrainingGroup],
        stores: Stores,
        spec: InputSpec,
        machine: Machine,
        cache: CachePlan,
        processes: Processes = ALONE,
    ) -> None:
        self._classifier, self._groups, self._stores = classifier, groups, stores
        self._spec, self._machine = spec, machine
        self._cache, self._processes = cache, processes
        self._cut: int | None = None
        self._part: TrainedPart | None = None
        self._cuts = [cut for cut in cache.cuts if cut > 0]
        for cut in self._cuts:
            split_at(classifier.backbone, cut)  # so that none fails after a phase before it
        several = cache.budget_gb > 0 and len(self._cuts) > 1
        self._pretrained = copy.deepcopy(classifier.backbone) if several else None
        self._ahead: dict[int, Rows] = {}  # cached for later phases

    def open(self, unfrozen_from: int) -> TrainedPart:
        """Give the part from a layer group on; what an earlier cut had cached is deleted.

        Raises:
            TrainingError: Activations cannot be stored.
        """
        if self._part is None or self._cut != unfrozen_from:
            self.close()
            self._part, self._cut = self._make(unfrozen_from), unfrozen_from
        return self._part

    def close(self) -> None:
        """Delete what was cached for the open part."""
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
        if self._pretrained is not None:
            self._ahead = self._cache_from(self._pretrained, unfrozen_from)
            self._pretrained = None
        if unfrozen_from in self._ahead:
            return self._ahead.pop(unfrozen_from)
        engine = self._engine(prefix)
        return open_rows(
            self._stores,
            engine,
            folder=self._cache.folder / f"group-{unfrozen_from}-{engine.name}",
            budget_gb=self._cache.budget_gb,
            processes=self._processes,
        )

    def _cache_from(self, backbone: nn.Module, highest: int) -> dict[int, Rows]:
        """Cache the activations at all planned cuts up to a layer group; none where too large."""
        engine = self._engine(prefixes_at(backbone, self._cuts))
        name = f"groups-{'-'.join(map(str, self._cuts))}-{engine.name}"
        folders = {
            number: self._cache.folder / name / str(cut)
            for number, cut in enumerate(self._cuts)
            if cut <= highest
        }
        rows = cache_together(
            self._stores,
            engine,
            folders,
            budget_gb=self._cache.budget_gb,
            processes=self._processes,
        )
        return {self._cuts[number]: one for number, one in rows.items()}

    def _engine(self, frozen: nn.Module) -> Engine:
        train, val = self._stores.train, self._stores.val
        sample = train.rows(train.clean_rows()[:SAMPLE_ROWS])
        rows = train.info.count * (train.info.views + 1) + val.info.count
        return make_engine(frozen, self._spec, self._machine, sample, rows=rows)
