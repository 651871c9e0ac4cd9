"""Which images are measured, which of them are independent, and nested parts of them."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.artifacts.arrays import Floats, Ints
from tasks.artifacts.tables import ManifestRow

TOGETHER = 2  # images of a class that are chosen at once: one alone has nothing to be compared with


def choose_rows(rows: Sequence[ManifestRow], limit: int, *, seed: int) -> NDArray[np.int64]:
    """Choose at most `limit` images so that every class keeps its share.

    The order of the images does not matter: an image's turn is its rank by hash within its class,
    divided by the size of the class. Two images of every class come before a third of any; where
    the limit is below that, so many classes as fit come with two images each, in order of hashes.
    A single image of a class that has more is the last one at most.

    Args:
        rows: Images of one split, in the manifest's order.
        limit: Largest number of images, at least 1.
        seed: The run's seed.

    Returns:
        Numbers of the chosen images, ascending, int64 (min(limit, N),).
    """
    by_class: dict[str, list[tuple[bytes, int]]] = defaultdict(list)
    for number, row in enumerate(rows):
        by_class[row.label].append((_hash(f"{seed}/{row.sha256}/{row.path}"), number))
    turns = [
        (0.0, min(members)[0], digest, number)
        if rank < TOGETHER
        else (rank / len(members), digest, digest, number)
        for members in by_class.values()
        for rank, (digest, number) in enumerate(sorted(members))
    ]
    chosen = sorted(number for *_, number in sorted(turns)[:limit])
    return np.array(chosen, dtype=np.int64)


def number_groups(groups: Sequence[str]) -> NDArray[np.int64]:
    """Number the independent units of a sample: its groups, or its images if all share one group.

    Args:
        groups: The group of every image, (N,).

    Returns:
        int64 (N,); units are numbered from 0 in the order of their first image.
    """
    number: dict[str, int] = {}
    units = np.array([number.setdefault(group, len(number)) for group in groups], dtype=np.int64)
    return units if len(number) > 1 else np.arange(len(groups), dtype=np.int64)


def nested_turns(labels: Ints, groups: Sequence[str], *, seed: int) -> Floats:
    """Say from which share of the images on each one takes part.

    The images whose turn is below a share are about that share of the groups of every class, and at
    least one; a smaller share's images are among those of a larger one. A group comes whole. The
    order of the images does not matter.

    Args:
        labels: Class of each image, int64 (N,); a group counts for its lowest one.
        groups: Group of each image.
        seed: Other seeds give other parts.

    Returns:
        float64 (N,), in [0, 1).
    """
    names, group_of = np.unique(np.array(groups, dtype=object), return_inverse=True)
    class_of = np.full(len(names), np.iinfo(np.int64).max)
    np.minimum.at(class_of, group_of, labels)
    by_hash = sorted(range(len(names)), key=lambda group: _hash(f"{seed}:part:{names[group]}"))
    order = np.array(by_hash)[np.argsort(class_of[by_hash], kind="stable")]
    sizes = np.bincount(class_of)
    rank = np.arange(len(names)) - (np.cumsum(sizes) - sizes)[class_of[order]]
    turns = np.empty(len(names))
    turns[order] = rank / sizes[class_of[order]]
    return np.asarray(turns[group_of])


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
