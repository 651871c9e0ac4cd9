"""Tables of the user: images as csv of path,label[,split][,group], and groups as path,group."""

import csv
import io
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.artifacts.records import ImageSource, Split
from tasks.artifacts.tables import Rejected
from tasks.artifacts.words import first_of, printable, shortened
from tasks.errors import DataError
from tasks.images.folders import (
    SPLIT_FOLDERS,
    ListedImage,
    Listing,
    nearest_name,
    why_not_regular,
)


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a user's table: its line in the file, and its cells by column name."""

    number: int
    cells: dict[str, str]


def read_lines(path: Path, *, required: Sequence[str], optional: Sequence[str]) -> list[Line]:
    """Read a csv file with a header; blank lines are skipped, a byte order mark too.

    Raises:
        DataError: The file cannot be read, or its columns or a row are not as they must be.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    header = next(reader, [])
    allowed = [*required, *optional]
    if not set(required) <= set(header) <= set(allowed) or len(set(header)) < len(header):
        found = shortened(",".join(header), 100)
        raise DataError(
            f"{path}:1: columns are {found!r}; allowed: {','.join(required)}"
            + "".join(f"[,{name}]" for name in optional)
        )
    try:
        return list(_lines(path, reader, header))
    except csv.Error as err:
        raise DataError(f"{path}: is no csv ({err})") from err


def _lines(path: Path, reader: Iterator[list[str]], header: list[str]) -> Iterator[Line]:
    number = 1
    for row in reader:
        number += 1 + sum(cell.count("\n") for cell in row)
        if not row:
            continue
        if len(row) != len(header):
            raise DataError(
                f"{path}:{number}: {len(row)} cells, expected {len(header)} ({','.join(header)}); "
                'a cell that holds a comma stands in quotes ("a,b")'
            )
        yield Line(number, dict(zip(header, row, strict=True)))


def read_text(path: Path) -> str:
    """Read a user's text file; bytes that are no UTF-8 stay as the system's names hold them.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as err:
        raise DataError(f"{path}: cannot be read ({err.strerror})") from err


# images -------------------------------------------------------------------------------------------


def list_table(source: Path) -> Listing:
    """List the images of a csv; paths are relative to its folder, or absolute inside it.

    Raises:
        DataError: The table is damaged, or rows are wrong; the message lists them (10 at most).
    """
    lines = read_lines(source, required=("path", "label"), optional=("split", "group"))
    root = Path(os.path.realpath(source.parent))
    paths = [_inside(root, line.cells["path"]) for line in lines]
    _check_rows(source, lines, paths)
    images, rejected = [], []
    for line, path in zip(lines, paths, strict=True):
        reason = _why_not(root, path)
        if reason:
            rejected.append(Rejected(path=path, reason=reason))
        else:
            images.append(_listed(line, path))
    return Listing(
        origin=_origin(source),
        images=tuple(sorted(images, key=lambda image: image.path)),
        rejected=tuple(sorted(rejected, key=lambda item: item.path)),
    )


def _origin(source: Path) -> ImageSource:
    return ImageSource(
        kind="csv",
        name=printable(source.name),
        root=source.parent.as_posix(),
        package=None,
        license=None,
        citation=None,
        label_rule=None,
    )


def _inside(root: Path, cell: str) -> str:
    """Path relative to the root; empty where it leads out of it."""
    path = Path(os.path.normpath(root / cell))
    return path.relative_to(root).as_posix() if root in path.parents else ""


def _check_rows(source: Path, lines: Sequence[Line], paths: Sequence[str]) -> None:
    if not lines:
        raise DataError(f"{source}: no images; expected a row path,label for each")
    problems, seen = [], dict[str, int]()
    for line, path in zip(lines, paths, strict=True):
        if path in seen:
            problems.append(
                f"line {line.number}: {printable(path)} stands in line {seen[path]} already"
            )
        elif path:
            seen[path] = line.number
        problems += [f"line {line.number}: {problem}" for problem in _problems(line, path)]
    splits = [bool(line.cells.get("split")) for line in lines]
    if any(splits) and not all(splits):
        problems.append(
            f"line {lines[splits.index(False)].number}: no split; allowed: all rows or none"
        )
    if problems:
        raise DataError(f"{source}: rows are wrong:{first_of(problems)}")


def _problems(line: Line, path: str) -> Iterator[str]:
    """Say what is wrong with one row; `path` is empty where it leads out of the csv's folder."""
    label, split = line.cells["label"], line.cells.get("split", "")
    if not path:
        cell = printable(line.cells["path"])
        yield f"path {cell!r}; allowed: a file below the folder of the csv"
    if not label.strip() or not label.isprintable():
        yield f"label {printable(label)!r}; allowed: printable text"
    if split and split.lower() not in SPLIT_FOLDERS:
        yield f"split {printable(split)!r}; allowed: train, val, test"


def _listed(line: Line, path: str) -> ListedImage:
    split: Split | None = SPLIT_FOLDERS.get(line.cells.get("split", "").lower())
    return ListedImage(path, line.cells["label"], split, line.cells.get("group") or None)


def _why_not(root: Path, path: str) -> str | None:
    """Say why a listed file must not be opened; None for a missing one, which opening will tell."""
    if "\r" in path:
        return "name holds a carriage return"
    try:
        return why_not_regular((root / path).resolve(strict=True).stat().st_mode)
    except RuntimeError:  # a loop, up to Python 3.12
        return "link in a loop"
    except OSError:
        return None


# groups -------------------------------------------------------------------------------------------


def read_groups(path: Path, known: Collection[str]) -> list[tuple[str, str]]:
    """Read the user's groups as (path, group); a file with a header only gives none.

    Args:
        path: csv of path,group; an image may stand in several groups.
        known: Paths of all images of the source, relative to its root.

    Raises:
        DataError: A path is not among them, or a group has no name.
    """
    lines = read_lines(path, required=("path", "group"), optional=())
    unnamed = [line.number for line in lines if not line.cells["group"].strip()]
    if unnamed:
        raise DataError(f"{path}:{unnamed[0]}: the group has no name")
    names = set(known)
    unknown = [line for line in lines if line.cells["path"] not in names]
    if unknown:
        shown = [
            f"line {line.number}: {printable(line.cells['path'])}"
            + (nearest_name(line.cells["path"], names) if place < 3 else "")  # slow on many names
            for place, line in enumerate(unknown)
        ]
        raise DataError(
            f"{path}: {len(unknown):,} of {len(lines):,} paths are no images of the source; they "
            f"must be relative to its root, as in manifest.csv:{first_of(shown)}"
        )
    return [(line.cells["path"], line.cells["group"]) for line in lines]
