"""`regraft doctor`: what may go wrong on this machine in this project, each with its fix."""

import os
import re
import shlex
import shutil
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from importlib.metadata import distributions
from pathlib import Path

from flows.commands.finding import Finding
from flows.commands.server_health import check_server, check_settings
from flows.errors import GitError, GraphError
from flows.stages.git import try_git
from flows.stages.graph import storage_of
from flows.stages.holders import (
    LOCK,
    RWLOCK,
    holder_has_died,
    is_at_work,
    number_in_lock,
    read_holders,
)
from flows.stages.in_use import LINK, is_in_place
from flows.stages.isolation import kept_clones
from flows.stages.locks import WORKSPACE, holder_of, visible_gpus
from flows.stages.registry import read_registry
from tasks.artifacts.pixels import bytes_of
from tasks.artifacts.tables import read_manifest
from tasks.artifacts.words import listed, plural
from tasks.check import check
from tasks.errors import RegraftError
from tasks.images.listing.sources import list_images
from tasks.params import Params
from tasks.params_file import load_params
from tasks.runtime.machine import Machine, read_machine, usable_cores

SCHEDULING = {"fastapi", "prefect", "sqlalchemy"}  # with others of these no schedule may ever fire
INSTALL = 'python -m pip install --constraint constraints.txt --editable ".[bundled]"'
MANIFEST = Path("data/ingest/manifest.csv")
GIGABYTE = 1e9


def examine(root: Path) -> Iterator[Finding]:
    """Look at everything and tell what was found, one thing after the other.

    Args:
        root: The project, which is the current folder too.
    """
    yield from check_versions(root)
    yield from check_git(root)
    machine, params = None, None
    try:
        machine = read_machine()
    except RegraftError as err:
        yield from _faults("machine", err, "unset the variable, or give it a value that is allowed")
    try:
        params = load_params(root / "params.yaml")
        check(params, root)
        yield Finding("ok", "parameters", "params.yaml and the paths that it names are sound")
    except RegraftError as err:
        yield from _faults("parameters", err, "edit params.yaml")
    yield from check_locks(root)
    yield from check_storage(root)
    yield from check_model_in_use(root)
    if machine is not None:
        yield from check_gpu(machine)
        if params is not None:
            yield from check_disk(root, params, machine)
    yield from check_settings(os.environ)
    yield from check_server(os.environ)


def _faults(what: str, err: RegraftError, fix: str) -> Iterator[Finding]:
    return (Finding("fault", what, line, fix) for line in str(err).splitlines())


# what is installed -------------------------------------------------------------------------------


def check_versions(root: Path) -> Iterator[Finding]:
    """Compare what is installed with constraints.txt and pyproject.toml."""
    try:
        pinned = _pinned((root / "constraints.txt").read_text(encoding="utf-8"))
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (OSError, ValueError, KeyError) as err:
        yield Finding("warning", "versions", f"not known: {err}", "restore the file from git")
        return
    installed = {_normal(one.name): one.version for one in distributions() if one.name}
    needed = [_normal(re.split(r"[^\w.-]", one)[0]) for one in project["dependencies"]]
    lacking = [name for name in needed if name not in installed]
    if lacking:
        yield Finding("fault", "versions", f"not installed: {listed(lacking)}", INSTALL)
    other = {name: version for name, version in pinned.items() if name in installed}
    other = {name: version for name, version in other.items() if installed[name] != version}
    said = {name: f"{name} {installed[name]} in place of {other[name]}" for name in other}
    breaking = [words for name, words in said.items() if name in SCHEDULING]
    if breaking:
        yield Finding("fault", "versions", f"{listed(breaking)}: schedules may never fire", INSTALL)
    rest = [words for name, words in said.items() if name not in SCHEDULING]
    if rest:
        yield Finding("warning", "versions", f"{listed(rest)}: results may round anew", INSTALL)
    if not lacking and not other:
        yield Finding("ok", "versions", "those of constraints.txt")


def _pinned(text: str) -> dict[str, str]:
    lines = (line.split("#")[0].strip().partition("==") for line in text.splitlines())
    return {_normal(name): version for name, _, version in lines if version}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def check_git(root: Path) -> Iterator[Finding]:
    """Whether git is there and has a commit, which experiments start from."""
    if shutil.which("git") is None:
        yield Finding("fault", "git", "not there", "install it (Debian: apt-get install git)")
        return
    head = try_git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    if head is not None:
        yield Finding("ok", "git", f"commit {head[:12]}")
        return
    settings = root / ".dvc/config.local"
    if settings.is_file() and "no_scm" in settings.read_text(encoding="utf-8"):
        yield Finding("warning", "git", "off (no_scm): no experiments, no sweeps, no compare")
        return
    yield Finding(
        "fault",
        "git",
        f"{root} has no commit, from which experiments start",
        "git init && git add --all && git commit --message Start",
    )


# what is in use ----------------------------------------------------------------------------------


def check_locks(root: Path) -> Iterator[Finding]:
    """Tell locks that are held, locks that are left over, and copies that runs left behind."""
    found = [*_dvc_locks(root), *_own_locks(root)]
    yield from found or [Finding("ok", "locks", "none is held, none is left over")]


def _dvc_locks(root: Path) -> Iterator[Finding]:
    number = number_in_lock(root)
    if number:
        found = f"{LOCK} is held by process {number}"
        yield Finding("warning", "locks", found, "wait for it, or end it")
    remove = shlex.join(["rm", str(root / RWLOCK)])
    try:
        holders = read_holders(root)
    except ValueError:
        yield Finding("fault", "locks", f"{RWLOCK} was cut off", remove)
        return
    for pid, command in holders:
        died = holder_has_died(pid, command)
        if died:
            yield Finding("fault", "locks", f"{RWLOCK} {died}", remove)
        elif is_at_work((pid, command)):
            found = f"process {pid} is at work ({command})"
            yield Finding("warning", "locks", found, "wait for it, or end it")


def _own_locks(root: Path) -> Iterator[Finding]:
    holder = holder_of(root / WORKSPACE)
    if holder is not None:
        yield Finding("warning", "locks", f"the working tree is held by {holder}", "wait for it")
    for clone, why in kept_clones(root).items():
        reason = (why.splitlines() or ["?"])[0]
        yield Finding(
            "warning",
            "copies",
            f"{clone} is of a run that failed ({reason})",
            shlex.join(["rm", "-r", str(clone)]),
        )


# where results lie -------------------------------------------------------------------------------


def check_storage(root: Path) -> Iterator[Finding]:
    """Whether results become links to DVC's cache, and whether a remote has them too."""
    try:
        storage = storage_of(root)
    except GraphError as err:
        yield Finding("fault", "dvc", str(err), "dvc init")
        return
    first = storage.links[0]
    if first == "copy" or (first == "reflink" and "hardlink" not in storage.links):
        yield Finding(
            "warning",
            "cache",
            f"results come as {' or '.join(storage.links)}, which may take the disk twice",
            "dvc config cache.type hardlink,reflink,symlink,copy",
        )
    elif not _can_link(storage.cache, root):
        yield Finding(
            "warning",
            "cache",
            f"no hard links between {root} and {storage.cache}: copies take the disk twice",
            f"dvc cache dir FOLDER, on the disk of {root}",
        )
    else:
        yield Finding("ok", "cache", f"results are links ({first}) to {storage.cache}")
    if storage.remotes:
        yield Finding("ok", "remote", listed(storage.remotes))
    else:
        yield Finding(
            "warning",
            "remote",
            "none: what is not in git is on this disk alone",
            "dvc remote add --default shelf /mnt/shelf, then dvc push",
        )


def _can_link(cache: Path, root: Path) -> bool:
    """Try a hard link from the cache into the project."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        beside = root / ".dvc"
        with (
            tempfile.TemporaryDirectory(dir=cache) as here,
            tempfile.TemporaryDirectory(dir=beside) as there,
        ):
            (Path(here) / "file").touch()
            os.link(Path(here) / "file", Path(there) / "file")
    except OSError:
        return False
    return True


def check_model_in_use(root: Path) -> Iterator[Finding]:
    """Whether the link to the model in use leads where the tags say, to a whole model."""
    try:
        registry = read_registry(root)
    except GitError:  # told by git
        return
    if registry.in_use is None:
        yield Finding("ok", "model", "none was promoted")
        return
    version = registry.name(registry.in_use)
    if is_in_place(root, registry.in_use):
        yield Finding("ok", "model", f"{version} ({LINK})")
    else:
        found = f"{version} is in use, but {LINK} does not lead to it, or it is not whole"
        yield Finding("fault", "model", found, f"regraft promote {version}")


def check_disk(root: Path, params: Params, machine: Machine) -> Iterator[Finding]:
    """Compare the free disk with what packed pixels and cached activations may take."""
    try:
        count = _count_images(root, params)
    except RegraftError:  # told by the parameters, or by ingest
        return
    packed = bytes_of(count, params.augment.views, params.augment.image_px)
    cached = params.finetune.cache_gb * GIGABYTE
    scratch = root / machine.scratch
    free = shutil.disk_usage(root).free
    free_scratch = shutil.disk_usage(scratch if scratch.is_dir() else root).free
    found = (
        f"{free / GIGABYTE:.1f} GB free; packed pixels of {plural(count, 'image')} take up to "
        f"{packed / GIGABYTE:.1f} GB, cached activations up to {cached / GIGABYTE:.1f} GB"
    )
    if free < packed:
        yield Finding(
            "fault", "disk", found, "free some, or lower augment.image_px or augment.views"
        )
    elif min(free - packed, free_scratch) < cached:
        yield Finding(
            "warning",
            "disk",
            f"{found}: what does not fit is computed again",
            "REGRAFT_SCRATCH on a larger disk, or a smaller finetune.cache_gb",
        )
    else:
        yield Finding("ok", "disk", found)


def _count_images(root: Path, params: Params) -> int:
    manifest = root / MANIFEST
    if manifest.is_file():
        return len(read_manifest(manifest).rows)
    return len(list_images(root / params.ingest.source).images)


def check_gpu(machine: Machine) -> Iterator[Finding]:
    """Whether torch sees the GPUs that are there."""
    import torch  # noqa: PLC0415 - takes seconds

    there: Sequence[str] = visible_gpus()
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(one) for one in range(torch.cuda.device_count())]
        yield Finding("ok", "gpu", listed(names))
    elif machine.device == "cuda":
        yield Finding(
            "fault", "gpu", "REGRAFT_DEVICE is cuda, and torch sees none", "unset REGRAFT_DEVICE"
        )
    elif there:
        yield Finding(
            "warning",
            "gpu",
            f"nvidia-smi lists {len(there)}, torch {torch.__version__} sees none",
            "a driver for the CUDA of this torch: python -c 'import torch; torch.cuda.init()'",
        )
    else:
        yield Finding("ok", "gpu", f"none; {plural(usable_cores(), 'core')} compute")
