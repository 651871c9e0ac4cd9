"""Which images belong together: copies, near copies, and what the user says.

Copies have the same bytes; near copies look the same (tasks/images/perceptual.py).
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.artifacts.arrays import Ints
from tasks.artifacts.words import listed, plural
from tasks.images.perceptual import Links, find_links, join
from tasks.images.validate import CheckedImage

# Up to here two hashes are taken as the same picture, so that two labels for it contradict each
# other; beyond, as two pictures of one thing, of which one may show a defect and the other not.
SAME_PICTURE_BITS = 8
KEY_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Grouping:
    """What belongs together among n images.

    Attributes:
        groups: n names; images of one group stay in one split, unless the source gives splits.
        copies: int64 (n,), number of the set of copies and near copies that each image is in.
        exact_duplicates: Images beyond the first of each sha256.
        near_duplicates: Images, one of each sha256, that look like one of another sha256.
        label_conflicts: Paths of each picture that stands under several labels.
        mixed_copies: Paths of each set of copies with several labels that is no such conflict.
    """

    groups: tuple[str, ...]
    copies: Ints
    exact_duplicates: int
    near_duplicates: int
    label_conflicts: list[list[str]]
    mixed_copies: list[list[str]]


def group_images(
    images: Sequence[CheckedImage], named: Sequence[tuple[str, str]], *, near_bits: int
) -> Grouping:
    """Join copies, near copies and the user's groups.

    A group is named after the user's group in it (the first by code point), else after the smallest
    sha256 in it. So a name changes only if a new image joins the group.

    Args:
        images: Sorted by path.
        named: (path, group) as given by the user; an image may stand in several.
        near_bits: Of 256 bits of the perceptual hash, how many near copies may differ in.
    """
    links = _links_between(images, near_bits)
    copies = links.components(len(images), near_bits)
    names = _names_by_image(images, named)
    together = join(np.concatenate([links.pairs, _pairs_of_names(names)]), len(images))
    same = links.components(len(images), min(near_bits, SAME_PICTURE_BITS))
    conflicts = _with_several_labels(images, same)
    first = np.unique([image.sha256 for image in images], return_index=True)[1]
    sizes = np.bincount(copies[first])
    return Grouping(
        groups=_name_groups(images, names, together),
        copies=copies,
        exact_duplicates=len(images) - len(first),
        near_duplicates=int(sizes[sizes > 1].sum()),
        label_conflicts=conflicts,
        mixed_copies=[
            paths
            for paths in _with_several_labels(images, copies)
            if not any(set(conflict) <= set(paths) for conflict in conflicts)
        ],
    )


def _links_between(images: Sequence[CheckedImage], near_bits: int) -> Links:
    """Link equal bytes at 0 bits and like pictures at the bits in which they differ."""
    with_look = [number for number, image in enumerate(images) if image.look is not None]
    near = find_links([image.look for image in images if image.look is not None], near_bits)
    exact = _pairs_of_names([[image.sha256] for image in images])
    return Links(
        np.concatenate([np.array(with_look, dtype=np.int64)[near.pairs], exact]),
        np.concatenate([near.bits, np.zeros(len(exact), np.int64)]),
    )


def _names_by_image(
    images: Sequence[CheckedImage], named: Sequence[tuple[str, str]]
) -> list[list[str]]:
    given = defaultdict[str, list[str]](list)
    for path, group in named:
        given[path].append(group)
    return [
        given[image.listed.path] + ([image.listed.group] if image.listed.group else [])
        for image in images
    ]


def _pairs_of_names(names: Sequence[Sequence[str]]) -> Ints:
    """Pair each thing with the first one of the same name: int64 (m, 2)."""
    first: dict[str, int] = {}
    pairs = [
        (first.setdefault(name, number), number)
        for number, several in enumerate(names)
        for name in several
    ]
    return np.array([pair for pair in pairs if pair[0] != pair[1]], np.int64).reshape(-1, 2)


def _name_groups(
    images: Sequence[CheckedImage], names: Sequence[Sequence[str]], together: Ints
) -> tuple[str, ...]:
    by_user, by_content = dict[int, str](), dict[int, str]()
    for number, image in enumerate(images):
        part = int(together[number])
        key = image.sha256[:KEY_DIGITS]
        by_content[part] = min(by_content.get(part, key), key)
        for name in names[number]:
            by_user[part] = min(by_user.get(part, name), name)
    return tuple(by_user.get(int(part), by_content[int(part)]) for part in together)


def say_near_copies(
    images: Sequence[CheckedImage], grouping: Grouping, *, near_bits: int
) -> dict[str, str]:
    """Say of each class with near copies how many it has and which, for where they leave it small.

    Args:
        images: Sorted by path.
        grouping: Of the same images.
        near_bits: As `group_images` got it.
    """
    alike = defaultdict[str, list[list[int]]](list)  # members of each set by label
    for members in members_of(grouping.copies):
        by_label = defaultdict[str, list[int]](list)
        for number in members:
            by_label[images[number].listed.label].append(int(number))
        for label, own in by_label.items():
            if len(own) > 1:
                alike[label].append(own)
    totals = Counter(image.listed.label for image in images)
    words = {}
    for label, sets in alike.items():
        first = max(sets, key=len)
        pair = listed([images[number].listed.path for number in first[:2]])
        words[label] = (
            f"{sum(map(len, sets)):,} of its {plural(totals[label], 'image')} are copies or near "
            f"copies of one another, such as {pair}; where they are different pictures, lower "
            f"ingest.near_duplicate_bits ({near_bits})"
        )
    return words


def members_of(parts: Ints) -> list[Ints]:
    """Positions of the members of every part with at least two, in the order of their first one."""
    order = np.argsort(parts, kind="stable")
    every = np.split(order, np.flatnonzero(np.diff(parts[order])) + 1)
    return sorted((part for part in every if len(part) > 1), key=lambda part: int(part[0]))


def _with_several_labels(images: Sequence[CheckedImage], parts: Ints) -> list[list[str]]:
    return [
        [images[number].listed.path for number in members]
        for members in members_of(parts)
        if len({images[number].listed.label for number in members}) > 1
    ]
