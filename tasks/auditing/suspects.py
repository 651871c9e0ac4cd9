"""Labels that are probably wrong, by confident learning, and the pictures of the first of them.

Source: Northcutt et al. 2021, Confident learning: estimating uncertainty in dataset labels,
1911.00068, equations 1 and 2: an image counts for the class of highest probability among those
that reach their threshold, which is the mean probability of that class among images that carry it.
An image that counts for another class than its label is a suspect, unless the label is the answer
of the model all the same. Suspects are ranked by their normalized margin (section 3.2).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.artifacts.arrays import Floats, Ints, Pixels
from tasks.artifacts.pixels import PixelStore
from tasks.artifacts.records import Split
from tasks.artifacts.tables import Manifest, SuspectRow

SHOWN = 24  # suspects of a table that are shown as pictures
TOLERANCE = 1e-6  # below its threshold a probability still reaches it, as rounding has it

Answers = Iterable[tuple[Ints, Floats]]  # numbers of images (n,), log probabilities (n, C)


@dataclass(frozen=True)
class Suspects:
    """What the probabilities of a model that did not learn the labels say about them.

    Attributes:
        images: Numbers of the suspects, int64 (S,), the most suspicious first.
        likely: The class that each of them counts for, int64 (S,).
        likely_probability: Its probability (S,).
        label_probability: That of the label (S,).
        margins: Of every image, float64 (N,): probability of the label minus the largest other one,
            in [-1, 1]; NaN where the model gave no answer.
    """

    images: Ints
    likely: Ints
    likely_probability: Floats
    label_probability: Floats
    margins: Floats


def find_suspects(labels: Ints, answers: Callable[[], Answers], *, classes: int) -> Suspects:
    """Find labels that are probably wrong.

    Args:
        labels: Class of each image, int64 (N,).
        answers: Gives the out-of-sample log probabilities, in blocks, each time it is called.
        classes: Number of classes, C.
    """
    thresholds = _thresholds(labels, answers(), classes)
    likely = np.full(len(labels), -1, dtype=np.int64)
    margins, likely_p, label_p = np.full((3, len(labels)), np.nan)
    for images, log_p in answers():
        p, own, here = np.exp(log_p), labels[images], np.arange(len(images))
        confident = np.where(p >= thresholds - TOLERANCE, p, -1.0)
        counts_for = np.where(confident.max(axis=1) >= 0, confident.argmax(axis=1), own)
        suspect = (counts_for != own) & (p.argmax(axis=1) != own)
        likely[images[suspect]] = counts_for[suspect]
        likely_p[images], label_p[images] = p[here, counts_for], p[here, own]
        p[here, own] = -1.0
        margins[images] = label_p[images] - p.max(axis=1)
    suspects = np.flatnonzero(likely >= 0)
    suspects = suspects[np.argsort(margins[suspects], kind="stable")]
    return Suspects(suspects, likely[suspects], likely_p[suspects], label_p[suspects], margins)


def _thresholds(labels: Ints, answers: Answers, classes: int) -> Floats:
    """Mean probability of each class among the images that carry it, (C,); infinite without any."""
    sums, counts = np.zeros(classes), np.zeros(classes)
    for images, log_p in answers:
        own = labels[images]
        sums += np.bincount(own, np.exp(log_p[np.arange(len(images)), own]), classes)
        counts += np.bincount(own, minlength=classes)
    means: Floats = np.divide(sums, counts, out=np.full(classes, np.inf), where=counts > 0)
    return means


def list_suspects(
    manifest: Manifest, splits: Sequence[Split], answers: Callable[[], Answers]
) -> list[SuspectRow]:
    """List the images of some splits whose label is probably wrong, most suspicious first.

    Args:
        manifest: All images.
        splits: Images are numbered one split after the other.
        answers: As `find_suspects` asks for.
    """
    rows = [row for split in splits for row in manifest.of(split)]
    labels = np.concatenate([manifest.labels(split) for split in splits])
    names = manifest.class_names
    found = find_suspects(labels, answers, classes=len(names))
    return [
        SuspectRow(
            path=rows[image].path,
            split=rows[image].split,
            label=rows[image].label,
            likely=names[likely],
            label_probability=float(label_p),
            likely_probability=float(likely_p),
        )
        for image, likely, likely_p, label_p in zip(
            found.images,
            found.likely,
            found.likely_probability,
            found.label_probability,
            strict=True,
        )
    ]


def picture_suspects(
    rows: Sequence[SuspectRow], manifest: Manifest, stores: Mapping[Split, PixelStore]
) -> Pixels:
    """Read the clean views of the first suspects, (n, R, R, 3); n is at most `SHOWN`."""
    number = {
        (row.split, row.path): image
        for split in stores
        for image, row in enumerate(manifest.of(split))
    }
    pictures = []
    for row in rows[:SHOWN]:
        store = stores[row.split]
        pictures.append(store.rows([store.row_of(number[row.split, row.path])])[0])
    side = next(iter(stores.values())).info.image_px
    return np.stack(pictures) if pictures else np.empty((0, side, side, 3), np.uint8)
