"""Arrays and named tensors on disk, and what the arrays of the project are called.

Same content, same bytes.
"""

import json
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from tasks.artifacts.files import replacing_file
from tasks.errors import ArtifactError

Array = NDArray[Any]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]  # RGB, (N, R, R, 3)
Features = NDArray[np.float32]  # pooled, (N, D)
Logits = NDArray[np.float32]  # (N, C)

# Of safetensors, in the order in which its files hold them.
DTYPES = ("U64", "I64", "F64", "F32", "U32", "I32", "F16", "U16", "I16", "I8", "U8", "BOOL")

ROWS_AT_ONCE = 1_000  # of features, of each of which there is a number for many others


def blocks_of(features: Features) -> Iterator[Features]:
    """Give rows in order, `ROWS_AT_ONCE` at a time; no rows are one block."""
    for start in range(0, max(len(features), 1), ROWS_AT_ONCE):
        yield features[start : start + ROWS_AT_ONCE]


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
