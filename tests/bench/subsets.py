"""Which images of a pool a user has: a test set fixed by the seed, few or many others to learn."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tasks.artifacts.records import Split
from tasks.artifacts.tables import ManifestRow
from tasks.images.splits import assign_splits
from tasks.params import IngestParams

TEST, VAL = 0.25, 0.2  # shares of the groups of every class
LEAST_VAL = 5  # images a class that val has, as far as there are so many
VAL_SHARE = 1 / 3  # of the training images of a class that its val has at most
MOST_TRAIN = 3000  # images, where all are taken
ALL = "all"


@dataclass(frozen=True)
class Subset:
    """Images of a pool by number, ascending, and the split of each."""

    images: list[int]
    splits: list[Split]

    def rows(self, pool: Sequence[ManifestRow]) -> list[ManifestRow]:
        """Manifest rows of the subset."""
        pairs = zip(self.images, self.splits, strict=True)
        return [replace(pool[image], split=split) for image, split in pairs]

    def of(self, split: Split) -> list[int]:
        """Numbers of the images of a split."""
        pairs = zip(self.images, self.splits, strict=True)
        return [image for image, one in pairs if one == split]


def choose_subset(
    rows: Sequence[ManifestRow],
    level: str,
    params: IngestParams,
    *,
    seed: int,
    val_share: float = VAL_SHARE,
) -> Subset | None:
    """Choose the images of a user who has so many a class; None where the classes are smaller.

    The test images follow from the seed alone. A level's training images are among those of every
    higher level.

    Args:
        rows: All images; the splits that the source gave do not count.
        level: Training images a class, or `all`.
        params: Of ingest.
        seed: Of split and choice.
        val_share: Val images a class, as a share of the training images, but at least five.
    """
    own = params.model_copy(
        update={"test_fraction": TEST, "val_fraction": VAL, "small_class": "train_only"}
    )
    labels, groups = [row.label for row in rows], [row.group for row in rows]
    splits = assign_splits(labels, groups, [None] * len(rows), params=own, seed=seed).splits
    ranked: dict[tuple[Split, str], list[int]] = defaultdict(list)
    for image in sorted(range(len(rows)), key=lambda image: _turn(rows[image], seed)):
        ranked[splits[image], labels[image]].append(image)
    classes = sorted(set(labels))
    largest = max(len(ranked["train", label]) for label in classes)
    images = MOST_TRAIN // len(classes) if level == ALL else int(level)
    if level != ALL and largest < images:
        return None
    chosen: dict[int, Split] = {}
    for label in classes:
        train = ranked["train", label][:images]
        most = max(LEAST_VAL, round(val_share * len(train)))
        chosen |= dict.fromkeys(train, "train")
        chosen |= dict.fromkeys(ranked["val", label][:most], "val")
        chosen |= dict.fromkeys(ranked["test", label], "test")
    numbers = sorted(chosen)
    return Subset(numbers, [chosen[number] for number in numbers])


def _turn(row: ManifestRow, seed: int) -> bytes:
    """Place of an image in its class, whatever the other images."""
    return hashlib.sha256(f"{seed}/subset/{row.sha256}/{row.path}".encode()).digest()
