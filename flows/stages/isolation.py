"""A run with overrides in a clone of its own: the user's tree stays as it is.

The clone shares git's objects and DVC's cache with the project, starts from what the user sees
(uncommitted edits and new files too), and is removed when its results are an experiment.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from flows.errors import IsolationError
from flows.overrides import apply_changes
from flows.stages.graph import made_paths, read_graph, restore_outs, share_cache, why_stale
from flows.stages.runner import run_dvc
from flows.stages.source_images import SourceImages, find_source_images
from tasks.errors import ParamsError
from tasks.params_file import load_params

RUNS = Path(".regraft/runs")
AUTHOR = {
    f"GIT_{role}_{fact}": value
    for role in ("AUTHOR", "COMMITTER")
    for fact, value in (("NAME", "Regraft"), ("EMAIL", "regraft@localhost"))
}


def make_clone(root: Path, name: str, values: Mapping[str, Any]) -> Path:
    """Clone the project as the user sees it, with other values in params.yaml; give the folder.

    Raises:
        IsolationError: There is no commit to start from, the images' path leads elsewhere from a
            clone, or git refuses; nothing stays behind.
        ParamsError: The values do not fit together or into params.yaml.
    """
    _check_start(root)
    clone = root / RUNS / name
    try:
        _clone(root, clone)
        _override(root, clone, values)
        images = find_source_images(root, _source_of(clone))
        _carry_new_files(root, clone, images)
        share_cache(root, clone)
        _link_sources(root, clone, images)
        restore_outs(clone)
    except BaseException:
        remove_clone(clone)
        raise
    return clone


def keep_results(root: Path, clone: Path, name: str) -> None:
    """Save the clone's state as an experiment of that name and bring it into the project.

    Raises:
        IsolationError: DVC or git refuses; the clone stays.
    """
    images = find_source_images(clone, _source_of(clone))  # the user's may have changed since
    new = [path for path in _new_files(clone) if not images.hold(path)]
    include = [word for path in new for word in ("--include-untracked", path)]
    run_dvc(clone, "exp", "save", "--force", "--name", name, *include)
    found = _git(clone, "for-each-ref", "--format=%(refname)", "refs/exps/").split()
    references = [reference for reference in found if reference.endswith(f"/{name}")]
    if len(references) != 1:
        raise IsolationError(f"{clone}: dvc saved no experiment named {name}; found {found}")
    _git(root, "fetch", "--quiet", str(clone), f"+{references[0]}:{references[0]}")


def remove_clone(clone: Path) -> None:
    """Remove a clone; what DVC linked into it stays in the cache."""
    shutil.rmtree(clone, ignore_errors=True)


def experiment_name(root: Path, wish: str) -> str:
    """Make a name that git takes and no experiment of the project has."""
    base = re.sub(r"[^A-Za-z0-9_-]+", "-", wish).strip("-") or "run"
    taken = {line.rsplit("/", 1)[-1] for line in _git(root, "for-each-ref", "refs/exps/").split()}
    taken |= {path.name for path in (root / RUNS).glob("*")}
    numbered = (f"{base}-{number}" for number in range(2, 10_000))
    return next(name for name in (base, *numbered) if name not in taken)


def _check_start(root: Path) -> None:
    """Refuse a project that has no commit, or whose tracked data changed without `dvc add`."""
    if not (root / ".git").exists():
        raise IsolationError(
            f"a run with overrides becomes an experiment, that is a git commit; {root} is not the "
            "top of a git repository. Run `git init`, `git add --all` and `git commit` there, or "
            "put the values into params.yaml and run without overrides"
        )
    if _try_git(root, "rev-parse", "--verify", "--quiet", "HEAD") is None:
        raise IsolationError(
            f"a run with overrides becomes an experiment on top of a commit; {root} has none yet. "
            "Run `git add --all` and `git commit` there, or put the values into params.yaml and "
            "run without overrides"
        )
    for stage in read_graph(root):
        if stage.name.endswith(".dvc") and why_stale(root, stage.name):
            raise IsolationError(
                f"{', '.join(stage.outs)} changed since it was tracked; run `dvc add "
                f"{' '.join(stage.outs)}` first, so that the run sees what you see"
            )


def _clone(root: Path, clone: Path) -> None:
    """Make a clone at the same commit whose files are the user's, uncommitted edits included."""
    clone.parent.mkdir(parents=True, exist_ok=True)
    (clone.parent / ".gitignore").write_text("*\n", encoding="utf-8")
    _git(root, "clone", "--quiet", "--shared", "--no-checkout", str(root), str(clone))
    head = _git(root, "rev-parse", "HEAD").strip()
    _try_git(root, "update-index", "-q", "--refresh")  # else files only touched count as edits
    edits = _git(root, "stash", "create").strip()  # a commit of the edits; touches nothing
    _git(clone, "checkout", "--quiet", "--detach", edits or head)
    _git(clone, "reset", "--quiet", "--mixed", head)
    for fact, value in (("name", "Regraft"), ("email", "regraft@localhost")):
        _git(clone, "config", f"user.{fact}", value)


def _source_of(clone: Path) -> str:
    return load_params(clone / "params.yaml").ingest.source


def _carry_new_files(root: Path, clone: Path, images: SourceImages) -> None:
    """Bring the images, wherever git stands to them, and the other files that git does not know."""
    images_here = [name for name in images.listed if (root / name).is_file()]
    for name in [*images_here, *_new_files(root)]:
        held = images.hold(name)
        if (clone / name).exists() or (held and images.in_place):
            continue
        _place(_link if held else _copy, root / name, clone / name)
    settings = root / ".dvc/config.local"  # ignored by git, but the user's own settings
    if settings.exists():
        shutil.copy2(settings, clone / ".dvc/config.local")


def _override(root: Path, clone: Path, values: Mapping[str, Any]) -> None:
    path = clone / "params.yaml"
    if not path.exists():  # git does not know it yet
        _copy(str(root / "params.yaml"), str(path))
    path.write_text(apply_changes(path.read_text(encoding="utf-8"), values), encoding="utf-8")
    try:
        load_params(path)
    except ParamsError as err:
        said = str(err).replace(f"{clone}{os.sep}", "")
        raise ParamsError(f"params.yaml with these overrides is refused:\n{said}") from err


def _link_sources(root: Path, clone: Path, images: SourceImages) -> None:
    """Bring the files that the graph reads, nothing makes and git ignores, such as data/raw."""
    made = made_paths(clone)
    for path in sorted({dep for stage in read_graph(clone) for dep in stage.deps}):
        outside = path.startswith("..") or Path(path).is_absolute()
        if outside or not (root / path).exists():
            continue
        if made & {path, *map(str, Path(path).parents)}:
            continue
        source, target = root / path, clone / path
        if source.is_symlink():
            _link_anew(source, target)
        elif source.is_dir() and (not target.exists() or PurePosixPath(path) == images.folder):
            _fill_folder(source, target)
        elif not target.exists():
            _place(_link, source, target)


def _link_anew(source: Path, target: Path) -> None:
    """Link to where a link of the user leads; as it stands it may lead elsewhere from a clone."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.symlink_to(source.resolve())


def _fill_folder(source: Path, target: Path) -> None:
    """Link the files that a folder of the clone lacks, whether git knows or ignores them."""
    for folder, folders, files in os.walk(source):
        here = target / Path(folder).relative_to(source)
        here.mkdir(parents=True, exist_ok=True)
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in [*files, *links]:
            if not os.path.lexists(here / name):
                _link(os.path.join(folder, name), str(here / name))


def _place(bring: Callable[[str, str], None], source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    bring(str(source), str(target))


def _link(source: str, target: str) -> None:
    """Give a file, or a link as it stands, a second name; copy it where the file system cannot."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        _copy(source, target)


def _copy(source: str, target: str) -> None:
    shutil.copy2(source, target, follow_symlinks=False)


def _new_files(folder: Path) -> list[str]:
    """List the files that git neither tracks nor ignores, without those of other repositories."""
    listing = _git(folder, "ls-files", "--others", "--exclude-standard", "-z")
    return [name for name in listing.split("\0") if name and not name.endswith("/")]


def _try_git(folder: Path, *arguments: str) -> str | None:
    done = subprocess.run(
        ["git", *arguments],
        check=False,
        cwd=folder,
        env={**os.environ, **AUTHOR},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return os.fsdecode(done.stdout) if done.returncode == 0 else None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],
        check=False,
        cwd=folder,
        env={**os.environ, **AUTHOR},
        capture_output=True,
    )
    if done.returncode:
        said = os.fsdecode(done.stderr).strip()
        raise IsolationError(f"git {arguments[0]} in {folder} failed: {said}")
    return os.fsdecode(done.stdout)
