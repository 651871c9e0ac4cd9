"""Reading and writing of every artifact: one reader and one writer side by side.

Every write is atomic (`tasks.files`). Same content, same bytes.
"""

import csv
import io
import json
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from tasks.errors import ArtifactError
from tasks.files import read_bytes, replacing_file, write_bytes, write_text
from tasks.records import PREFIX, ManifestRow, Record, Split

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Of safetensors, in the order in which its files hold them.
DTYPES = ("U64", "I64", "F64", "F32", "U32", "I32", "F16", "U16", "I16", "I8", "U8", "BOOL")

R = TypeVar("R", bound=Record)
Row = TypeVar("Row", bound="DataclassInstance")
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


def columns_of(kind: type["DataclassInstance"], keys: Iterable[str] = ()) -> list[str]:
    """Name the columns of a table: the fields of its dataclass, without an underscore at the end.

    Args:
        kind: The dataclass of a row. A field with a `prefix` in its metadata holds a mapping.
        keys: Of that mapping; each is a column, after the prefix.
    """
    names: list[str] = []
    for field in fields(kind):
        prefix = field.metadata.get(PREFIX)
        names += [field.name.rstrip("_")] if prefix is None else [prefix + key for key in keys]
    return names


def write_rows(path: Path, kind: type[Row], rows: Iterable[Row], keys: Sequence[str] = ()) -> None:
    """Write a table as csv, with the columns of `columns_of`.

    Floats have full precision, booleans are 0 or 1, None is an empty cell, and names that are not
    UTF-8 are their bytes.
    """
    text = io.StringIO()
    plain = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    plain.writerow(columns_of(kind, keys))
    for row in rows:  # readers end a row at a carriage return that the plain writer does not quote
        cells = list(_cells(row, keys))
        returns = any("\r" in cell for cell in cells if isinstance(cell, str))
        (quoted if returns else plain).writerow(cells)
    write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))


def _cells(row: "DataclassInstance", keys: Sequence[str]) -> Iterator[Any]:
    for field in fields(row):
        value = getattr(row, field.name)
        if PREFIX in field.metadata:
            yield from (value[key] for key in keys)
        else:
            yield int(value) if isinstance(value, bool) else value


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """Read a table that `write_rows` wrote.

    Raises:
        ArtifactError: The file is missing, has other columns, or a line of it is no such row.
    """
    text = read_bytes(path).decode("utf-8", "surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        prefix = next((f.metadata[PREFIX] for f in fields(kind) if PREFIX in f.metadata), None)
        keys = [name.removeprefix(prefix) for name in header if prefix and name.startswith(prefix)]
        columns = columns_of(kind, keys)
        if header != columns:
            found = ",".join(header) or "(none)"
            raise ValueError(f"has the columns {found}, expected {','.join(columns)}")
        rows = TypeAdapter(kind)
        return [rows.validate_python(_by_field(kind, keys, columns, cells)) for cells in reader]
    except (csv.Error, ValueError) as err:
        raise ArtifactError(
            f"{path}:{max(reader.line_num, 1)}: {_explain(err)}; run the stage that writes it again"
        ) from err


def _by_field(
    kind: type["DataclassInstance"],
    keys: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[str],
) -> dict[str, str | dict[str, str]]:
    if len(cells) != len(columns):
        raise ValueError(f"has {len(cells)} cells, expected {len(columns)} ({','.join(columns)})")
    left = iter(cells)
    return {
        field.name: {key: next(left) for key in keys} if PREFIX in field.metadata else next(left)
        for field in fields(kind)
    }


def _explain(err: Exception) -> str:
    if not isinstance(err, ValidationError):
        return str(err)
    first = err.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))} is {first['input']!r} ({first['msg']})"


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


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write manifest.csv."""
    write_rows(path, ManifestRow, manifest.rows)


def read_manifest(path: Path) -> Manifest:
    """Read manifest.csv.

    Raises:
        ArtifactError: The file is missing or no manifest.
    """
    return Manifest(read_rows(path, ManifestRow))


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
    """Write named arrays as safetensors; `note` goes into the header. Same arrays, same bytes.

    Arrays go to disk without a copy. The library's own writers copy them twice or rename a file of
    their own, and give a note in random order.
    """
    names = sorted(tensors, key=lambda name: (DTYPES.index(_dtype(tensors[name])), name))
    arrays = {name: _little_endian(tensors[name]) for name in names}
    header: dict[str, Any] = {"__metadata__": dict(sorted(note.items()))} if note else {}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": _dtype(array),
            "shape": array.shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing_file(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(array.data)


def _little_endian(array: Array) -> Array:
    return np.asarray(array, array.dtype.newbyteorder("<"), order="C")


def _dtype(array: Array) -> str:
    """Name the type of an array as safetensors does."""
    kind, size = array.dtype.kind, 8 * array.dtype.itemsize
    return "BOOL" if kind == "b" else f"{kind.upper()}{size}"


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
