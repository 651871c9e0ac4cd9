"""What ingest found out about the data, in numbers and in sentences for a person."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from tasks.artifacts.records import SPLITS, Health, Split
from tasks.artifacts.tables import Manifest
from tasks.artifacts.words import listed, plural, printable, shortened
from tasks.images.duplicates import Grouping, members_of
from tasks.images.facts import count_traits, tell_traits
from tasks.images.listing.class_names import about_names
from tasks.images.listing.folders import Listing
from tasks.images.validate import Inspection, kinds_of_reasons

IMBALANCE_TO_MENTION = 10.0
LARGE_SET_OF_COPIES, LARGE_SHARE_OF_COPIES = 20, 0.01
FEW_TRAINING_IMAGES = 10
SPOILED = 0.5  # share of a split's images in train from which on it measures nothing
EXAMPLES, KINDS = 3, 10  # of names in a sentence, of remarks about images
LONGEST = 200  # characters of a name or remark


def describe_health(
    manifest: Manifest,
    listing: Listing,
    inspection: Inspection,
    *,
    grouping: Grouping,
    remarks: Sequence[str],
) -> Health:
    """Sum up the usable images, what was left out and what a person should look at.

    Args:
        manifest: The usable images, in the order of `inspection.images`.
        listing: What the source holds.
        inspection: What was found when the files were opened.
        grouping: Copies and groups.
        remarks: Sentences about the splits.
    """
    counts = _counts(manifest)
    leaks = _leaks_between_given_splits(inspection, grouping)
    looks = count_traits((image.listed.label, image.traits) for image in inspection.images)
    totals = {name: sum(by_split.values()) for name, by_split in counts.items()}
    return Health(
        source=listing.origin.name,
        images=len(manifest.rows),
        rejected=len(inspection.rejected),
        rejected_reasons=kinds_of_reasons(inspection.rejected),
        rejected_by_class=dict(inspection.rejected_by_class),
        ignored_files=sum(listing.ignored.values()),
        classes=manifest.class_names,
        class_counts=counts,
        split_counts={split: len(manifest.of(split)) for split in SPLITS},
        groups=len(set(grouping.groups)),
        exact_duplicates=grouping.exact_duplicates,
        near_duplicates=grouping.near_duplicates,
        label_conflicts=_printable(grouping.label_conflicts),
        split_leaks=_printable(leaks),
        mixed_copies=_printable(grouping.mixed_copies),
        imbalance=_imbalance(counts),
        modes=dict(sorted(Counter(row.mode for row in manifest.rows).items())),
        width=_extent([row.width for row in manifest.rows]),
        height=_extent([row.height for row in manifest.rows]),
        looks=looks,
        warnings=[
            *_about_leaks(leaks, inspection, grouping),
            *_about_labels(grouping),
            *listing.notes,
            *([listing.origin.caution] if listing.origin.caution else []),
            *remarks,
            *_about_files(listing, inspection),
            *inspection.conversion.notes,
            *tell_traits(looks, totals),
            *_about_copies(grouping),
            *_about_classes(counts),
        ],
    )


def _counts(manifest: Manifest) -> dict[str, dict[str, int]]:
    counts = Counter((row.label, row.split) for row in manifest.rows)
    return {name: {split: counts[name, split] for split in SPLITS} for name in manifest.class_names}


def _imbalance(counts: dict[str, dict[str, int]]) -> float:
    totals = [sum(by_split.values()) for by_split in counts.values()]
    return max(totals) / min(totals)


def _extent(sides: Sequence[int]) -> list[int]:
    return [min(sides), int(np.median(sides)), max(sides)]


def _printable(sets: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[printable(path) for path in paths] for paths in sets]


def _leaks_between_given_splits(inspection: Inspection, grouping: Grouping) -> list[list[str]]:
    """Paths of each set of copies that the source puts into several splits."""
    return [
        [inspection.images[number].listed.path for number in members]
        for members in members_of(grouping.copies)
        if len(_given_splits(inspection, [int(number) for number in members])) > 1
    ]


def _given_splits(inspection: Inspection, numbers: Sequence[int]) -> set[Split]:
    splits = (inspection.images[number].listed.split for number in numbers)
    return {split for split in splits if split is not None}


def _about_leaks(
    leaks: Sequence[Sequence[str]], inspection: Inspection, grouping: Grouping
) -> Iterator[str]:
    if leaks:
        pictures = sum(map(len, leaks))
        yield (
            f"LEAK: {plural(len(leaks), 'picture')} {_stand(leaks)} in several of the given splits "
            f"({pictures:,} files, such as {listed(leaks[0][:2])}); nothing was moved. "
            f"{_weight(inspection, grouping)}"
            "Remove them, or take the splits away and let them be cut."
        )
    by_group = defaultdict[str, list[int]](list)
    for number, group in enumerate(grouping.groups):
        by_group[group].append(number)
    crossing = [
        group for group, numbers in by_group.items() if len(_given_splits(inspection, numbers)) > 1
    ]
    if len(crossing) > len(leaks):
        yield (
            f"LEAK: {plural(len(crossing), 'group')} {_stand(crossing)} in several of the given "
            f"splits, such as {shortened(crossing[0], LONGEST)}; nothing was moved."
        )


def _stand(things: Sequence[object]) -> str:
    return "stands" if len(things) == 1 else "stand"


def _files_were(count: int) -> str:
    return f"{plural(count, 'file')} {'was' if count == 1 else 'were'}"


def _weight(inspection: Inspection, grouping: Grouping) -> str:
    """Say what copies that stand in several given splits make of the figures on test and val."""
    trained = {
        int(part)
        for part, image in zip(grouping.copies, inspection.images, strict=True)
        if image.listed.split == "train"
    }
    words = []
    for split, spoiled in (("test", "the test figure"), ("val", "what val chooses")):
        inside = [
            int(part) in trained
            for part, image in zip(grouping.copies, inspection.images, strict=True)
            if image.listed.split == split
        ]
        if any(inside):
            worth = "is worth nothing" if sum(inside) >= SPOILED * len(inside) else "flatters"
            words.append(
                f"{sum(inside):,} of your {len(inside):,} {split} images "
                f"{'stands' if sum(inside) == 1 else 'stand'} in train too: "
                f"{spoiled} {worth}. "
            )
    return "".join(words)


def _about_labels(grouping: Grouping) -> Iterator[str]:
    if grouping.label_conflicts:
        yield (
            f"{plural(len(grouping.label_conflicts), 'picture')} "
            f"{_stand(grouping.label_conflicts)} under several labels, such as "
            f"{listed(grouping.label_conflicts[0][:2])}; they were kept, decide which label is "
            "right."
        )
    if grouping.mixed_copies:
        yield (
            f"{plural(len(grouping.mixed_copies), 'set')} of pictures that look alike "
            f"{'has' if len(grouping.mixed_copies) == 1 else 'have'} several labels, such as "
            f"{listed(grouping.mixed_copies[0][:2])}; see if the picture shows why."
        )


def _about_files(listing: Listing, inspection: Inspection) -> Iterator[str]:
    reasons = kinds_of_reasons(inspection.rejected)
    if reasons:
        kinds = [f"{count} {reason}" for reason, count in reasons.items()]
        yield f"{_files_were(len(inspection.rejected))} left out: {listed(kinds)}."
    if listing.advice:
        yield f"Listed files are missing: {listing.advice}."
    links = [
        item.path for item in inspection.rejected if item.reason.startswith("link to a folder")
    ]
    if links:
        yield f"Folders behind links were not read: {listed(links, EXAMPLES)}."
    if listing.linked:
        yield (
            f"Folders that are links: {listed(listing.linked, EXAMPLES)}. DVC "
            "does not see when files behind them change; run `dvc repro -f ingest` then."
        )
    if listing.ignored:
        kinds_of_ignored = sorted(listing.ignored.items(), key=lambda item: (-item[1], item[0]))
        yield (
            f"{_files_were(sum(listing.ignored.values()))} ignored by name: "
            f"{listed([f'{count:,} {kind}' for kind, count in kinds_of_ignored], KINDS)}."
        )
    yield from _about_remarks(inspection)


def _about_remarks(inspection: Inspection) -> Iterator[str]:
    examples = defaultdict[str, list[tuple[str, str]]](list)
    for image in inspection.images:
        for warning in image.warnings:
            examples[re.sub(r"[\d.]+", "#", warning)].append((warning, image.listed.path))
    kinds = list(examples.values())
    for cases in kinds[:KINDS]:
        remark, path = (shortened(words, LONGEST) for words in cases[0])
        yield f"{plural(len(cases), 'image')}, such as {path}: {remark}."
    if len(kinds) > KINDS:
        yield f"{sum(map(len, kinds[KINDS:])):,} more images gave remarks of other kinds."


def _about_copies(grouping: Grouping) -> Iterator[str]:
    largest = max(map(len, members_of(grouping.copies)), default=0)
    if largest > max(LARGE_SET_OF_COPIES, LARGE_SHARE_OF_COPIES * len(grouping.groups)):
        yield (
            f"{largest} images look alike and share a group; if they are different, lower "
            "ingest.near_duplicate_bits."
        )


def _about_classes(counts: dict[str, dict[str, int]]) -> Iterator[str]:
    totals = {name: sum(by_split.values()) for name, by_split in counts.items()}
    ratio = _imbalance(counts)
    if ratio >= IMBALANCE_TO_MENTION:
        largest, smallest = max(totals, key=totals.__getitem__), min(totals, key=totals.__getitem__)
        yield (
            f"The classes are imbalanced {ratio:,.0f} to 1 ({largest} {totals[largest]:,}, "
            f"{smallest} {totals[smallest]:,}); read balanced accuracy and macro-F1 first."
        )
    few = [name for name, by_split in counts.items() if by_split["train"] < FEW_TRAINING_IMAGES]
    if few:
        names = listed(few, where="health.json")
        yield f"Fewer than {FEW_TRAINING_IMAGES} training images: {names}."
    yield from about_names(list(counts))
