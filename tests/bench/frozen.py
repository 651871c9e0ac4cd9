"""Frozen features of a data set, made once by the stages themselves, for measurements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench.scratch import Copy, choose_images

from tasks.artifacts.arrays import Features, Ints, read_array
from tasks.artifacts.records import SPLITS, Split
from tasks.artifacts.tables import ManifestRow

MAKERS = ("ingest", "augment", "extract")


@dataclass(frozen=True)
class FrozenSet:
    """Clean features, float32 (N, D), labels int64 (N,), groups and given splits of N images."""

    name: str
    classes: list[str]
    features: Features
    labels: Ints
    groups: list[str]
    splits: list[Split]


def make_features(
    source: Path | str, folder: Path, *, images: int, values: Mapping[str, object], python: str
) -> FrozenSet:
    """Run ingest, augment and extract in a scratch copy and keep about so many images."""
    own = {**values, "augment.views": 0, "ingest.small_class": "train_only"}
    own |= {"ingest.source": str(source)}
    copy = Copy.make(folder, own, python=python, environment={})
    for stage in MAKERS:
        copy.run(stage)
    manifest = copy.manifest()
    kept = set(choose_images(manifest, images))
    rows: list[ManifestRow] = []
    parts: list[Features] = []
    for split in SPLITS:
        array = read_array(copy.root / f"data/extract/{split}/features.npy")
        chosen = [n for n, row in enumerate(manifest.of(split)) if row.path in kept]
        rows += [manifest.of(split)[n] for n in chosen]
        parts.append(np.array(array[chosen, 0], dtype=np.float32))
    return FrozenSet(
        name=Path(source).stem,
        classes=manifest.class_names,
        features=np.concatenate(parts),
        labels=number_labels(rows, manifest.class_names),
        groups=[row.group for row in rows],
        splits=[row.split for row in rows],
    )


def number_labels(rows: Sequence[ManifestRow], classes: Sequence[str]) -> Ints:
    """Give the class index of each row, int64 (N,)."""
    index = {name: number for number, name in enumerate(classes)}
    return np.array([index[row.label] for row in rows], dtype=np.int64)
