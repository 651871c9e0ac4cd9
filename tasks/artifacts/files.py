"""Atomic writes: to a temporary name in the same folder, synced, then renamed.

Whoever is killed at any moment leaves the old file or folder or the new one, never a mix.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tasks.errors import ArtifactError


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; on success it replaces `path`, otherwise it is removed.

    Raises:
        ArtifactError: The disk is full or the folder cannot be written; `path` is left as it was.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as err:
        raise ArtifactError(
            f"{path}: cannot be written ({err.strerror or err}); nothing was changed"
        ) from err
    finally:
        _remove(temporary)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; on success it replaces the folder `path` whole.

    The old folder is moved aside first: between two renames there is neither, never a mix.

    Raises:
        ArtifactError: The disk is full or the folder cannot be written; `path` is left as it was.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    aside = path.parent / f".{path.name}.{os.getpid()}.old.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        temporary.mkdir()
        yield temporary
        for file in [*sorted(temporary.rglob("*")), temporary]:
            _sync(file)
        if path.exists():
            os.replace(path, aside)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as err:
        raise ArtifactError(
            f"{path}: cannot be written ({err.strerror or err}); nothing was changed"
        ) from err
    finally:
        if aside.exists() and not path.exists():
            os.replace(aside, path)
        _remove(temporary)
        _remove(aside)


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes left beside `path`, so that it does not fill the disk."""
    leftover = re.compile(rf"\.{re.escape(path.name)}\.(\d+)(\.old)?\.tmp")
    for entry in path.parent.iterdir():
        match = leftover.fullmatch(entry.name)
        if match and (int(match[1]) == os.getpid() or not psutil.pid_exists(int(match[1]))):
            _remove(entry)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with replacing_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    r"""Write a UTF-8 text file atomically; bytes of names that are not UTF-8 become `\udcXX`."""
    write_bytes(path, content.encode("utf-8", "backslashreplace"))


def read_bytes(path: Path) -> bytes:
    """Read a whole file.

    Raises:
        ArtifactError: It is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as err:
        raise ArtifactError(
            f"{path}: cannot be read ({err.strerror}); run the stage that writes it"
        ) from err


def hash_file(path: Path) -> str:
    """Give the sha256 of a file.

    Raises:
        ArtifactError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as err:
        raise ArtifactError(
            f"{path}: cannot be read ({err.strerror}); run the stage that writes it"
        ) from err
