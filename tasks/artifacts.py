"""Reading and writing of every artifact: one reader and one writer side by side.

Every write is atomic (`tasks.files`). Same content, same bytes.
"""

import csv
import io
import json
import mmap
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from tasks.errors import ArtifactError
from tasks.files import read_bytes, replacing_file, write_bytes, write_text
from tasks.records import SPLITS, ManifestRow, Record, Rejected, Split

R = TypeVar("R", bound=Record)
Array = NDArray[Any]


# json --------------------------------------------------------------------------------------------


def write_record(path: Path, record: Record) -> None:
    """Write a record as json with full precision."""
    write_json(path, record.model_dump(mode="json"))


def read_record(path: Path, kind: type[R]) -> R:
    """Read a record.

    Raises:
        ArtifactError: The file is missing or does not hold such a record.
    """
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ArtifactError(
            f"{path}: is no {kind.__name__} ({where}: {first['msg']}); "
            "run the stage that writes it again"
        ) from err


def write_json(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write plain values as indented json; NaN and infinity are refused."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a json file.

    Raises:
        ArtifactError: The file is missing or no json.
    """
    try:
        return json.loads(read_bytes(path))
    except ValueError as err:
        raise ArtifactError(
            f"{path}: is no json ({err}); run the stage that writes it again"
        ) from err


# tables ------------------------------------------------------------------------------------------


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a csv file; floats with full precision, names that are not UTF-8 as their bytes."""
    text = io.StringIO()
    plain = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    plain.writerow(header)
    for row in rows:  # readers end a row at a carriage return that the plain writer does not quote
        (quoted if any("\r" in cell for cell in row if isinstance(cell, str)) else plain).writerow(
            row
        )
    write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))


def read_table(path: Path, header: Sequence[str] | None = None) -> list[dict[str, str]]:
    """Read a csv file as one mapping a row.

    Args:
        path: The file.
        header: The columns it must have, in this order; any where None.

    Raises:
        ArtifactError: The file is missing or empty, has other columns, or a row has more or fewer
            cells than there are columns.
    """
    return list(_rows_of(path, header))


def _rows_of(path: Path, header: Sequence[str] | None) -> Iterator[dict[str, str]]:
    """Yield what `read_table` reads, so that a long table need not stand in memory twice."""
    text = read_bytes(path).decode("utf-8", "surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        found = next(reader, [])
        _check_columns(path, found, header)
        for number, row in enumerate(reader, start=1):
            if len(row) != len(found):
                raise ArtifactError(
                    f"{path}: row {number} has {len(row)} cells, expected {len(found)} "
                    f"({','.join(found)}); run the stage that writes it again"
                )
            yield dict(zip(found, row, strict=True))
    except csv.Error as err:
        raise ArtifactError(
            f"{path}:{reader.line_num}: {err}; run the stage that writes it again"
        ) from err


def _check_columns(path: Path, found: Sequence[str], header: Sequence[str] | None) -> None:
    if not found or (header is not None and list(found) != list(header)):
        wanted = f", expected {','.join(header)}" if header else ""
        raise ArtifactError(
            f"{path}: has the columns {','.join(found) or '(none)'}{wanted}; "
            "run the stage that writes it again"
        )


class Manifest:
    """The list of truth: every usable image with label, split and group.

    Rows keep the order of the file. The images of a split are numbered in that order, from 0: row i
    of a pixel store or feature array of that split belongs to image i.
    """

    def __init__(self, rows: Sequence[ManifestRow]) -> None:
        self.rows = tuple(rows)

    @cached_property
    def class_names(self) -> list[str]:
        """Labels sorted by code point; a label's position is its class index."""
        return sorted({row.label for row in self.rows})

    def of(self, split: Split) -> list[ManifestRow]:
        """Rows of one split, in order."""
        return [row for row in self.rows if row.split == split]

    def labels(self, split: Split) -> NDArray[np.int64]:
        """Class indices of one split: int64 (N,)."""
        index = {name: number for number, name in enumerate(self.class_names)}
        return np.array([index[row.label] for row in self.of(split)], dtype=np.int64)

    def groups(self, split: Split) -> list[str]:
        """Groups of one split, one for each image."""
        return [row.group for row in self.of(split)]


MANIFEST_COLUMNS = [field.name for field in fields(ManifestRow)]
REJECTED_COLUMNS = [field.name for field in fields(Rejected)]


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write manifest.csv."""
    write_table(path, MANIFEST_COLUMNS, (astuple(row) for row in manifest.rows))


def read_manifest(path: Path) -> Manifest:
    """Read manifest.csv.

    Raises:
        ArtifactError: The file is missing or no manifest.
    """
    return Manifest([_manifest_row(path, row) for row in _rows_of(path, MANIFEST_COLUMNS)])


def _manifest_row(path: Path, row: dict[str, str]) -> ManifestRow:
    split = next((split for split in SPLITS if split == row["split"]), None)
    if split is None or not (row["width"].isdecimal() and row["height"].isdecimal()):
        raise ArtifactError(f"{path}: row of {row['path']!r} is damaged; rerun ingest")
    return ManifestRow(
        path=row["path"],
        label=sys.intern(row["label"]),  # one string for all images of a class
        split=split,
        group=row["group"],
        sha256=row["sha256"],
        width=int(row["width"]),
        height=int(row["height"]),
        mode=sys.intern(row["mode"]),
    )


def write_rejected(path: Path, rejected: Sequence[Rejected]) -> None:
    """Write quarantine.csv."""
    write_table(path, REJECTED_COLUMNS, (astuple(item) for item in rejected))


def read_rejected(path: Path) -> list[Rejected]:
    """Read quarantine.csv."""
    return [Rejected(**row) for row in read_table(path, REJECTED_COLUMNS)]


# arrays and tensors ------------------------------------------------------------------------------


def write_array(path: Path, array: Array) -> None:
    """Write one array as .npy."""
    with replacing_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def read_array(path: Path) -> Array:
    """Map one .npy array into memory, read-only; rows are read from disk when they are used.

    Raises:
        ArtifactError: The file is missing or damaged.
    """
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as err:
        raise ArtifactError(
            f"{path}: cannot be read ({err}); run the stage that writes it"
        ) from err
    return array


def release_pages(array: Array) -> None:
    """Take the pages of a mapped array out of this process's memory; the file cache keeps them.

    Otherwise a process that reads a large file in pieces ends with all of it resident.
    """
    if isinstance(array.base, mmap.mmap):
        array.base.madvise(mmap.MADV_DONTNEED)


def write_tensors(
    path: Path, tensors: Mapping[str, Array], note: Mapping[str, str] | None = None
) -> None:
    """Write named arrays as safetensors; `note` goes into the header. Same arrays, same bytes."""
    ordered = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
    write_bytes(path, _with_note(safetensors.numpy.save(ordered), note or {}))


def _with_note(content: bytes, note: Mapping[str, str]) -> bytes:
    """Put a note into a safetensors file, sorted: the library writes its keys in random order."""
    if not note:
        return content
    start = 8 + int.from_bytes(content[:8], "little")
    header = {"__metadata__": dict(sorted(note.items()))} | json.loads(content[8:start])
    text = json.dumps(header, separators=(",", ":")).encode()
    padded = text + b" " * (-len(text) % 8)
    return len(padded).to_bytes(8, "little") + padded + content[start:]


def read_tensors(path: Path) -> dict[str, Array]:
    """Read named arrays of a safetensors file.

    Raises:
        ArtifactError: The file is missing or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as err:
        raise ArtifactError(
            f"{path}: cannot be read ({err}); run the stage that writes it"
        ) from err


def read_tensors_note(path: Path) -> dict[str, str]:
    """Read the header note of a safetensors file.

    Raises:
        ArtifactError: The file is missing or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as err:
        raise ArtifactError(
            f"{path}: cannot be read ({err}); run the stage that writes it"
        ) from err
