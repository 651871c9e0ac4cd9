"""DVC's own graph: the stages in its order, what each stands on, which are stale and why.

The only module that touches DVC's internals; tests/test_graph.py pins what it relies on.
"""

import difflib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.config import Config
from dvc.dependency.param import ParamsDependency
from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.repo import Repo
from dvc.repo.reproduce import get_active_graph, plan_repro
from dvc.stage import PipelineStage
from dvc.stage import Stage as DvcStage

from flows.errors import GraphError
from tasks.check import check
from tasks.params_file import load_params

GRAPH_FILE = "dvc.yaml"


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
    try:
        return _read_graph(root)
    except GraphError:
        check(load_params(root / "params.yaml"), root)  # it knows better what DVC stumbled over
        raise


def _read_graph(root: Path) -> list[Stage]:
    with _open(root) as repo:
        graph = get_active_graph(repo.index.graph)
        own = [node for node in graph if node.path_in_repo == GRAPH_FILE]
        if not own:
            raise GraphError(f"{root / GRAPH_FILE} holds no stage; the flow runs the stages of it")
        order = plan_repro(graph, own)
        return [_describe(node, list(graph.successors(node)), root) for node in order]


def choose_stages(graph: Sequence[Stage], names: Sequence[str]) -> list[Stage]:
    """Give the named stages in the graph's order; all of them where no name is given.

    Raises:
        GraphError: A name is no stage; the message names the nearest ones.
    """
    known = [stage.name for stage in graph]
    unknown = [name for name in dict.fromkeys(names) if name not in known]
    if unknown:
        raise GraphError("\n".join(_unknown(name, known) for name in unknown))
    return [stage for stage in graph if not names or stage.name in names]


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


def why_stale(root: Path, name: str) -> list[str]:
    """Say why DVC would run a stage now, a phrase for each change; nothing when it is unchanged.

    Raises:
        GraphError: DVC cannot tell, or another process holds the files; the message is DVC's own.
    """
    with _open(root) as repo, repo.lock:
        node = _find(repo, name)
        status: list[Any] = next(iter(node.status().values()), [])
        if status and _never_ran(node):
            return ["never ran"]
        return [phrase for entry in status for phrase in _phrases(entry, node)]


def share_cache(root: Path, clone: Path) -> None:
    """Let a clone use the project's cache; what DVC remembers of its files stays in the clone."""
    with _open(root) as repo:
        cache = repo.cache.local_cache_dir
    with Config(str(clone / ".dvc")).edit("local") as settings:
        settings["cache"]["dir"] = cache
        settings["core"]["site_cache_dir"] = str(clone / ".dvc/tmp/site")


def restore_outs(root: Path) -> None:
    """Bring the outs that dvc.lock names from the cache, as far as they are there."""
    with _open(root) as repo:
        repo.checkout(allow_missing=True)


def made_paths(root: Path) -> set[str]:
    """Every path that some stage or .dvc file of the project makes, relative to the root."""
    with _open(root) as repo:
        return {_relative(out.fs_path, root) for out in repo.index.outs}


@contextmanager
def _open(root: Path) -> Iterator[Repo]:
    """Open the project and turn DVC's exceptions into one message."""
    try:
        with Repo(str(root), _wait_for_lock=True) as repo:
            yield repo
    except NotDvcRepoError as err:
        raise GraphError(f"{root} is not a DVC project; run `dvc init` there") from err
    except (DvcException, AssertionError) as err:  # of an empty path it only asserts
        raise GraphError(_with_causes(err)) from err


def _with_causes(err: BaseException) -> str:
    """Join the messages of an exception and its causes; DVC puts the fact into the last of them."""
    messages: list[str] = []
    cause: BaseException | None = err
    while cause is not None:
        if str(cause) and str(cause) not in messages:
            messages.append(str(cause))
        cause = cause.__cause__
    return ": ".join(messages)


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
                yield from (_parameter(node, path, key) for key in change)
            else:
                yield f"{path} {change}"


def _parameter(node: DvcStage, file: str, key: str) -> str:
    dep = next(
        dep
        for dep in node.deps
        if isinstance(dep, ParamsDependency) and str(dep) == file and key in dep.params
    )
    before = (dep.hash_info.value or {}).get(key, "unset")
    return f"{key} {before} -> {dep.read_params().get(key, 'unset')}"
