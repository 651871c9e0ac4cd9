"""Stage audit: what features give away about twins across splits, and files about labels.

It opens what was made of val and test, as evaluate does, and reports only: nothing that chooses
reads what it writes.
"""

import logging
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tasks.artifacts.arrays import Bools, Features, Ints, read_array
from tasks.artifacts.files import replacing_folder
from tasks.artifacts.pixels import PixelStore, open_pixels
from tasks.artifacts.records import (
    SPLITS,
    Audit,
    Estimate,
    ShortcutAudit,
    Split,
    TwinAudit,
    write_record,
)
from tasks.artifacts.tables import (
    FactRow,
    Manifest,
    PairRow,
    TwinRow,
    read_manifest,
    read_rows,
    write_rows,
)
from tasks.artifacts.words import listed, shortened
from tasks.auditing.shortcuts import (
    FILE_FACTS,
    FOLDER,
    LOOK_FACTS,
    collect_facts,
    measure_shortcuts,
)
from tasks.auditing.twins import (
    CROWD,
    Nearest,
    Whitened,
    choose_threshold,
    find_nearest,
    index_groups,
    measure_pairs,
    whiten,
)
from tasks.errors import ArtifactError
from tasks.judging.statistics import accuracy_interval
from tasks.runtime.entry import Read, StagePaths, Write, read_arguments, run_stage

log = logging.getLogger(__name__)

MOST_IMAGES: Mapping[Split, int] = {"train": 30_000, "val": 3_000, "test": 3_000}
MOST_COMPARED = 3_000  # training images whose nearest neighbor in train is looked for
MOST_PAIRS, MOST_CLASSES = 10, 10  # shown
LONGEST_NAME = 30  # characters
CONFIDENCE, RESAMPLES = 0.95, 200
SOME_TWINS = 0.03  # share of test images, by its lower bound, from which on they are told


@dataclass(frozen=True)
class Paths(StagePaths):
    """What the stage reads and writes."""

    manifest: Read
    facts: Read
    train: Read
    val: Read
    test: Read
    train_features: Read
    val_features: Read
    test_features: Read
    audit: Write
    twins: Write
    pairs: Write


@dataclass(frozen=True, slots=True)
class Twins:
    """What was found about twins, and a row for each val and test image that was looked at."""

    audit: TwinAudit
    rows: list[TwinRow]


def find_twins(manifest: Manifest, features: Mapping[Split, Features], *, seed: int) -> Twins:
    """Find val and test images that have a twin in train.

    Args:
        manifest: Labels and groups of all images.
        features: Of the clean views, float32 (N, D) by split.
        seed: Of the images that are looked at, where there are very many.
    """
    chosen = {split: _choose(len(features[split]), MOST_IMAGES[split], seed) for split in SPLITS}
    sample = _sample(manifest, features, chosen, seed=seed)
    train = sample["train"]
    pairs = measure_pairs(train, seed=seed)
    compared = train.take(_choose(len(train.labels), MOST_COMPARED, seed))
    within = find_nearest(compared, train, pairs, apart=True)
    crowd = find_nearest(compared, train, pairs, apart=True, rank=CROWD)
    threshold = choose_threshold(crowd)
    nearest = {
        split: find_nearest(sample[split], train, pairs, apart=False) for split in SPLITS[1:]
    }
    tested = manifest.of("test")
    audit = TwinAudit(
        threshold=threshold,
        shares={
            split: _share(found.twins(threshold), sample[split].groups, seed)
            for split, found in nearest.items()
            if len(found.rows)
        },
        within_train=_share(within.twins(threshold), compared.groups, seed),
        classes=_shares_by_class(
            [tested[row].label for row in chosen["test"]],
            nearest["test"].twins(threshold),
        ),
    )
    return Twins(audit, list(_twin_rows(manifest, chosen, nearest, threshold)))


def _twin_rows(
    manifest: Manifest,
    chosen: Mapping[Split, Ints],
    nearest: Mapping[Split, Nearest],
    threshold: float,
) -> Iterator[TwinRow]:
    trained = manifest.of("train")
    for split, found in nearest.items():
        rows, twins = manifest.of(split), found.twins(threshold)
        for number in np.flatnonzero(found.rows >= 0):
            yield TwinRow(
                path=rows[chosen[split][number]].path,
                split=split,
                nearest=trained[chosen["train"][found.rows[number]]].path,
                likeness=float(found.likeness[number]),
                deviations=float(found.deviations[number]),
                twin=bool(twins[number]),
            )


def _shares_by_class(labels: Sequence[str], twins: Bools) -> dict[str, float]:
    sizes = Counter(labels)
    found = Counter(label for label, twin in zip(labels, twins, strict=True) if twin)
    largest = sorted(found, key=lambda name: (-found[name] / sizes[name], name))
    return {name: found[name] / sizes[name] for name in largest[:MOST_CLASSES]}


def _choose(count: int, most: int, seed: int) -> Ints:
    rows = np.random.default_rng([seed, count]).permutation(count)[:most]
    return np.sort(rows).astype(np.int64)


def _sample(
    manifest: Manifest,
    features: Mapping[Split, Features],
    chosen: Mapping[Split, Ints],
    *,
    seed: int,
) -> dict[Split, Whitened]:
    white = whiten(np.concatenate([features[split][chosen[split]] for split in SPLITS]), seed=seed)
    labels = np.concatenate([manifest.labels(split)[chosen[split]] for split in SPLITS])
    groups = {split: manifest.groups(split) for split in SPLITS}
    names = [groups[split][row] for split in SPLITS for row in chosen[split].tolist()]
    together = Whitened(white, labels, index_groups(names))
    ends = np.cumsum([len(chosen[split]) for split in SPLITS])
    parts = [
        np.arange(end - len(chosen[split]), end) for split, end in zip(SPLITS, ends, strict=True)
    ]
    return {split: together.take(part) for split, part in zip(SPLITS, parts, strict=True)}


def _share(twins: Bools, groups: Ints, seed: int) -> Estimate:
    names = [str(group) for group in groups]
    return accuracy_interval(twins, names, confidence=CONFIDENCE, resamples=RESAMPLES, seed=seed)


# shortcuts ---------------------------------------------------------------------------------------


def find_shortcuts(
    manifest: Manifest, facts: Sequence[FactRow], *, seed: int
) -> tuple[ShortcutAudit | None, ShortcutAudit | None]:
    """Measure how well labels can be told from the files alone, and with how pictures look.

    Raises:
        ArtifactError: The facts are of other images than the manifest.
    """
    if [row.path for row in facts] != [row.path for row in manifest.rows]:
        raise ArtifactError(
            "facts.csv lists other images than manifest.csv; run the stage ingest again"
        )
    index = {name: number for number, name in enumerate(manifest.class_names)}
    labels = np.array([index[row.label] for row in manifest.rows], dtype=np.int64)
    groups = index_groups([row.group for row in manifest.rows])
    table = collect_facts(facts, labels, groups, manifest.class_names, seed=seed)
    of_file = [name for name in table.columns if name in FILE_FACTS or name == FOLDER]
    varied = [name for name in of_file if len(set(table.columns[name])) > 1]
    alone = measure_shortcuts(table, varied, confidence=CONFIDENCE, seed=seed) if varied else None
    both = measure_shortcuts(table, [*varied, *LOOK_FACTS], confidence=CONFIDENCE, seed=seed)
    return alone, both


# words -------------------------------------------------------------------------------------------


def say_twin_share(twins: TwinAudit) -> str:
    """Say how many test images have a twin in train, and what to do; empty: hardly any."""
    share = twins.shares.get("test")
    if share is None or (share.low or 0.0) < SOME_TWINS:
        return ""
    return (
        f"{round(share.value * share.n):,} of {share.n:,} test images ({share.value:.0%}) have a "
        "twin in train by their features: a copy, or another picture of one thing, series or "
        "place. On new things accuracy may be lower. Look at the pairs; list what belongs together "
        "in data/groups.csv (`python -m tasks.auditing.propose_groups` proposes it). Splits that "
        "the source gives are not cut anew: move the pictures there."
    )


def say_files(found: ShortcutAudit | None) -> str:
    """Say which classes the files give away, by what, and what to do; empty: none."""
    if found is None or not found.told:
        return ""
    return (
        f"The files tell the label without their content: {_say_told(found)}. A network learns "
        "such a shortcut, and test images of the same sources reward it. To save all alike is not "
        "enough: collect the classes from the same sources, or crop or mask what tells them."
    )


def say_looks(found: ShortcutAudit | None) -> str:
    """Say which classes brightness, border and detail give away; empty: none."""
    if found is None or not found.told:
        return ""
    return (
        f"Light, border or detail tell the label: {_say_told(found)}. That may be honest content; "
        "if it comes from how the pictures were taken, the model may rest on it."
    )


def _say_told(found: ShortcutAudit) -> str:
    told = found.told[0]
    words = "; ".join(tell.words for tell in told.told_by[:2]) or "several facts together"
    others = [shortened(one.name, LONGEST_NAME) for one in found.told[1:]]
    more = f", also {listed(others, 2)}" if others else ""
    return f"{shortened(told.name, LONGEST_NAME)} (AUC {told.auc.value:.2f}; {words}){more}"


# reading and writing -----------------------------------------------------------------------------


def write_pairs(
    folder: Path, rows: Sequence[TwinRow], manifest: Manifest, stores: Mapping[Split, PixelStore]
) -> None:
    """Write the likest pairs as pictures side by side, and index.csv."""
    twins = [row for row in rows if row.twin]
    likest = sorted(twins, key=lambda row: (row.split != "test", -row.deviations, row.path))
    places = {
        split: {row.path: number for number, row in enumerate(manifest.of(split))}
        for split in SPLITS
    }
    index = []
    with replacing_folder(folder) as temporary:
        for number, row in enumerate(likest[:MOST_PAIRS]):
            couple: tuple[tuple[Split, str], ...] = ((row.split, row.path), ("train", row.nearest))
            sides = [
                stores[split].rows([stores[split].row_of(places[split][path])])[0]
                for split, path in couple
            ]
            file = f"{number:03d}.jpg"
            Image.fromarray(np.concatenate(sides, axis=1)).save(temporary / file, quality=90)
            index.append(PairRow(file, row.path, row.split, row.nearest, row.deviations))
        write_rows(temporary / "index.csv", PairRow, index)


def _read_features(paths: Paths, manifest: Manifest) -> dict[Split, Features]:
    folders = {
        "train": paths.train_features,
        "val": paths.val_features,
        "test": paths.test_features,
    }
    features: dict[Split, Features] = {}
    for split in SPLITS:
        array = read_array(folders[split] / "features.npy")
        images = len(manifest.of(split))
        if len(array) != images:
            raise ArtifactError(
                f"{folders[split]}: features of {len(array)} images, the manifest has {images} in "
                f"{split}; run extract again"
            )
        features[split] = array[:, 0]
    return features


def main(argv: Sequence[str] | None = None) -> None:
    """Read, audit, write, warn."""
    paths, params = read_arguments(Paths, "audit", __doc__ or "", argv)
    manifest = read_manifest(paths.manifest)
    twins = find_twins(manifest, _read_features(paths, manifest), seed=params.seed)
    facts = read_rows(paths.facts, FactRow)
    alone, both = find_shortcuts(manifest, facts, seed=params.seed)
    audit = Audit(
        twins=twins.audit,
        file_facts=alone,
        look_facts=both,
        twin_words=say_twin_share(twins.audit),
        file_words=say_files(alone),
        look_words="" if alone and alone.told else say_looks(both),
    )
    stores = open_pixels(manifest, [paths.train, paths.val, paths.test])
    write_pairs(paths.pairs, twins.rows, manifest, stores)
    write_rows(paths.twins, TwinRow, twins.rows)
    write_record(paths.audit, audit)
    for words in filter(None, (audit.twin_words, audit.file_words)):
        log.warning("%s", words)
    share = twins.audit.shares.get("test")
    log.info(
        "%s of the test images have a twin in train; classes that files give away: %s",
        f"{share.value:.1%}" if share else "none",
        alone.told_classes if alone else 0,
    )


if __name__ == "__main__":
    sys.exit(run_stage("audit", main))
