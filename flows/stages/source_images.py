"""Which of a project's files are its images: those git does not track never enter an experiment."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from flows.errors import IsolationError
from tasks.artifacts.words import printable
from tasks.errors import DataError
from tasks.images.listing.tables import read_table


@dataclass(frozen=True)
class SourceImages:
    """The images of `ingest.source`; paths are relative to the project's root.

    Attributes:
        folder: All below it are images; None where the source is no folder of the project.
        listed: What a csv lists.
        in_place: Whether a clone reads them where they are, by a whole path.
    """

    folder: PurePosixPath | None
    listed: Collection[str]
    in_place: bool = False

    def hold(self, name: str) -> bool:
        """Whether a path, with forward slashes, is one of the images, or a link to all of them."""
        path = PurePosixPath(name)
        return name in self.listed or self.folder in {path, *path.parents}


def find_source_images(root: Path, source: str) -> SourceImages:
    """Find the images that lie in the project.

    Args:
        root: The project.
        source: `ingest.source`.

    Raises:
        IsolationError: The source, or a path in its csv, leads elsewhere from a clone.
    """
    place = Path(source)
    path = _below(root, place)
    if path is None:
        _check_outside(root, place)
        return SourceImages(None, ())
    in_place = place.is_absolute()
    if (root / path).is_dir():
        return SourceImages(path, (), in_place)
    if path.suffix.lower() != ".csv":
        return SourceImages(None, ())
    return SourceImages(None, _listed(root, path, movable=not in_place), in_place)


def _check_outside(root: Path, source: Path) -> None:
    whole = Path(os.path.normpath(root / source))
    if whole == root:
        raise IsolationError(
            f"ingest.source is {source}, the project itself, and all its files would be taken for "
            "images. Put the images into a folder of their own and set it to that folder"
        )
    if not source.is_absolute():
        raise IsolationError(
            f"ingest.source is {source}, outside of the project; a run with overrides works in a "
            f"clone, from where that leads elsewhere. Set it to the whole path, {whole}"
        )


def _below(root: Path, path: Path | PurePosixPath) -> PurePosixPath | None:
    """Give a path relative to the root; None where it is not below it. Follows no links."""
    found = Path(os.path.normpath(root / path))
    if root == found or not found.is_relative_to(root):
        return None
    return PurePosixPath(found.relative_to(root).as_posix())


def _listed(root: Path, table: PurePosixPath, *, movable: bool) -> Collection[str]:
    """Give the images that a csv lists below the root; none where ingest will refuse the csv.

    Args:
        root: The project.
        table: The csv, relative to the root.
        movable: Whether a clone reads a copy of the csv; whole paths would lead back from there.
    """
    try:
        lines, matched = read_table(root / table)
    except DataError:
        return ()
    whole = [line for line in lines if os.path.isabs(line.cells["path"])]
    if movable and whole:
        raise IsolationError(
            f"{table}: {len(whole):,} of {len(lines):,} paths are whole paths, the first in line "
            f"{whole[0].number}: {printable(whole[0].cells['path'])}; a run with overrides works "
            "in a clone, from where they lead out of it. Write them relative to the folder of "
            "the csv"
        )
    found = {_below(root, table.parent / path) for path in matched.paths}
    return frozenset(str(path) for path in found if path is not None)
