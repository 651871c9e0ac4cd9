"""Where a result comes from: code, data, weights, parameters and versions.

Nothing here tells the time or the machine: no clock, no absolute path, no secret of a URL.
"""

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

# What decides a result; artifacts and dvc.lock change while the pipeline runs.
CODE = (
    "tasks",
    "params.yaml",
    "dvc.yaml",
    "constraints.txt",
    "data/sources",
    "data/cards",
)
PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "onnxruntime",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
    "safetensors",
    "pydantic",
    "dvc",
)
GIT_SECONDS = 30


@dataclass(frozen=True)
class CodeState:
    """The commit of the code, and the files of CODE and of the inputs that differ from it.

    Attributes:
        commit: Full hash; None where the code lies in no git checkout, or git is missing or fails.
        changed: Paths of changed, new or removed files.
        changes_sha256: Of their names and contents; None where nothing changed.
    """

    commit: str | None
    changed: tuple[str, ...] = ()
    changes_sha256: str | None = None

    @property
    def words(self) -> str:
        """The state in words, short."""
        if self.commit is None:
            return "unknown (no git checkout, or git failed)"
        if self.changed:
            return f"{self.commit[:12]} with uncommitted changes"
        return self.commit[:12]


@dataclass(frozen=True)
class Provenance:
    """Everything that a rerun needs to give the same bytes.

    Attributes:
        code: State of the code.
        data_sha256: Of manifest.csv, which holds the sha256 of every image.
        params: Key path and value of every parameter, in file order.
        versions: Name and version of what computed.
    """

    code: CodeState
    data_sha256: str
    params: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]

    @property
    def commands(self) -> str:
        """Commands that make this result again."""
        if self.code.commit is None:
            return "make run"
        return f"git checkout {self.code.commit}\nmake run"


def read_code_state(root: Path, inputs: Sequence[str] = ()) -> CodeState:
    """Ask git for the commit of the checkout at `root` and for changes of what decides a result.

    Args:
        root: The project.
        inputs: Paths of files beside those of CODE. Those outside of the project are left out, and
            git tells nothing of those that it ignores.
    """
    prefix = _git(root, "rev-parse", "--show-prefix")
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if prefix is None or prefix.strip() or commit is None:  # inside some other repository
        return CodeState(None)
    wanted = [*CODE, *_inside(root, inputs)]
    status = _git(root, "status", "--porcelain", "-z", "--no-renames", "-uall", "--", *wanted)
    if status is None:
        return CodeState(None)
    changed = tuple(sorted(entry[3:] for entry in status.split("\0") if entry))
    return CodeState(commit.strip(), changed, _hash_changes(root, changed) if changed else None)


def _inside(root: Path, paths: Sequence[str]) -> list[str]:
    """Paths below the root, relative to it."""
    relative = [os.path.relpath(os.path.normpath(root / path), root) for path in paths]
    return [path for path in relative if path.split(os.sep)[0] not in {os.curdir, os.pardir}]


def _git(root: Path, *arguments: str) -> str | None:
    """Run git; its output, or None where it is missing or refuses."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "--literal-pathspecs", "-C", str(root), *arguments],
            capture_output=True,
            timeout=GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "surrogateescape")


def _hash_changes(root: Path, changed: tuple[str, ...]) -> str:
    whole = hashlib.sha256()
    for name in changed:
        path = root / name
        content = path.read_bytes() if path.is_file() else b"removed"
        whole.update(name.encode("utf-8", "surrogateescape") + b"\0")
        whole.update(hashlib.sha256(content).digest())
    return whole.hexdigest()


def installed_versions() -> tuple[tuple[str, str], ...]:
    """List Python and the packages that compute, with their versions."""
    found = [("python", platform.python_version())]
    for name in PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            found.append((name, "not installed"))
    return tuple(found)


def list_params(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """List every parameter as key path and printed value, in order.

    Args:
        values: The parameters as nested mappings, such as `Params.model_dump()`.
    """
    return tuple(_leaves(values, ""))


def _leaves(values: Mapping[str, Any], at: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", _print_value(value)


def _print_value(value: Any) -> str:
    if isinstance(value, str):
        return without_place(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_print_value, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def without_place(value: str) -> str:
    """Give a value without what only this machine or its user knows.

    Of an absolute path the last part stays, of a URL user, password, query and fragment go.
    """
    if "://" in value:
        parts = urlsplit(value)
        return urlunsplit(parts._replace(netloc=parts.netloc.split("@")[-1], query="", fragment=""))
    if value.startswith(("/", "~")):
        return f".../{PurePosixPath(value).name}"
    if PureWindowsPath(value).drive:
        return f".../{PureWindowsPath(value).name}"
    return value
