"""Which images a user asks about: a folder, a csv of paths, a list on stdin, or one file."""

import os
import sys
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from tasks.artifacts.words import printable
from tasks.errors import DataError
from tasks.images.decoding.formats import SUFFIXES
from tasks.images.listing.csv_file import read_lines
from tasks.images.listing.paths import files_below

STDIN = "-"


@dataclass(frozen=True)
class InputFiles:
    """Image files, one an answer.

    Attributes:
        root: What their names are relative to.
        names: As answers name them; one that stands twice is asked about twice.
    """

    root: Path
    names: Sequence[str]

    def path(self, name: str) -> Path:
        """Give where the file of a name lies."""
        return self.root / name


def list_inputs(
    source: str, *, without: Sequence[Path] = (), may_be_empty: bool = False
) -> InputFiles:
    """List the files of a source without opening them.

    Args:
        source: A folder, of which all files at any depth count that are images by their names or
            may be, named as below the folder as it is given; a csv with a column `path`, relative
            to its folder; `-` for paths on stdin, one a line or separated by zero bytes; or an
            image file.
        without: Files and folders that are written to: of a folder, none of these is meant.
        may_be_empty: Whether a folder without images is no mistake.

    Raises:
        DataError: There is no such source, it cannot be read, or it names no file.
    """
    if not source:
        raise DataError("source is empty; name a folder, a csv or an image")
    if source == STDIN:
        return _refuse_empty(InputFiles(Path(), _read_stdin()), "stdin: no path on it")
    path, shown = Path(source), printable(source)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as err:
        raise DataError(f"{shown[:100]}: cannot be read ({err.strerror})") from err
    if is_folder:
        inputs = _list_folder(path, without)
        words = f"{shown}: no images in this folder or below it"
        return inputs if may_be_empty else _refuse_empty(inputs, words)
    if not exists:
        raise DataError(
            f"{shown}: no such file or folder; name a folder of images, a csv with a column path, "
            "or - for a list on stdin"
        )
    if path.suffix.lower() == ".csv":
        lines = read_lines(path, required=("path",), optional=(), others=True)
        names = [line.cells["path"] for line in lines]
        return _refuse_empty(InputFiles(path.parent, names), f"{shown}: no rows below its header")
    if path.suffix.lower() in SUFFIXES:
        return InputFiles(Path(), [str(path)])
    raise DataError(
        f"{shown}: unknown kind of source; allowed: a folder, a .csv with a column path, an image, "
        "or - for a list on stdin"
    )


def _list_folder(path: Path, without: Sequence[Path]) -> InputFiles:
    names = sorted(str(path / name) for name in files_below(path, most=None))
    written = {Path(os.path.abspath(one)) for one in without}
    return InputFiles(Path(), [name for name in names if not _is_of(name, written)])


def _is_of(name: str, written: Set[Path]) -> bool:
    place = Path(os.path.abspath(name))
    return not written.isdisjoint((place, *place.parents))


def _refuse_empty(inputs: InputFiles, words: str) -> InputFiles:
    if not inputs.names:
        raise DataError(words)
    return inputs


def _read_stdin() -> list[str]:
    text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    if "\0" in text:
        return [name for name in text.split("\0") if name]
    return [name for name in map(_without_return, text.split("\n")) if name]


def _without_return(line: str) -> str:
    """Cut the line end of Windows off, unless a file is named so."""
    return line[:-1] if line.endswith("\r") and not os.path.lexists(line) else line
