"""Stage ingest: which images there are, are they sound, what belongs together, what trains.

Writes the manifest, the list of truth of all later stages, with the health of the data beside it.
"""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.artifacts.records import Health, write_record
from tasks.artifacts.tables import (
    FactRow,
    Manifest,
    ManifestRow,
    Rejected,
    write_manifest,
    write_rows,
)
from tasks.artifacts.words import listed, plural
from tasks.errors import DataError
from tasks.images.duplicates import Grouping, group_images, say_near_copies
from tasks.images.health import describe_health
from tasks.images.listing.class_names import say_twins
from tasks.images.listing.corrections import (
    Corrections,
    apply_corrections,
    read_corrections,
    say_corrections,
)
from tasks.images.listing.folders import Listing
from tasks.images.listing.names import check_names
from tasks.images.listing.sources import list_images, resolve_root
from tasks.images.listing.tables import read_groups
from tasks.images.splits import Assignment, assign_splits
from tasks.images.validate import Inspection, check_pin, check_share_of_bad, inspect_images
from tasks.params import IngestParams
from tasks.runtime.entry import StagePaths, Write, read_arguments, run_stage
from tasks.runtime.machine import read_machine

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Paths(StagePaths):
    """What the stage reads and writes."""

    manifest: Write
    health: Write
    quarantine: Write
    origin: Write
    conversion: Write
    facts: Write


def ingest(
    listing: Listing,
    inspection: Inspection,
    named_groups: Sequence[tuple[str, str]],
    corrections: Corrections,
    *,
    params: IngestParams,
    seed: int,
) -> tuple[Manifest, Health]:
    """Group and split the usable images.

    Args:
        listing: What the source holds.
        inspection: What was found when its files were opened.
        named_groups: (path, group) as given by the user.
        corrections: The user's verdicts on labels.
        params: Shares, policies and the tolerance of the perceptual hash.
        seed: Of the splits.

    Returns:
        The manifest, sorted by path, and the health of the data.

    Raises:
        DataError: There are fewer than two classes, or they cannot be split as asked.
    """
    _check_every_class(listing, inspection)
    corrected = apply_corrections(inspection, corrections)
    inspection, images = corrected.inspection, corrected.inspection.images
    _check_two_classes(listing, inspection, corrected.emptied)
    grouping = group_images(images, named_groups, near_bits=params.near_duplicate_bits)
    assignment = assign_splits(
        [image.listed.label for image in images],
        grouping.groups,
        [image.listed.split for image in images],
        params=params,
        seed=seed,
        hints={
            **say_twins(sorted({image.listed.label for image in images})),
            **say_near_copies(images, grouping, near_bits=params.near_duplicate_bits),
        },
    )
    manifest = _manifest(inspection, grouping, assignment)
    said = say_corrections(corrected, [row.path for row in manifest.of("test")])
    health = describe_health(
        manifest, listing, inspection, grouping=grouping, remarks=[*said, *assignment.remarks]
    )
    counts = {"relabeled": len(corrected.relabeled), "dropped": corrected.dropped}
    return manifest, health.model_copy(update=counts)


def _check_every_class(listing: Listing, inspection: Inspection) -> None:
    """Refuse a class none of whose files can be used."""
    usable = {image.listed.label for image in inspection.images}
    lost = sorted({image.label for image in listing.images} - usable)
    if lost:
        raise DataError(
            f"{listing.origin.name}: classes without a usable file: "
            f"{listed(lost)}; see quarantine.csv"
        )


def _check_two_classes(listing: Listing, inspection: Inspection, emptied: Sequence[str]) -> None:
    """Refuse fewer than two classes; `emptied` are those that corrections left without images."""
    usable = {image.listed.label for image in inspection.images}
    if len(usable) < 2:
        raise DataError(
            f"{listing.origin.name}: found {plural(len(usable), 'class', 'classes')} "
            f"({', '.join(usable) or 'none'}); "
            "a classifier needs at least two"
            + (
                ""
                if listing.origin.kind == "csv"
                else ", each a folder of its own below the source"
            )
            + (f"; ingest.corrections left no image of {listed(emptied)}" if emptied else "")
        )


def check_listed(root: Path, listing: Listing, params: IngestParams) -> None:
    """Refuse a csv of which too many files are missing, before any is opened.

    Raises:
        DataError: There are more than the policy about bad files allows.
    """
    if not listing.advice:
        return
    missing = sum(not os.path.lexists(root / image.path) for image in listing.images)
    if params.on_bad == "fail" or missing > params.max_bad_fraction * len(listing.images):
        raise DataError(f"{listing.origin.name}: {listing.advice}")


def _manifest(inspection: Inspection, grouping: Grouping, assignment: Assignment) -> Manifest:
    rows = zip(inspection.images, grouping.groups, assignment.splits, strict=True)
    return Manifest(
        [
            ManifestRow(
                path=image.listed.path,
                label=image.listed.label,
                split=split,
                group=group,
                sha256=image.sha256,
                width=image.width,
                height=image.height,
                mode=image.mode,
            )
            for image, group, split in rows
        ]
    )


def say_health(health: Health) -> str:
    """Say in one line what was found."""
    totals = {name: sum(counts.values()) for name, counts in health.class_counts.items()}
    shown = sorted(totals, key=lambda name: (-totals[name], name))
    names = listed([f"{name} {totals[name]:,}" for name in shown])
    splits = ", ".join(f"{split} {count:,}" for split, count in health.split_counts.items())
    return (
        f"{health.images:,} images of {len(totals)} classes ({names}), "
        f"{health.rejected:,} bad, {health.exact_duplicates:,} copies, "
        f"{health.near_duplicates:,} near copies, "
        f"{health.groups:,} groups; {splits}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Read what params.yaml names, check, group and split, write."""
    paths, params = read_arguments(Paths, "ingest", __doc__ or "", argv)
    source = Path(params.ingest.source)
    if source.is_dir():
        check_names(source)
    listing = list_images(source)
    known = _known_paths(listing)
    named_groups = read_groups(Path(params.ingest.groups), known)
    classes = {image.label for image in listing.images}
    corrections = read_corrections(Path(params.ingest.corrections), known, classes)
    inspection = _inspect(listing, params.ingest, paths.quarantine)
    manifest, health = ingest(
        listing, inspection, named_groups, corrections, params=params.ingest, seed=params.seed
    )
    write_manifest(paths.manifest, manifest)
    write_rows(paths.facts, FactRow, (image.facts for image in inspection.images if image.facts))
    write_record(paths.health, health)
    write_record(paths.origin, listing.origin)
    write_record(paths.conversion, inspection.conversion)
    for warning in health.warnings:
        log.warning("%s", warning)
    if listing.origin.license:
        log.info("license of %s: %s", listing.origin.name, listing.origin.license)
    log.info("%s", say_health(health))


def _known_paths(listing: Listing) -> list[str]:
    return [image.path for image in listing.images] + [item.path for item in listing.rejected]


def _inspect(listing: Listing, params: IngestParams, quarantine: Path) -> Inspection:
    """Open every file; the list of bad ones is written before the policy may stop the run."""
    root = resolve_root(listing.origin)
    check_listed(root, listing, params)
    inspection = inspect_images(root, listing, params, workers=read_machine().decode_workers)
    check_pin(root, listing, inspection)
    write_rows(quarantine, Rejected, inspection.rejected)
    check_share_of_bad(inspection, params, written_to=quarantine)
    return inspection


if __name__ == "__main__":
    sys.exit(run_stage("ingest", main))
