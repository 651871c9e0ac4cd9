"""Propose groups of images that seem to show one thing, by their features and file names.

Run it after `extract`, look at the pairs in the report, take out what is wrong, and name the file
in `ingest.groups`. Nothing in the pipeline reads it before.
"""

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tasks.artifacts.arrays import Features, Floats, Ints, read_array
from tasks.artifacts.records import SPLITS
from tasks.artifacts.tables import GroupRow, Manifest, read_manifest, write_rows
from tasks.auditing.twins import (
    CROWD,
    DOUBTFUL,
    Whitened,
    choose_threshold,
    find_nearest,
    find_pairs,
    index_groups,
    measure_pairs,
    whiten,
)
from tasks.errors import ArtifactError
from tasks.images.perceptual import join
from tasks.runtime.entry import run_stage

log = logging.getLogger(__name__)

NEAR_NUMBERS = 3  # file numbers that differ by at most so much are of neighboring pictures


def propose_groups(
    paths: Sequence[str], labels: Ints, groups: Sequence[str], features: Features, *, seed: int
) -> dict[str, str]:
    """Propose a group for every image that seems to show the same thing as another one.

    Two images are joined where their features are as alike as those of twins, and from half way
    between doubtful and sure on where their file names differ in one near number only. Groups that
    are known stay together.

    Args:
        paths: Of the images, (N,).
        labels: int64 (N,); images of different labels are not joined.
        groups: What is known to belong together, (N,).
        features: float32 (N, D).
        seed: Of the images that are looked at where there are very many.

    Returns:
        Path -> name of the proposed group; images that stay alone are left out.
    """
    known = index_groups(groups)
    sample = Whitened(whiten(features, seed=seed), labels, known)
    pairs = measure_pairs(sample, seed=seed)
    threshold = choose_threshold(find_nearest(sample, sample, pairs, apart=True, rank=CROWD))
    least = (DOUBTFUL + threshold) / 2
    couples, deviations = find_pairs(sample, pairs, least)
    kept = couples[_belong(paths, couples, deviations, threshold)]
    order = np.argsort(known, kind="stable")
    same = known[order][1:] == known[order][:-1]
    chained = np.stack([order[:-1][same], order[1:][same]], axis=1)
    parts = join(np.concatenate([kept, chained]), len(paths))
    sizes = np.bincount(parts)
    numbers = {
        int(part): number
        for number, part in enumerate(dict.fromkeys(parts[sizes[parts] > 1].tolist()))
    }
    return {
        path: f"proposed {numbers[int(part)] + 1:05d}"
        for path, part in zip(paths, parts, strict=True)
        if int(part) in numbers
    }


def _belong(
    paths: Sequence[str], couples: Ints, deviations: Floats, threshold: float
) -> list[bool]:
    return [
        bool(value >= threshold) or are_neighbors(paths[first], paths[second])
        for (first, second), value in zip(couples.tolist(), deviations, strict=True)
    ]


def are_neighbors(one: str, other: str) -> bool:
    """Whether two paths differ in one number only, and by at most NEAR_NUMBERS."""
    parts = [re.split(r"(\d+)", path) for path in (one, other)]
    if len(parts[0]) != len(parts[1]):
        return False
    differ = [place for place, (a, b) in enumerate(zip(*parts, strict=True)) if a != b]
    if len(differ) != 1 or differ[0] % 2 == 0:
        return False
    first, second = (int(part[differ[0]]) for part in parts)
    return abs(first - second) <= NEAR_NUMBERS


def _read_clean(folder: Path, manifest: Manifest) -> Features:
    """Features of the clean views of all images, split after split, float32 (N, D).

    Raises:
        ArtifactError: They are missing or of other images.
    """
    arrays = [read_array(folder / split / "features.npy")[:, 0] for split in SPLITS]
    if [len(array) for array in arrays] != [len(manifest.of(split)) for split in SPLITS]:
        raise ArtifactError(
            f"{folder}: features of other images than the manifest lists; run `dvc repro extract`"
        )
    features: Features = np.concatenate(arrays)
    return features


def main(argv: Sequence[str] | None = None) -> None:
    """Read manifest and features, write path,group."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.auditing.propose_groups", description=__doc__
    )
    parser.add_argument("--manifest", type=Path, default=Path("data/ingest/manifest.csv"))
    parser.add_argument("--features", type=Path, default=Path("data/extract"))
    parser.add_argument("--out", type=Path, default=Path("data/proposed_groups.csv"))
    options = parser.parse_args(argv)
    manifest = read_manifest(options.manifest)
    rows = [row for split in SPLITS for row in manifest.of(split)]
    found = propose_groups(
        [row.path for row in rows],
        np.concatenate([manifest.labels(split) for split in SPLITS]),
        [row.group for row in rows],
        _read_clean(options.features, manifest),
        seed=0,
    )
    write_rows(
        options.out, GroupRow, (GroupRow(path, group) for path, group in sorted(found.items()))
    )
    sizes = np.unique(list(found.values()), return_counts=True)[1]
    log.info(
        "%s of %s images in %s proposed groups, the largest of %s: %s; check them, then let "
        "ingest.groups name that file",
        *map("{:,}".format, (len(found), len(rows), len(sizes), max(sizes, default=0))),
        options.out,
    )


if __name__ == "__main__":
    sys.exit(run_stage("propose_groups", main, timed=False))
