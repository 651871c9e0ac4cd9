"""Nested parts of the training images: what a smaller set would have been, class by class."""

import hashlib
from collections.abc import Sequence

import numpy as np

from tasks.artifacts.arrays import Floats, Ints


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
    order = sorted(range(len(names)), key=lambda group: _hash(str(names[group]), seed))
    turns = np.empty(len(names))
    for label in np.unique(class_of):
        members = [group for group in order if class_of[group] == label]
        turns[members] = np.arange(len(members)) / len(members)
    return np.asarray(turns[group_of])


def _hash(group: str, seed: int) -> bytes:
    text = f"{seed}:part:{group}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
