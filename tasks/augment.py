"""Decodes every image once, renders augmented views of the training images and packs all pixels.

Reads the manifest and the images it lists; writes a pixel store for each split, a contact sheet and
the policy. Only training images get augmented views.
"""

import hashlib
import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tasks.artifacts.arrays import Pixels
from tasks.artifacts.files import replacing_folder, write_bytes
from tasks.artifacts.pixels import PixelStore, StoreWriter, bytes_of, store_info
from tasks.artifacts.records import (
    SPLITS,
    AugmentPolicy,
    Conversion,
    ImageSource,
    Split,
    StoreInfo,
    read_record,
    write_record,
)
from tasks.artifacts.tables import Manifest, ManifestRow, read_manifest
from tasks.artifacts.words import first_of
from tasks.errors import ArtifactError, DataError, ImageError
from tasks.images.augmentation import draw_view, ranges_of, render_view
from tasks.images.contact_sheet import choose_strips, draw_contact_sheet
from tasks.images.decoding.decode import clean_view, decode_image, draft_side, frame_image
from tasks.images.listing.sources import resolve_root
from tasks.params import AugmentParams
from tasks.runtime.entry import Read, StagePaths, Write, read_arguments, run_stage
from tasks.runtime.machine import read_machine
from tasks.runtime.parallel import map_in_order
from tasks.runtime.progress import progress

log = logging.getLogger(__name__)

GIGABYTE = 1e9


class ChangedError(DataError):
    """An image is no longer the file that the manifest lists."""


@dataclass(frozen=True)
class Paths(StagePaths):
    """What the stage reads and writes."""

    manifest: Read
    origin: Read
    conversion: Read
    train: Write
    val: Write
    test: Write
    sheet: Write
    policy: Write


def render_rows(
    content: bytes,
    row: ManifestRow,
    params: AugmentParams,
    conversion: Conversion,
    *,
    seed: int,
    views: int,
) -> Pixels:
    """Decode an image file once and render its clean view, then `views` augmented ones.

    Returns:
        uint8 (1 + views, image_px, image_px, 3).

    Raises:
        ImageError: The file cannot be decoded.
    """
    image_px, ranges = params.image_px, ranges_of(params)
    decoded = decode_image(
        content,
        max_pixels=row.width * row.height,
        draft_px=draft_side(image_px),
        conversion=conversion,
    )
    frame = frame_image(decoded.image, image_px=image_px, fit=params.fit)
    drawn = [
        draw_view(ranges, seed=seed, sha256=row.sha256, view=view) for view in range(1, views + 1)
    ]
    augmented = [render_view(frame, view, image_px) for view in drawn]
    return np.stack([clean_view(frame, image_px), *augmented])


def render_file(
    row: ManifestRow,
    *,
    root: Path,
    params: AugmentParams,
    conversion: Conversion,
    seed: int,
    views: int,
) -> Pixels:
    """Read the file of a manifest row below `root` and render it, see `render_rows`.

    Raises:
        ChangedError: The file is gone, cannot be read or is not the one that ingest saw.
        DataError: It cannot be decoded although ingest could.
    """
    content = _read_verified(row, root)
    try:
        return render_rows(content, row, params, conversion, seed=seed, views=views)
    except ImageError as err:
        raise DataError(
            f"{row.path!r}: {err}, which ingest did not find; run ingest again"
        ) from err


def pack(
    rows: Sequence[ManifestRow],
    folder: Path,
    render: Callable[[ManifestRow], Pixels],
    *,
    info: StoreInfo,
    workers: int,
) -> None:
    """Render rows in several threads and write them in their order as the store `folder`."""
    with (
        replacing_folder(folder) as temporary,
        StoreWriter(temporary, info) as writer,
        progress(f"pack {folder.name}", len(rows)) as meter,
    ):
        for pixels in map_in_order(render, rows, workers=workers):
            writer.append(pixels)
            meter.advance()


def find_changed_files(
    rows: Sequence[ManifestRow], root: Path, *, workers: int
) -> list[tuple[ManifestRow, str]]:
    """Compare every file with the manifest: rows whose file changed, with what is wrong."""

    def check(row: ManifestRow) -> str | None:
        try:
            _read_verified(row, root)
        except ChangedError as err:
            return str(err)
        return None

    found = zip(rows, map_in_order(check, rows, workers=workers), strict=True)
    return [(row, change) for row, change in found if change is not None]


def describe_policy(manifest: Manifest, params: AugmentParams) -> AugmentPolicy:
    """Say how the packed pixels are made, how many there are and what is remarkable about them."""
    images = {split: len(manifest.of(split)) for split in SPLITS}
    return AugmentPolicy(
        policy=params.policy,
        ranges=ranges_of(params).model_dump(),
        views=params.views,
        image_px=params.image_px,
        fit=params.fit,
        images=dict(images),
        bytes={
            split: bytes_of(images[split], _views_of(split, params), params.image_px)
            for split in SPLITS
        },
        notes=_notes(manifest.rows, params),
    )


def _read_verified(row: ManifestRow, root: Path) -> bytes:
    try:
        content = (root / row.path).read_bytes()
    except OSError as err:
        raise ChangedError(err.strerror or str(err)) from err
    if hashlib.sha256(content).hexdigest() != row.sha256:
        raise ChangedError("its content is another one (sha256)")
    return content


def _views_of(split: Split, params: AugmentParams) -> int:
    return params.views if split == "train" else 0


def _notes(rows: Sequence[ManifestRow], params: AugmentParams) -> list[str]:
    shown = max if params.fit == "pad" else min  # the side that fills the square
    enlarged = sum(shown(row.width, row.height) < params.image_px for row in rows)
    notes = []
    if enlarged:
        notes.append(
            f"{enlarged:,} of {len(rows):,} images have fewer pixels than {params.image_px} a side "
            "and were enlarged"
        )
    longest = max(
        (max(row.width, row.height) / min(row.width, row.height) for row in rows), default=1
    )
    if params.fit != "pad" and longest > 2:
        what = "stretched" if params.fit == "squash" else "cropped"
        notes.append(f"The longest image is {longest:.1f} times as long as wide and was {what}.")
    return notes


def _summary(policy: AugmentPolicy) -> str:
    images = policy.images
    views = f" and {policy.views} {policy.policy} views" if policy.views else ""
    return (
        f"{images['train']:,} training images as 1 clean{views}, "
        f"{images['val']:,} val and {images['test']:,} test images as 1: "
        f"{sum(policy.bytes.values()) / GIGABYTE:.2f} GB at {policy.image_px} px"
        + "".join(f"; {note}" for note in policy.notes)
    )


def _check_space(needed: int, folder: Path) -> None:
    existing = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ArtifactError(
            f"{folder}: the packed pixels need {needed / GIGABYTE:.2f} GB and "
            f"{free / GIGABYTE:.2f} GB are free; lower augment.views or augment.image_px, "
            "or make room"
        )


def _changed_error(rows: Sequence[ManifestRow], root: Path, *, workers: int) -> DataError:
    changes = find_changed_files(rows, root, workers=workers)
    lines = [f"{row.path!r}: {change}" for row, change in changes]
    return DataError(
        f"{len(changes):,} of {len(rows):,} images below {root} changed since "
        f"ingest:{first_of(lines)}\nrun ingest again"
    )


def main(argv: Sequence[str] | None) -> None:
    """Pack the images of every split."""
    paths, params = read_arguments(
        Paths, "augment", "Decode every image once, render augmented views, pack pixels.", argv
    )
    workers = read_machine().decode_workers
    manifest = read_manifest(paths.manifest)
    root = resolve_root(read_record(paths.origin, ImageSource))
    conversion = read_record(paths.conversion, Conversion)
    policy = describe_policy(manifest, params.augment)
    _check_space(sum(policy.bytes.values()), paths.train)
    folders: dict[Split, Path] = {"train": paths.train, "val": paths.val, "test": paths.test}
    try:
        for split, folder in folders.items():
            views = _views_of(split, params.augment)
            render = partial(
                render_file,
                root=root,
                params=params.augment,
                conversion=conversion,
                seed=params.seed,
                views=views,
            )
            rows = manifest.of(split)
            info = store_info(len(rows), views=views, image_px=params.augment.image_px)
            pack(rows, folder, render, info=info, workers=workers)
    except ChangedError as err:
        raise _changed_error(manifest.rows, root, workers=workers) from err
    strips = choose_strips(manifest, PixelStore.open(paths.train), seed=params.seed)
    write_bytes(paths.sheet, draw_contact_sheet(strips))
    write_record(paths.policy, policy)
    log.info("%s", _summary(policy))


if __name__ == "__main__":
    sys.exit(run_stage("augment", main))
