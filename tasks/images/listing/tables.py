"""Tables of the user: images as csv of path,label[,split][,group], and groups as path,group."""

import logging
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from tasks.artifacts.records import ImageSource
from tasks.artifacts.tables import Rejected
from tasks.artifacts.words import first_of, printable
from tasks.errors import DataError
from tasks.images.listing.class_names import NO_LABEL
from tasks.images.listing.csv_file import Line, read_lines
from tasks.images.listing.folders import ListedImage, Listing, why_not_regular
from tasks.images.listing.names import nearest_name, split_of, tidy
from tasks.images.listing.paths import Matched, files_below, match_paths

log = logging.getLogger(__name__)


# images -------------------------------------------------------------------------------------------


def list_table(source: Path) -> Listing:
    """List the images of a csv; paths are relative to its folder, or absolute inside it.

    Raises:
        DataError: The table is damaged, or rows are wrong; the message lists them (10 at most).
    """
    lines, matched = read_table(source)
    root = _root_of(source)
    paths = [_inside(root, path) for path in matched.paths]
    advice = _advise(source, [line.cells["path"] for line in lines], matched)
    if not all(paths[place] for place in matched.missing):
        raise DataError(f"{source}: {advice}")
    _check_rows(source, lines, paths, advice)
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
        notes=tuple(matched.notes),
        advice=advice,
    )


def read_table(source: Path) -> tuple[list[Line], Matched]:
    """Read a csv of images, and which files its paths mean, relative to its folder where below it.

    Raises:
        DataError: The table is damaged.
    """
    lines = read_lines(source, required=("path", "label"), optional=("split", "group"))
    root = _root_of(source)
    cells = (line.cells["path"] for line in lines)
    matched = match_paths(
        [_inside(root, cell) or cell for cell in cells],
        holds=lambda cell: os.path.lexists(os.path.join(root, cell)),
        known=lambda: files_below(root),
        what="exist",
    )
    return lines, matched


def _root_of(source: Path) -> Path:
    return Path(os.path.realpath(source.parent))


def _advise(source: Path, cells: Sequence[str], matched: Matched) -> str:
    """Say what the missing paths of a csv may be; empty if none is missing."""
    if not matched.missing:
        return ""
    root = _root_of(source)
    rule = "paths are relative to the folder of the csv and lie below it"
    missing = [cells[place].strip().replace("\\", "/") for place in matched.missing]
    folders = [Path(os.path.realpath(source)).parent, Path.cwd(), *root.parents[:3]]
    for folder in folders:
        if folder != root and all(os.path.lexists(folder / cell) for cell in missing):
            return (
                f"{rule}; {len(cells) - len(missing):,} of {len(cells):,} exist, and "
                f"{len(missing):,} more do below {printable(str(folder))}: move the csv there, "
                "and name it so in ingest.source"
            )
    return f"{rule}; {matched.advice}"


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
    path = os.path.normpath(os.path.join(root, cell))  # pathlib is slow for a million rows
    start = os.path.join(root, "")
    return path.removeprefix(start) if path.startswith(start) else ""


def _check_rows(source: Path, lines: Sequence[Line], paths: Sequence[str], advice: str) -> None:
    """Refuse wrong rows; `advice` is about paths that do not exist, which may be why."""
    if not lines:
        raise DataError(f"{source}: no images; expected a row path,label for each")
    problems, seen = [], dict[str, Line]()
    for line, path in zip(lines, paths, strict=True):
        if path in seen:
            problems.append(
                f"line {line.number}: {printable(path)} stands in line {seen[path].number} already,"
                f" as {printable(seen[path].cells['label'])}; an image has one row"
            )
        elif path:
            seen[path] = line
        problems += [f"line {line.number}: {problem}" for problem in _problems(line, path)]
    splits = [bool(line.cells.get("split", "").strip()) for line in lines]
    if any(splits) and not all(splits):
        problems.append(
            f"line {lines[splits.index(False)].number}: no split; allowed: all rows or none"
        )
    if problems:
        also = f"\nAnd {advice}" if advice else ""
        raise DataError(f"{source}: rows are wrong:{first_of(problems)}{also}")


def _problems(line: Line, path: str) -> Iterator[str]:
    """Say what is wrong with one row; `path` is empty where it leads out of the csv's folder."""
    label, split = tidy(line.cells["label"]), line.cells.get("split", "").strip()
    if not path:
        cell = printable(line.cells["path"])
        yield f"path {cell!r}; allowed: a file below the folder of the csv"
    if not label or not label.isprintable():
        yield f"label {printable(label)!r}; allowed: printable text"
    if label.lower() in NO_LABEL:
        yield f"label {label!r}, which tables write where a value is missing; remove the row"
    if split and not split_of(split):
        yield f"split {printable(split)!r}; allowed: train, val, test"


def _listed(line: Line, path: str) -> ListedImage:
    split, group = split_of(line.cells.get("split", "")), tidy(line.cells.get("group", ""))
    return ListedImage(path, tidy(line.cells["label"]), split, group or None)


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
    paths = match_images(path, lines, known)
    return [(image, tidy(line.cells["group"])) for image, line in zip(paths, lines, strict=True)]


def match_images(path: Path, lines: Sequence[Line], known: Collection[str]) -> Sequence[str]:
    """Give the image of the source that each line of a user's table means.

    Args:
        path: The table.
        lines: Its lines; each has a cell `path`.
        known: Paths of all images of the source, relative to its root.

    Raises:
        DataError: A path is not among them.
    """
    names = set(known)
    cells = [line.cells["path"] for line in lines]
    matched = match_paths(
        cells, holds=names.__contains__, known=lambda: names, what="are images of the source"
    )
    if matched.missing:
        shown = [
            f"line {lines[place].number}: {printable(cells[place])}"
            + (nearest_name(cells[place], names) if number < 3 else "")  # slow on many names
            for number, place in enumerate(matched.missing)
        ]
        advice = f". {matched.advice}" if matched.fits else ""
        raise DataError(
            f"{path}: {len(shown):,} of {len(cells):,} paths are no images of the source; they "
            f"must be relative to its root, as in manifest.csv{advice}:{first_of(shown)}"
        )
    for note in matched.notes:
        log.warning("%s: %s", path, note)
    return matched.paths
