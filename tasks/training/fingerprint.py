"""A name for all that training depends on: its inputs, parameters, code and libraries."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import timm
import torch

SAMPLED_BYTES = 64 << 20  # of a larger file only blocks are read: pixel stores can be huge
BLOCK_BYTES = 1 << 16
BLOCKS = 256


def fingerprint(inputs: Sequence[Path], values: Sequence[str], code: Sequence[Path]) -> str:
    """Give 16 hexadecimal digits that change with inputs, values, code and libraries.

    Of files over 64 MiB, evenly spaced blocks count: the manifest beside them tells other images.

    Args:
        inputs: Files and folders that training reads, in an order that stays.
        values: Parameters, as text.
        code: Source files, and folders of which every .py file counts.
    """
    digest = hashlib.sha256()
    for text in [*values, torch.__version__, timm.__version__]:
        digest.update(f"{len(text)}:{text}".encode())
    for paths, pattern in ((inputs, "*"), (code, "*.py")):
        for path in paths:
            for name, file in _files(path, pattern):
                digest.update(f"{len(name)}:{name}".encode() + _hash_file(file))
    return digest.hexdigest()[:16]


def _files(path: Path, pattern: str) -> list[tuple[str, Path]]:
    """Give every file below a folder, or the file itself, by its name there."""
    if not path.is_dir():
        return [(path.name, path)]
    files = (file for file in path.rglob(pattern) if file.is_file())
    return sorted((file.relative_to(path).as_posix(), file) for file in files)


def _hash_file(path: Path) -> bytes:
    digest = hashlib.sha256(str(path.stat().st_size).encode())
    for block in _blocks(path):
        digest.update(block)
    return digest.digest()


def _blocks(path: Path) -> Iterator[bytes]:
    """Yield the whole file, or evenly spaced blocks of a large one."""
    size = path.stat().st_size
    spacing = BLOCK_BYTES if size <= SAMPLED_BYTES else size // BLOCKS
    with path.open("rb") as file:
        for start in range(0, size, spacing):
            file.seek(start)
            yield file.read(BLOCK_BYTES)
