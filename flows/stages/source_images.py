"""Which of a project's files are its images: those git does not track never enter an experiment."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from flows.errors import IsolationError
from tasks.errors import DataError
from tasks.images.tables import read_lines
from tasks.params_file import load_params


@dataclass(frozen=True)
class SourceImages:
    """The images of `ingest.source`; paths are relative to the project's root.

    Attributes:
        folder: All below it are images; None where the source is no folder of the project.
        listed: What a csv lists.
    """

    folder: PurePosixPath | None
    listed: Collection[str]

    def hold(self, name: str) -> bool:
        """Whether a path, with forward slashes, is one of the images, or a link to all of them."""
        path = PurePosixPath(name)
        return name in self.listed or self.folder in {path, *path.parents}


def find_source_images(root: Path, clone: Path) -> SourceImages:
    """Find the images in the user's tree, as the parameters of a clone name them.

    Raises:
        IsolationError: The source's path leads out of the project; from a clone it leads elsewhere.
        ParamsError: The clone's params.yaml is refused.
    """
    source = Path(load_params(clone / "params.yaml").ingest.source)
    path = _below(root, source)
    if path is None:
        if not source.is_absolute():
            raise IsolationError(
                f"ingest.source is {source}, outside of the project; a run with overrides works in "
                "a clone, from where that leads elsewhere. Set it to the whole path, "
                f"{os.path.normpath(root / source)}"
            )
        return SourceImages(None, ())
    if (root / path).is_dir():
        return SourceImages(path, ())
    return SourceImages(None, _listed(root, path) if path.suffix.lower() == ".csv" else ())


def _below(root: Path, path: Path | PurePosixPath) -> PurePosixPath | None:
    """Give a path relative to the root; None where it is not below it. Follows no links."""
    found = Path(os.path.normpath(root / path))
    if root == found or not found.is_relative_to(root):
        return None
    return PurePosixPath(found.relative_to(root).as_posix())


def _listed(root: Path, table: PurePosixPath) -> Collection[str]:
    """Give the images that a csv lists below the root; none where ingest will refuse the csv."""
    columns = ("path", "label")
    try:
        lines = read_lines(root / table, required=columns, optional=("split", "group"))
    except DataError:
        return ()
    found = {_below(root, table.parent / line.cells["path"]) for line in lines}
    return frozenset(str(path) for path in found if path is not None)
