"""DVC's own graph: the stages in its order, what each stands on, which are stale and why.

The only module that touches DVC's internals; tests/test_graph.py pins what it relies on.
"""

import difflib
import hashlib
import json
import logging
import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dvc.config import Config
from dvc.dependency.param import ParamsDependency
from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.output import Output
from dvc.repo import Repo
from dvc.repo.reproduce import get_active_graph, plan_repro
from dvc.stage import PipelineStage, create_stage
from dvc.stage import Stage as DvcStage
from dvc.stage.cache import StageCache
from dvc.stage.loader import StageLoader
from dvc.stage.serialize import to_single_stage_lockfile
from dvc.utils.flatten import flatten
from dvc.utils.serialize import load_yaml, modify_yaml
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.tree import Tree

from flows.errors import GraphError
from flows.stages.holders import explain_lock
from tasks.check import check
from tasks.params_file import load_params

GRAPH_FILE, LOCK_FILE = "dvc.yaml", "dvc.lock"
GUARD = "check"  # the stage that looks at params.yaml: nothing works on its results
NO_GIT = (
    "Run `git init`, `git add --all` and `git commit` there; or, to do without experiments, "
    "write no_scm = true below [core] into .dvc/config.local"
)
WORKSPACE_STATE = "workspace"  # DVC's word for the files as they are
UNSET = "unset"  # of a value that params.yaml or dvc.lock lacks
_ONE_AT_A_TIME = threading.RLock()  # DVC's objects are not made for threads


@dataclass(frozen=True, slots=True)
class Stage:
    """One node of DVC's graph. Paths are relative to the project's root, with forward slashes."""

    name: str  # as `dvc repro --single-item` takes it at the root; of a tracked file, its .dvc file
    upstream: tuple[str, ...]
    deps: tuple[str, ...]
    outs: tuple[str, ...]


def find_root(start: Path) -> Path:
    """Find the project's root: the nearest folder with a .dvc folder, `start` or above.

    Raises:
        GraphError: There is none.
    """
    try:
        return Path(Repo.find_root(str(start)))
    except NotDvcRepoError as err:
        raise GraphError(
            f"{start} is in no DVC project; run from the project's folder, or `dvc init` there"
        ) from err


def read_graph(root: Path) -> list[Stage]:
    """Read the stages that a plain `dvc repro` at the root would visit, in its order.

    Raises:
        GraphError: dvc.yaml is missing or cannot be read; the message is DVC's own.
        ParamsError: params.yaml is at fault.
    """
    with _explaining(root), _open(root) as repo:
        return _stages(repo, root)


def read_state(root: Path) -> tuple[list[Stage], dict[str, list[str]]]:
    """Read the graph, and why DVC would run each stage now, as `why_stale` tells it.

    Raises:
        GraphError: As `read_graph`.
        ParamsError: As `read_graph`.
    """
    with _explaining(root), _open(root) as repo:
        stages = _stages(repo, root)
        with repo.lock:
            return stages, {stage.name: _why(_find(repo, stage.name)) for stage in stages}


@contextmanager
def _explaining(root: Path) -> Iterator[None]:
    """Where DVC stumbles over a value of params.yaml, say so instead: check knows better."""
    try:
        yield
    except (GraphError, UnicodeEncodeError):  # DVC can hash no name that is no UTF-8
        check(load_params(root / "params.yaml"), root)
        raise


def _stages(repo: Repo, root: Path) -> list[Stage]:
    graph = get_active_graph(repo.index.graph)
    own = [node for node in graph if node.path_in_repo == GRAPH_FILE]
    if not own:
        raise GraphError(f"{root / GRAPH_FILE} holds no stage; the flow runs the stages of it")
    order = plan_repro(graph, own)
    return [_describe(node, list(graph.successors(node)), root) for node in order]


def choose_stages(
    graph: Sequence[Stage], names: Sequence[str], *, follow: bool = False
) -> list[Stage]:
    """Give the named stages in the graph's order; all of them where no name is given.

    Args:
        graph: All stages.
        names: Of the stages.
        follow: Whether the stages that stand on them, directly or not, are chosen too.

    Raises:
        GraphError: A name is no stage; the message names the nearest ones.
    """
    known = [stage.name for stage in graph]
    unknown = [name for name in dict.fromkeys(names) if name not in known]
    if unknown:
        raise GraphError("\n".join(_unknown(name, known) for name in unknown))
    chosen = set(names)
    if follow:
        chosen |= {s.name for s in graph if chosen & set(all_upstream(graph, s.name))}
    return [stage for stage in graph if not names or stage.name in chosen]


def all_upstream(graph: Sequence[Stage], name: str) -> list[str]:
    """Names of every stage that a stage stands on, directly or not, in the graph's order."""
    direct = {stage.name: stage.upstream for stage in graph}
    seen: set[str] = set()
    waiting = list(direct[name])
    while waiting:
        stage = waiting.pop()
        if stage not in seen:
            seen.add(stage)
            waiting.extend(direct[stage])
    return [stage.name for stage in graph if stage.name in seen]


def why_stale(root: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Say why DVC would run each of some stages now, a phrase for each change; none if unchanged.

    Where DVC cannot tell, its own words are the reason, and where another process holds the files,
    that process: running the stage will meet it.

    Raises:
        GraphError: The project cannot be read, or has no such stage.
    """
    with _open(root) as repo, repo.lock:
        return {name: _why(_find(repo, name)) for name in names}


def _why(node: DvcStage) -> list[str]:
    try:
        status: list[Any] = next(iter(node.status().values()), [])
        if status and _never_ran(node):
            return ["never ran"]
        return [phrase for entry in status for phrase in _phrases(entry, node)]
    except DvcException as err:
        return [_with_causes(err)]


def restore(root: Path, name: str, *, pull: bool = False) -> bool:
    """Bring the outs of a stage that ran before from the same inputs, as `dvc repro` would.

    Args:
        root: The project.
        name: Of the stage.
        pull: Whether what the cache lacks is fetched from the remote, as by `dvc repro --pull`.

    Returns:
        False where DVC remembers no such run; nothing has changed then.

    Raises:
        GraphError: Another process holds the files.
    """
    with _open(root) as repo, repo.lock:
        if not _is_in_run_cache(repo, name, pull=pull):
            return False
        repo._reset()  # the probe has other hashes by now
        with repo.scm_context(quiet=True):
            node = _find(repo, name)
            node.reproduce()
            node.dump(update_pipeline=False)
    return True


def is_remembered(root: Path, name: str) -> bool:
    """Tell whether `restore` would bring the outs of a stage; changes nothing.

    Raises:
        GraphError: The project cannot be read, or has no such stage.
    """
    with _open(root) as repo, repo.lock:
        return _is_in_run_cache(repo, name, pull=False)


def _is_in_run_cache(repo: Repo, name: str, *, pull: bool) -> bool:
    """Tell whether DVC has what a stage makes of its inputs; leaves other hashes in the repo."""
    repo.stage_cache = _RunCache(repo)
    probe = _find(repo, name)
    try:
        probe.save_deps()
        for out in probe.outs:
            out.hash_info = HashInfo()  # else dvc.lock's outs count as those of these deps
        if pull:
            repo.stage_cache.pull_outs(probe)
        repo.stage_cache.restore(probe, dry=True)
    except (DvcException, OSError):  # RunCacheNotFoundError, or a dep is missing
        return False
    return True


class _RunCache(StageCache):  # type: ignore[misc]
    """DVC's run-cache, which takes the current folder for the project's, wherever that is."""

    def _create_stage(self, cache: dict[str, Any], wdir: str | None = None) -> DvcStage:
        outs = [out["path"] for out in cache["outs"]]
        path = os.path.join(self.repo.root_dir, GRAPH_FILE)
        stage = create_stage(
            PipelineStage, repo=self.repo, path=path, cmd=cache["cmd"], wdir=wdir, outs=outs
        )
        StageLoader.fill_from_lock(stage, cache)
        return stage

    def pull_outs(self, stage: DvcStage) -> None:
        """Fetch what a stage made elsewhere from the same inputs."""
        cache = self._load(stage)
        if cache:
            known = self._create_stage(cache, wdir=stage.wdir)
            for objects in known.get_used_objs().values():
                self.repo.cloud.pull(objects)


def run_key(root: Path, name: str) -> str:
    """Name what a stage is about to compute: the same for the same command, inputs and values."""
    with _open(root) as repo:
        node = _find(repo, name)
        alone = f"{name}-{hashlib.sha256(str(root).encode()).hexdigest()[:16]}"
        if node.cmd is None:  # a .dvc file, which DVC brings up to date by hashing
            return alone.replace(os.sep, "-")
        try:
            node.save_deps()
        except (DvcException, OSError):  # a dep is missing; running the stage will tell
            return alone
        inputs = to_single_stage_lockfile(node)
        inputs.pop("outs", None)
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]


def order_lock(root: Path, graph: Sequence[Stage], before: Collection[str]) -> None:
    """Put the new entries of dvc.lock into the graph's order, in which `dvc repro` writes them.

    Args:
        root: The project.
        graph: All stages.
        before: Names of the entries that were there; they keep their places.
    """
    now = locked_stages(root)
    new = [stage.name for stage in graph if stage.name in now and stage.name not in before]
    if now[len(now) - len(new) :] == new:
        return
    with modify_yaml(str(root / LOCK_FILE)) as content:
        for name in new:
            content["stages"][name] = content["stages"].pop(name)


def locked_outs(root: Path, name: str) -> dict[str, dict[str, Any]]:
    """Give what dvc.lock says of a stage's outs: path -> md5, size and number of files."""
    return {out["path"]: dict(out) for out in _locked(root).get(name, {}).get("outs", [])}


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a project keeps what stages make, and how it comes from there into the project."""

    cache: Path
    links: tuple[str, ...]  # the kinds that DVC tries, in their order
    remotes: tuple[str, ...]


def storage_of(root: Path) -> Storage:
    """Tell where a project keeps what stages make.

    Raises:
        GraphError: The project or its settings cannot be read; the message is DVC's own.
    """
    with _open(root) as repo:
        links = repo.config["cache"].get("type") or ["reflink", "copy"]  # DVC's own default
        return Storage(Path(repo.cache.local_cache_dir), tuple(links), tuple(repo.config["remote"]))


def locked_stages(root: Path) -> list[str]:
    """Names of the stages that dvc.lock holds, in its order."""
    return list(_locked(root))


def _locked(root: Path) -> dict[str, Any]:
    path = root / LOCK_FILE
    return _stages_of(path, path.stat().st_mtime_ns) if path.exists() else {}


@lru_cache(maxsize=8)
def _stages_of(lock: Path, written: int) -> dict[str, Any]:
    """Read a dvc.lock as it was written at a time; reading it takes a tenth of a second."""
    stages: dict[str, Any] = load_yaml(str(lock)).get("stages", {})
    return stages


def share_cache(root: Path, clone: Path) -> None:
    """Let a clone use the project's cache and remotes; what DVC remembers of files stays in it."""
    with _open(root) as repo:  # which has made the path of a folder whole
        cache = repo.cache.local_cache_dir
        remotes = {name: one["url"] for name, one in repo.config["remote"].items()}
    with Config(str(clone / ".dvc")).edit("local") as settings:
        settings["cache"]["dir"] = cache
        settings["core"]["site_cache_dir"] = str(clone / ".dvc/tmp/site")
        for name, url in remotes.items():
            if os.path.isabs(url):
                settings["remote"].setdefault(name, {})["url"] = os.path.abspath(url)


def restore_outs(root: Path) -> None:
    """Bring the outs that dvc.lock names from the cache, as far as they are there."""
    with _open(root) as repo:
        repo.checkout(allow_missing=True)


def uncached_outs(root: Path) -> list[str]:
    """Outs that git keeps instead of DVC's cache, relative to the root, as far as they exist."""
    with _open(root) as repo:
        outs = [_relative(out.fs_path, root) for out in repo.index.outs if not out.use_cache]
    return [out for out in outs if (root / out).exists()]


def made_paths(root: Path) -> set[str]:
    """Every path that some stage or .dvc file of the project makes, relative to the root."""
    with _open(root) as repo:
        return {_relative(out.fs_path, root) for out in repo.index.outs}


Changes = dict[str, tuple[Any, Any]]  # key path -> a value in two states, None where it has none


def diff_params(root: Path, one: str, other: str) -> Changes:
    """Tell which parameters differ between two states of the project, as `dvc params diff`.

    A state is a commit, branch, tag or experiment, or `workspace` for the files as they are.

    Raises:
        GraphError: There is no such state, or it cannot be read; the message is DVC's own.
    """
    with _open(root) as repo:
        return _changes(repo.params.diff(one, other))


def diff_metrics(root: Path, one: str, other: str) -> Changes:
    """Give the metrics of two states, as `dvc metrics diff --all`; what differs and what does not.

    Raises:
        GraphError: As `diff_params`.
    """
    with _open(root) as repo:
        return _changes(repo.metrics.diff(one, other, all=True))


def _changes(told: dict[str, Any]) -> Changes:
    return {
        key: (change["old"], change["new"])
        for _, keys in sorted(told.get("diff", {}).items())
        for key, change in sorted(keys.items())
    }


def files_at(root: Path, state: str, paths: Collection[str]) -> dict[str, Path]:
    """Find outs of a state: path in the project -> file in DVC's cache, which may lack it.

    Raises:
        GraphError: As `diff_params`.
    """
    if state == WORKSPACE_STATE:
        return {path: root / path for path in paths}
    with _open(root) as repo, repo.switch(state):
        top = Path(repo.root_dir)
        outs = {_relative(out.fs_path, top): out for out in repo.index.outs if out.hash_info}
        return {
            path: Path(outs[path].cache.oid_to_path(outs[path].hash_info.value))
            for path in paths
            if path in outs
        }


def stale_at(root: Path, state: str) -> dict[str, list[str]]:
    """Say of a commit why its results are not those of its own code and values, by stage.

    Its dvc.lock is compared with what it holds beside it; nothing is checked out. What git does not
    hold and no stage makes, such as images that are not tracked or lie outside of the repository,
    is not looked at; nor are folders whose own .gitignore keeps something out.

    Raises:
        GraphError: As `diff_params`.
    """
    with _open(root) as repo, repo.switch(state):
        made = {out.fs_path: out.hash_info for out in repo.index.outs}
        stale = {_name(node): list(_changes_within(node, made)) for node in repo.index.stages}
    return {name: why for name, why in stale.items() if why and name != GUARD}


def _changes_within(node: DvcStage, made: Mapping[str, HashInfo]) -> Iterator[str]:
    if _never_ran(node):
        yield "never ran"
        return
    if isinstance(node, PipelineStage) and node.cmd_changed:
        yield "another command"
    for dep in node.deps:
        if dep.fs_path in made:
            if dep.hash_info != made[dep.fs_path]:
                yield f"{dep} modified"
            continue
        outside = dep.fs is not dep.repo.fs  # where .dvcignore acts otherwise for a commit
        if outside or dep.fs.exists(dep.fs.join(dep.fs_path, ".gitignore")):
            continue
        status = dep.workspace_status()
        if status and status != {str(dep): "deleted"}:
            yield from _phrases({"changed deps": status}, node)


def copy_out(root: Path, state: str, path: str, target: Path, *, pull: bool) -> None:
    """Copy an out of a commit from DVC's cache into a folder that is there, empty.

    Args:
        root: The project.
        state: The commit.
        path: Of the out, a folder.
        target: Where its files go.
        pull: Whether what the cache lacks is fetched from DVC's remote.

    Raises:
        GraphError: The commit makes no such out, or the cache lacks it; or as `diff_params`.
    """
    with _open(root) as repo:
        if pull:
            _pull_folder(repo, _hash_of(repo, state, path))
        with repo.switch(state):
            if _find_out(repo, path).changed_cache():
                raise GraphError(
                    f"its {path} is not in DVC's cache here; `dvc fetch --all-tags` or `dvc exp "
                    "pull` brings it where it was pushed, `dvc repro` there makes it again"
                )
            for file in repo.dvcfs.find(f"/{path}"):
                into = target / Path(file).relative_to(f"/{path}")
                into.parent.mkdir(parents=True, exist_ok=True)
                repo.dvcfs.get_file(file, str(into))


def push_out(root: Path, state: str, path: str) -> None:
    """Bring an out of a commit from DVC's cache to DVC's remote.

    Raises:
        GraphError: There is no remote, or it does not take it; or as `copy_out`.
    """
    with _open(root) as repo:
        repo.cloud.push([_hash_of(repo, state, path)])


def _pull_folder(repo: Repo, folder: HashInfo) -> None:
    """Fetch the list of a folder's files, then the files: with the list alone DVC is content."""
    repo.cloud.pull([folder])
    with suppress(FileNotFoundError):  # the remote lacks it too
        repo.cloud.pull([file for _, _, file in Tree.load(repo.cache.local, folder)])


def _hash_of(repo: Repo, state: str, path: str) -> HashInfo:
    """Give what names an out of a commit; the remotes are those of the files as they are."""
    with repo.switch(state):
        found: HashInfo = _find_out(repo, path).hash_info
    return found


def _find_out(repo: Repo, path: str) -> Output:
    top = Path(repo.root_dir)
    for out in repo.index.outs:
        if out.hash_info and _relative(out.fs_path, top) == path:
            return out
    raise GraphError(f"it holds no {path}; `regraft run` makes one, and its dvc.lock names it")


@contextmanager
def _open(root: Path) -> Iterator[Repo]:
    """Open the project, one thread at a time; turn DVC's exceptions into one message."""
    try:
        logging.getLogger("dvc").setLevel(logging.WARNING)  # what it does is told by the flow
        with _ONE_AT_A_TIME, Repo(str(root), _wait_for_lock=True) as repo:
            yield repo
    except NotDvcRepoError as err:
        raise GraphError(f"{root} is not a DVC project; run `dvc init` there") from err
    except (DvcException, AssertionError) as err:  # of an empty path it only asserts
        raise GraphError(_with_causes(err)) from err


def _with_causes(err: BaseException) -> str:
    """Join the messages of an exception and its causes; DVC puts the fact into the last of them.

    Those of its locks are put into other words: they advise to remove the lock of who is at work.
    """
    messages: list[str] = []
    cause: BaseException | None = err
    while cause is not None:
        if str(cause) and str(cause) not in messages:
            messages.append(str(cause))
        cause = cause.__cause__
    said = ": ".join(messages)
    explained = explain_lock(said)
    if explained:
        return explained
    return f"{said}. {NO_GIT}" if said.endswith("is not a git repository") else said


def _find(repo: Repo, name: str) -> DvcStage:
    for node in repo.index.stages:
        if _name(node) == name:
            return node
    raise GraphError(_unknown(name, [_name(node) for node in repo.index.stages]))


def _name(node: DvcStage) -> str:
    """Name a node as seen from the root; DVC's own `addressing` depends on the current folder."""
    if not isinstance(node, PipelineStage):
        return str(node.path_in_repo)
    where = "" if node.path_in_repo == GRAPH_FILE else f"{node.path_in_repo}:"
    return f"{where}{node.name}"


def _describe(node: DvcStage, upstream: list[DvcStage], root: Path) -> Stage:
    return Stage(
        name=_name(node),
        upstream=tuple(sorted(_name(other) for other in upstream)),
        deps=tuple(
            _relative(dep.fs_path, root)
            for dep in node.deps
            if dep.protocol == "local" and not isinstance(dep, ParamsDependency)
        ),
        outs=tuple(_relative(out.fs_path, root) for out in node.outs),
    )


def _relative(path: str, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"{name!r} is no stage of {GRAPH_FILE}.{hint} Stages: {', '.join(known)}."


def _never_ran(node: DvcStage) -> bool:
    return isinstance(node, PipelineStage) and not any(out.hash_info for out in node.outs)


def _phrases(entry: str | dict[str, dict[str, Any]], node: DvcStage) -> Iterator[str]:
    """Say one entry of DVC's status in words: "finetune.head_lr 0.1 -> 0.2", "data/x modified"."""
    if isinstance(entry, str):
        yield entry
        return
    for changes in entry.values():
        for path, change in changes.items():
            if isinstance(change, dict):
                for key in change:
                    yield from _parameters(node, path, key)
            else:
                yield f"{path} {change}"


def _parameters(node: DvcStage, file: str, key: str) -> Iterator[str]:
    """Name each value that changed below a key; a stage that names no key stands on all."""
    dep = next(
        dep
        for dep in node.deps
        if isinstance(dep, ParamsDependency)
        and str(dep) == file
        and (key in dep.params or not dep.params)
    )
    before = flatten({key: (dep.hash_info.value or {}).get(key, UNSET)})
    after = flatten({key: dep.read_params().get(key, UNSET)})
    for leaf in before | after:
        old, new = before.get(leaf, UNSET), after.get(leaf, UNSET)
        if old != new:
            yield f"{leaf} {old} -> {new}"
