"""Assigns groups to train, val and test by hash, or keeps the splits that the source gives.

The place of a group follows from its name and the seed alone, so that images added later move no
group, except one that they join and those that the guard of stratification moves or lets go. A
group lies in one split.

Stratification is bounded, not exact. By hash, the share of a split among the n groups of a class
is binomial, with standard deviation sqrt(share * (1 - share) / n). The guard keeps val and test
between half and one and a half times their share of the groups of every class, but never empty,
unless groups that hold several classes forbid it: it moves the groups nearest to the border of
their split, mostly those of classes with fewer than 100 groups. Images count by their groups.
Exact quotas would let every new image move old ones between splits.
"""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.artifacts.records import SPLITS, Split
from tasks.artifacts.words import first_of, listed, plural
from tasks.errors import DataError
from tasks.params import IngestParams

SURE, Z = 0.9, 1.96  # an accuracy by which a number of test images is judged; of 95 % intervals
SLACK = 0.5  # of its share: by how much val or test of a class may be smaller or larger


def position(group: str, seed: int) -> float:
    """Place of a group in [0, 1), uniform over group names."""
    key = f"{seed}:split:{group}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") / 2**64


class Cutter:
    """Places groups in intervals of [0, 1).

    Args:
        labels: n class names.
        groups: n group names.
        shares: Interval of positions of each split.
        seed: Other seeds give other places.

    Attributes:
        place: Split of every group.
    """

    def __init__(
        self,
        labels: Sequence[str],
        groups: Sequence[str],
        shares: Mapping[Split, tuple[float, float]],
        seed: int,
    ) -> None:
        self.shares = shares
        self.positions = {group: position(group, seed) for group in sorted(set(groups))}
        self.place: dict[str, Split] = {
            group: self._natural(at) for group, at in self.positions.items()
        }
        self.groups_of = defaultdict[str, set[str]](set)
        self.labels_of = defaultdict[str, set[str]](set)
        for label, group in zip(labels, groups, strict=True):
            self.groups_of[label].add(group)
            self.labels_of[group].add(label)
        self.counts = Counter(
            (label, self.place[group])
            for group, labels_of_group in self.labels_of.items()
            for label in labels_of_group
        )
        self.fixed: set[str] = set()

    def _natural(self, at: float) -> Split:
        return next((split for split, (_, high) in self.shares.items() if at < high), "train")

    def settle(self, params: IngestParams, hints: Mapping[str, str]) -> list[str]:
        """Deal with classes too small for every split, then with the shares of the others.

        Args:
            params: What happens to a class too small for every split.
            hints: Of some classes, what may have made them so.

        Returns:
            What a person should know about it.

        Raises:
            DataError: A class is too small for every split.
        """
        remarks = []
        small = [
            label for label in self._by_size() if len(self.groups_of[label]) < len(self.shares)
        ]
        if small and params.small_class == "fail":
            raise DataError(self._too_small(small, hints))
        for label in small:
            self._train_only(label)
        if small:
            remarks.append(
                f"{_classes_have(small)} too few groups for every split; all of it is in train "
                "(ingest.small_class), so that nothing is measured there."
                + "".join(f" {label}: {hints[label]}." for label in small[:3] if label in hints)
            )
        large = [label for label in self._by_size() if label not in small]
        filled = [label for label in large if self._fill(label)]
        if filled:
            remarks.append(
                "Small classes had no group in some split by hash; the nearest were moved there: "
                f"{listed(filled)}."
            )
        for label in large:
            self._balance(label)
        uneven = [label for label in large if not self._is_balanced(label)]
        if uneven:
            remarks.append(
                "Val or test has less than half or more than one and a half times its share of the "
                f"groups of these classes, because groups hold several: {listed(uneven)}."
            )
        return remarks

    def _by_size(self) -> list[str]:
        return sorted(self.groups_of, key=lambda label: (len(self.groups_of[label]), label))

    def _train_only(self, label: str) -> None:
        for group in self.groups_of[label]:
            self._move(group, "train")
            self.fixed.add(group)

    def _fill(self, label: str) -> bool:
        """Move the nearest group into each split that a class is missing from."""
        holes = [split for split in self.shares if not self.counts[label, split]]
        for split in holes:
            movable = [group for group in self.groups_of[label] if self._may_leave(group)]
            if not movable:
                raise DataError(self._without_room(label, split))
            self._move(self._nearest(movable, split), split)
        return bool(holes)

    def _balance(self, label: str) -> None:
        """Move groups of a class between train and the splits that have too many or too few.

        A group that holds several classes moves only where all of them stay within their bounds.
        """
        for split in self.shares:
            least, most = self._bounds(label, split)
            here = self.counts[label, split]
            source, target = self._ways(split, surplus=here > most)
            for _ in range(max(here - most, least - here)):
                movable = [
                    group
                    for group in self.groups_of[label]
                    if self.place[group] == source and self._may_move(group, target)
                ]
                if movable:
                    self._move(self._nearest(movable, target), target)

    def _is_balanced(self, label: str) -> bool:
        bounds = {split: self._bounds(label, split) for split in self.shares}
        return all(
            least <= self.counts[label, split] <= most for split, (least, most) in bounds.items()
        )

    @staticmethod
    def _ways(split: Split, *, surplus: bool) -> tuple[Split, Split]:
        """Where groups come from and where they go."""
        return (split, "train") if surplus else ("train", split)

    def _bounds(self, label: str, split: Split) -> tuple[int, int]:
        """Least and most groups of a class in a split; train takes what the others leave."""
        groups = len(self.groups_of[label])
        if split == "train":
            return 1, groups
        low, high = self.shares[split]
        share = (high - low) * groups
        least = max(1, math.ceil((1 - SLACK) * share))
        return least, max(least, math.floor((1 + SLACK) * share))

    def _nearest(self, groups: Sequence[str], split: Split) -> str:
        """Give the group whose position is nearest to a split's interval."""
        low, high = self.shares[split]
        return min(
            groups,
            key=lambda group: (
                max(low - self.positions[group], self.positions[group] - high),
                group,
            ),
        )

    def _move(self, group: str, split: Split) -> None:
        for label in self.labels_of[group]:
            self.counts[label, self.place[group]] -= 1
            self.counts[label, split] += 1
        self.place[group] = split

    def _may_leave(self, group: str) -> bool:
        """Tell whether every class of a group has another one where it lies now."""
        here = self.place[group]
        return group not in self.fixed and all(
            self.counts[label, here] > 1 for label in self.labels_of[group]
        )

    def _may_move(self, group: str, target: Split) -> bool:
        """Tell whether every class of a group stays within its bounds when the group moves."""
        here = self.place[group]
        return group not in self.fixed and all(
            self.counts[label, here] > self._bounds(label, here)[0]
            and self.counts[label, target] < self._bounds(label, target)[1]
            for label in self.labels_of[group]
        )

    def _too_small(self, labels: Sequence[str], hints: Mapping[str, str]) -> str:
        lines = [
            f"{label}: {plural(len(self.groups_of[label]), 'group')}"
            + (f"; {hints[label]}" if label in hints else "")
            for label in labels
        ]
        return (
            f"classes with too few groups to stand in {', '.join(sorted(self.shares))}; add images "
            "that are no copies, remove the class, or set ingest.small_class to train_only:"
            + first_of(lines)
        )

    def _without_room(self, label: str, split: Split) -> str:
        return (
            f"class {label} has no group that can stand in {split}: each of its "
            f"{len(self.groups_of[label])} stays where it is for the sake of other classes that "
            "it holds; add images of it, part its groups, or give the splits yourself (folders "
            "train, val and test, or the column split of a csv)"
        )


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
    hints: Mapping[str, str] | None = None,
) -> Assignment:
    """Give every image a split.

    Args:
        labels: n class names.
        groups: n group names.
        given: n splits of the source; all of them None where it gives none. Given splits are kept;
            val or test is cut from train where it is missing.
        params: Shares of val and test, and what happens to a class too small for every split.
        seed: Other seeds give other splits.
        hints: Of some classes, what may have gone wrong with them; for the messages.

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
        remarks += cutter.settle(params, hints or {})
        for row in rows:
            splits[row] = cutter.place[groups[row]]
    if present:
        remarks += [_cut_remark(split) for split in wanted if split != "train"]
        if present == {"train", "val"}:
            remarks.append(_test_remark(splits.count("test")))
        remarks += _given_remarks(labels, splits, hints or {})
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


def _test_remark(images: int) -> str:
    """Say what a test split that was cut is worth, and what to do where val could be test."""
    points = 100 * Z * math.sqrt(SURE * (1 - SURE) / images)
    return (
        f"That test split holds {images:,} images, which train lacks now: an accuracy of "
        f"{SURE:.0%} on them is known to about {points:.0f} points either way. If the given val "
        "has never chosen anything, call it test (the folder, or the column split of a csv): then "
        "it tests, and val is cut from train."
    )


def _given_remarks(
    labels: Sequence[str], splits: Sequence[Split], hints: Mapping[str, str]
) -> list[str]:
    """Say which classes are missing from given splits; one that is not in train is an error."""
    classes = sorted(set(labels))
    present = set(zip(labels, splits, strict=True))
    untrained = [label for label in classes if (label, "train") not in present]
    if untrained:
        raise DataError(
            f"classes that stand in val or test but not in train: {listed(untrained)}; add "
            "training images or remove them"
            + "".join(f". {label}: {hints[label]}" for label in untrained[:3] if label in hints)
        )
    missing = {
        split: [label for label in classes if (label, split) not in present] for split in SPLITS
    }
    return [
        f"{_classes_have(labels)} no image in the given {split} split."
        for split, labels in missing.items()
        if labels
    ]


def _classes_have(labels: Sequence[str]) -> str:
    if len(labels) == 1:
        return f"Class {labels[0]} has"
    return f"{len(labels):,} classes ({listed(labels, where='health.json')}) have"


def _check_not_empty(splits: Sequence[Split]) -> None:
    empty = [split for split in SPLITS if split not in splits]
    if empty:
        raise DataError(
            f"no image is left for {' and '.join(empty)}; add images, so that classes have at "
            "least three groups each"
        )
