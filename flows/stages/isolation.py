"""A run with overrides in a clone of its own: the user's tree stays as it is.

The clone shares git's objects, DVC's cache and the scratch folder with the project and starts from
what the user sees (uncommitted edits and new files too). It is removed when its results are an
experiment, and after a run that was killed.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ruamel.yaml import YAML

from flows.errors import IsolationError
from flows.overrides import apply_changes
from flows.stages.git import git, try_git
from flows.stages.graph import (
    made_paths,
    read_graph,
    restore_outs,
    share_cache,
    storage_of,
    uncached_outs,
    why_stale,
)
from flows.stages.locks import hold, hold_if_free, holder_of
from flows.stages.source_images import SourceImages, find_source_images
from tasks.errors import ParamsError
from tasks.params_file import load_params
from tasks.runtime.machine import read_machine

RUNS = Path(".regraft/runs")
KEPT = ".kept"  # beside a clone: why it was kept


@dataclass(frozen=True, slots=True)
class Clone:
    """A copy of the project for one run. `lock` is held while the run or a guard of it lives."""

    path: Path
    lock: int
    settings: Mapping[str, str]  # environment variables for its stages


@dataclass(frozen=True, slots=True)
class Base:
    """The project at one moment: its commit, and a commit of the files as they were edited."""

    head: str
    files: str


@contextmanager
def cloned(root: Path, name: str, values: Mapping[str, Any], base: Base) -> Iterator[Clone]:
    """Clone the project as the user sees it, with other values in params.yaml, for one run.

    The clone is removed afterwards unless `keep_clone` was called. Clones that killed runs left
    behind are removed first: what their stages finished is in the cache, and what training had
    learned in the scratch folder, from where a run with the same values goes on.

    Args:
        root: The project.
        name: Of the run.
        values: By key path.
        base: What to start from.

    Raises:
        IsolationError: The images' path leads elsewhere from a clone, or git refuses; nothing
            stays behind.
        ParamsError: The values do not fit together or into params.yaml.
    """
    remove_dead_clones(root)
    path = root / RUNS / name
    with hold(_lock_of(path), name, lambda holder: None) as lock:
        _kept_of(path).unlink(missing_ok=True)  # of the same run, which is tried again
        shutil.rmtree(path, ignore_errors=True)
        try:
            _clone(root, path, base)
            params = path / "params.yaml"
            params.write_text(check_values(path, values), encoding="utf-8")
            images = find_source_images(root, _source_of(path))
            _carry_new_files(root, path, images)
            share_cache(root, path)
            _link_sources(root, path)
            restore_outs(path)
            scratch = os.path.abspath(root / read_machine().scratch)
            yield Clone(path, lock, {"REGRAFT_SCRATCH": scratch})
        finally:
            if not _kept_of(path).exists():
                _remove_clone(path)


def keep_clone(clone: Path, why: str) -> None:
    """Keep a clone after its run, for the user to look at."""
    _kept_of(clone).write_text(why or "no reason is known", encoding="utf-8")


def kept_clones(root: Path) -> dict[Path, str]:
    """Clones of earlier runs that are kept, and why."""
    marks = sorted((root / RUNS).glob(f"*{KEPT}"))
    kept = {mark.with_suffix(""): mark.read_text(encoding="utf-8") for mark in marks}
    return {clone: why for clone, why in kept.items() if clone.is_dir()}


def remove_dead_clones(root: Path) -> list[str]:
    """Remove the clones of runs that were killed; give their names. Kept ones stay."""
    dead = []
    for path in [path for path in sorted((root / RUNS).glob("*")) if path.is_dir()]:
        with hold_if_free(_lock_of(path), "tidying up") as lock:
            if lock is not None and path.is_dir() and not _kept_of(path).exists():
                _remove_clone(path)
                dead.append(path.name)
    return dead


def _lock_of(clone: Path) -> Path:
    return clone.with_name(f"{clone.name}.lock")


def _kept_of(clone: Path) -> Path:
    return clone.with_name(f"{clone.name}{KEPT}")


def _remove_clone(clone: Path) -> None:
    """Remove a clone; what DVC linked into it stays in the cache."""
    shutil.rmtree(clone, ignore_errors=True)
    _lock_of(clone).unlink(missing_ok=True)


def keep_results(root: Path, clone: Path, name: str) -> None:
    """Commit the clone's state as an experiment of DVC's and bring it into the project.

    `dvc exp save` is not used: it commits the outs of every stage as they lie there, so that those
    of a stage that has not run count as made from its new inputs, fails where they do not lie
    there, and puts files of DVC's own into the commit.

    Raises:
        GitError: Git refuses; the clone stays.
    """
    images = find_source_images(clone, _source_of(clone))  # the user's may have changed since
    new = [path for path in _new_files(clone) if not images.hold(path)]
    head = git(clone, "rev-parse", "HEAD").strip()
    git(clone, "add", "--update")
    paths = "\0".join([*new, *uncached_outs(clone)])
    from_input = ("--pathspec-from-file=-", "--pathspec-file-nul")
    git(clone, "--literal-pathspecs", "add", "--force", *from_input, given=paths)
    tree = git(clone, "write-tree").strip()
    message = f"Regraft: run {name}"
    commit = git(clone, "commit-tree", tree, "-p", head, "-m", message).strip()
    reference = f"refs/exps/{head[:2]}/{head[2:]}/{name}"
    git(clone, "update-ref", reference, commit)
    git(root, "fetch", "--quiet", "--no-tags", str(clone), f"+{reference}:{reference}")


def has_experiment(root: Path, name: str) -> bool:
    """Tell whether the project has an experiment of this name."""
    return bool(_references(root, name))


def experiment_outs(root: Path, name: str) -> dict[str, Path]:
    """Find what the stages of an experiment made: path in the project -> file in DVC's cache.

    Raises:
        IsolationError: There is no such experiment, or its dvc.lock cannot be read.
    """
    references = _references(root, name)
    if not references:
        raise IsolationError(f"{root} has no experiment {name}")
    cache = storage_of(root).cache / "files/md5"
    stages = YAML(typ="safe").load(git(root, "show", f"{references[-1]}:dvc.lock"))["stages"]
    outs = [out for stage in stages.values() for out in stage.get("outs", [])]
    return {out["path"]: cache / out["md5"][:2] / out["md5"][2:] for out in outs}


def _references(root: Path, name: str) -> list[str]:
    found = git(root, "for-each-ref", "--format=%(refname)", "refs/exps/").split()
    return [reference for reference in found if reference.endswith(f"/{name}")]


def experiment_name(root: Path, wish: str, remote: str | None = None) -> str:
    """Make a name that git takes and no experiment or living run of the project has.

    Args:
        root: The project.
        wish: The name, which gets a number where it is taken.
        remote: A git remote whose experiments count too.

    Raises:
        GitError: Git refuses.
    """
    base = re.sub(r"[^A-Za-z0-9_-]+", "-", wish).strip("-") or "run"
    listed = git(root, "for-each-ref", "refs/exps/")
    if remote:
        listed += git(root, "ls-remote", "--quiet", remote, "refs/exps/*")
    taken = {line.rsplit("/", 1)[-1] for line in listed.split()}
    taken |= {lock.stem for lock in (root / RUNS).glob("*.lock") if holder_of(lock)}
    numbered = (f"{base}-{number}" for number in range(2, 10_000))
    return next(name for name in (base, *numbered) if name not in taken)


def base_of(root: Path) -> Base:
    """Take the project as it is now, uncommitted edits included; touches nothing.

    Raises:
        IsolationError: It has no commit, or tracked data that changed without `dvc add`.
    """
    _check_start(root)
    head = git(root, "rev-parse", "HEAD").strip()
    try_git(root, "update-index", "-q", "--refresh")  # else files only touched count as edits
    return Base(head, git(root, "stash", "create").strip() or head)


def _check_start(root: Path) -> None:
    if not (root / ".git").exists():
        raise IsolationError(
            f"a run with overrides becomes an experiment, that is a git commit; {root} is not the "
            "top of a git repository. Run `git init`, `git add --all` and `git commit` there, or "
            "put the values into params.yaml and run without overrides"
        )
    if try_git(root, "rev-parse", "--verify", "--quiet", "HEAD") is None:
        raise IsolationError(
            f"a run with overrides becomes an experiment on top of a commit; {root} has none yet. "
            "Run `git add --all` and `git commit` there, or put the values into params.yaml and "
            "run without overrides"
        )
    tracked = [stage for stage in read_graph(root) if stage.name.endswith(".dvc")]
    stale = why_stale(root, [stage.name for stage in tracked])
    for stage in tracked:
        if stale[stage.name]:
            raise IsolationError(
                f"{', '.join(stage.outs)} changed since it was tracked; run `dvc add "
                f"{' '.join(stage.outs)}` first, so that the run sees what you see"
            )


def _clone(root: Path, clone: Path, base: Base) -> None:
    """Make a clone at the same commit whose files are the user's, uncommitted edits included.

    Made by hand because `git clone` does not share the objects of a shallow repository.
    """
    clone.parent.mkdir(parents=True, exist_ok=True)
    (clone.parent / ".gitignore").write_text("*\n", encoding="utf-8")
    kind = git(root, "rev-parse", "--show-object-format").strip()
    git(root, "init", "--quiet", f"--object-format={kind}", str(clone))
    shared = root / git(root, "rev-parse", "--git-path", "objects").strip()
    (clone / ".git/objects/info/alternates").write_text(f"{shared.resolve()}\n", encoding="utf-8")
    shallow = root / git(root, "rev-parse", "--git-path", "shallow").strip()
    if shallow.exists():
        shutil.copy(shallow, clone / ".git/shallow")
    for fact, value in (("name", "Regraft"), ("email", "regraft@localhost")):
        git(clone, "config", f"user.{fact}", value)
    git(clone, "checkout", "--quiet", "--detach", base.files)
    git(clone, "reset", "--quiet", "--mixed", base.head)


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


def check_values(root: Path, values: Mapping[str, Any]) -> str:
    """Give the user's params.yaml with other values at some key paths.

    Raises:
        ParamsError: They do not fit together or into params.yaml; one line for each problem.
    """
    text = apply_changes((root / "params.yaml").read_text(encoding="utf-8"), values)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            load_params(path)
        except ParamsError as err:
            problems = str(err).replace(f"{folder}{os.sep}", "").splitlines()
            said = "\n".join(_without_place(problem, values) for problem in problems)
            raise ParamsError(f"params.yaml with these overrides is refused:\n{said}") from err
    return text


def _without_place(problem: str, values: Mapping[str, Any]) -> str:
    """Leave out the line of params.yaml where a problem is of a value that does not stand there."""
    found = re.match(r"params\.yaml:\d+: (([^\s:]+).*)", problem)
    if found is None:
        return problem
    words, key = found.groups()
    given = any(f"{key}.".startswith(f"{path}.") for path in values)
    unknown = "is not a parameter" in words and any(path.startswith(f"{key}.") for path in values)
    return words if given or unknown else problem


def _link_sources(root: Path, clone: Path) -> None:
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
            if not target.exists():
                target.unlink(missing_ok=True)
                _place(_link, source, target)
        elif source.is_dir():
            _fill_folder(source, target)
        elif not target.exists():
            _place(_link, source, target)


def _fill_folder(source: Path, target: Path) -> None:
    """Link the files that a folder of the clone lacks, whether git knows or ignores them."""
    for folder, folders, files in os.walk(source):
        folders[:] = [name for name in folders if name != "__pycache__"]
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
    """Give a file a second name; copy it where the file system cannot.

    What is a link already becomes one to where it leads: as it stands it may lead elsewhere from a
    clone.
    """
    if os.path.islink(source) and os.path.exists(source):
        os.symlink(os.path.realpath(source), target)
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        _copy(source, target)


def _copy(source: str, target: str) -> None:
    shutil.copy2(source, target, follow_symlinks=False)


def _new_files(folder: Path) -> list[str]:
    """List the files that git neither tracks nor ignores, without those of other repositories."""
    listing = git(folder, "ls-files", "--others", "--exclude-standard", "-z")
    return [name for name in listing.split("\0") if name and not name.endswith("/")]
