"""Assigns groups to train, val and test by hash, or keeps the splits that the source gives.

Promised when a split is cut: a group lies in one split, and images added later move no group but
those named in `tasks.images.cutting`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.errors import DataError
from tasks.images.cutting import Cutter
from tasks.params import IngestParams
from tasks.records import SPLITS, Split

CUT_ORDER: tuple[Split, ...] = ("test", "val", "train")  # from position 0 on


@dataclass(frozen=True, slots=True)
class Assignment:
    """Split of every image, and what a person should know about it."""

    splits: tuple[Split, ...]
    remarks: tuple[str, ...]


def assign_splits(
    labels: Sequence[str],
    groups: Sequence[str],
    given: Sequence[Split | None],
    *,
    params: IngestParams,
    seed: int,
) -> Assignment:
    """Give every image a split.

    Args:
        labels: n class names.
        groups: n group names.
        given: n splits of the source; all of them None where it gives none. Given splits are kept;
            val or test is cut from train where it is missing.
        params: Shares of val and test, and what happens to a class too small for every split.
        seed: Other seeds give other splits.

    Raises:
        DataError: A class is too small for every split, or a given class is not in train.
    """
    present = {split for split in given if split is not None}
    wanted = [split for split in CUT_ORDER if split not in present or split == "train"]
    shares = _shares(params, wanted)
    splits = [split or "train" for split in given]
    remarks = []
    if len(wanted) > 1:
        rows = [number for number, split in enumerate(splits) if split == "train"]
        cutter = Cutter([labels[n] for n in rows], [groups[n] for n in rows], shares, seed)
        remarks += cutter.settle(params)
        for row in rows:
            splits[row] = cutter.place[groups[row]]
    if present:
        remarks += [_cut_remark(split) for split in wanted if split != "train"]
        remarks += _given_remarks(labels, splits)
    _check_not_empty(splits)
    return Assignment(tuple(splits), tuple(remarks))


def _shares(params: IngestParams, wanted: Sequence[Split]) -> dict[Split, tuple[float, float]]:
    """Interval of positions of each split that is cut."""
    fractions = {"test": params.test_fraction, "val": params.val_fraction, "train": 1.0}
    shares, low = dict[Split, tuple[float, float]](), 0.0
    for split in wanted:
        high = min(low + fractions[split], 1.0)
        shares[split] = (low, high)
        low = high
    return shares


def _cut_remark(split: Split) -> str:
    share = f"ingest.{split}_fraction"
    return f"The source gives no {split} split; it was cut from train by hash ({share})."


def _given_remarks(labels: Sequence[str], splits: Sequence[Split]) -> list[str]:
    """Say which classes are missing from given splits; one that is not in train is an error."""
    classes = sorted(set(labels))
    present = set(zip(labels, splits, strict=True))
    untrained = [label for label in classes if (label, "train") not in present]
    if untrained:
        raise DataError(
            f"classes that stand in val or test but not in train: {', '.join(untrained)}; add "
            "training images or remove them"
        )
    missing = [
        (label, split) for label in classes for split in SPLITS if (label, split) not in present
    ]
    return [f"Class {label} has no image in the given {split} split." for label, split in missing]


def _check_not_empty(splits: Sequence[Split]) -> None:
    empty = [split for split in SPLITS if split not in splits]
    if empty:
        raise DataError(
            f"no image is left for {' and '.join(empty)}; add images, so that classes have at "
            "least three groups each"
        )
