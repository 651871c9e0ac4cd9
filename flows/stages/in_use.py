"""The folder of the model in use: `models/prod`, a link that is replaced whole.

Behind it lies a folder per commit, written once. Who follows the link first and then reads what it
leads to sees one model, whatever is promoted meanwhile.
"""

import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from flows.errors import PromotionError
from flows.stages.graph import copy_out, push_out
from tasks.artifacts.files import replacing_folder
from tasks.delivery.folder import read_delivered
from tasks.errors import ArtifactError, RegraftError

MODEL = "data/report/model"  # of dvc.yaml's artifact
LINK = Path("models/prod")
FOLDER = re.compile(r"[0-9a-f]{12}")
NAME_DIGITS = 12


def folder_of(root: Path, commit: str) -> Path:
    """Give the folder of a commit's model."""
    return root / LINK.parent / commit[:NAME_DIGITS]


def bring_model(root: Path, commit: str, *, pull: bool) -> None:
    """Copy a commit's exported model out of DVC's cache into its folder, where it is not yet whole.

    Args:
        root: The project.
        commit: Whole name.
        pull: Whether what the cache lacks is fetched from DVC's remote.

    Raises:
        PromotionError: The commit has no exported model, the cache lacks it, or it is not whole; or
            something that is no link has the link's name.
    """
    link, folder = root / LINK, folder_of(root, commit)
    if link.exists() and not link.is_symlink():
        raise PromotionError(f"{link} is to be a link to the model in use; move away what is there")
    if _is_whole(folder):
        return
    try:
        with replacing_folder(folder) as temporary:
            copy_out(root, commit, MODEL, temporary, pull=pull)
            _check(temporary)
    except RegraftError as err:
        raise PromotionError(f"commit {commit[:7]} cannot come into use: {err}") from err


def share_model(root: Path, commit: str) -> None:
    """Bring a commit's exported model to DVC's remote, where others find it.

    Raises:
        PromotionError: DVC refuses; the message is its own.
    """
    try:
        push_out(root, commit, MODEL)
    except RegraftError as err:
        raise PromotionError(f"commit {commit[:7]} cannot come into use: {err}") from err


def _check(folder: Path) -> None:
    try:
        read_delivered(folder)
    except ArtifactError as err:
        raise ArtifactError(str(err).replace(str(folder), MODEL)) from err


def _is_whole(folder: Path) -> bool:
    try:
        read_delivered(folder)
    except ArtifactError:
        return False
    return True


def is_in_place(root: Path, commit: str) -> bool:
    """Tell whether the link leads to a commit's model, whole."""
    link, folder = root / LINK, folder_of(root, commit)
    return link.is_symlink() and os.readlink(link) == folder.name and _is_whole(folder)


def use_model(root: Path, commit: str) -> None:
    """Let the link lead to a commit's folder, which is there."""
    link = root / LINK
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)  # of one who was killed
    temporary.symlink_to(folder_of(root, commit).name)
    os.replace(temporary, link)


def remove_other_models(root: Path, commits: Collection[str]) -> None:
    """Remove the folders of all other commits; DVC's cache has what was in them.

    That which the link leads to stays, whatever the tags say by now.
    """
    kept = {folder_of(root, commit).name for commit in commits}
    if (root / LINK).is_symlink():
        kept.add(Path(os.readlink(root / LINK)).name)
    for other in (root / LINK).parent.iterdir():
        if FOLDER.fullmatch(other.name) and other.name not in kept:
            shutil.rmtree(other, ignore_errors=True)
