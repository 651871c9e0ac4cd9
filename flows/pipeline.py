"""The flow: DVC's graph as a Prefect run, one task run a stage; DVC alone decides what is stale."""

# No `from __future__ import annotations`: Prefect could not build the parameters of a served run.

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from flows.artifacts import StageReport, publish_results, publish_stages
from flows.errors import GraphError
from flows.overrides import ParamsOverrides, changes
from flows.stages import isolation
from flows.stages.graph import (
    Stage,
    all_upstream,
    choose_stages,
    find_root,
    read_graph,
    why_stale,
)
from flows.stages.runner import run_stage
from flows.stages.workspace import hold_workspace
from tasks.errors import RegraftError

NO_OVERRIDES = ParamsOverrides()


@flow(name="pipeline", persist_result=False)
def pipeline(stages: tuple[str, ...] = (), overrides: ParamsOverrides = NO_OVERRIDES) -> State[Any]:
    """Run the stages of dvc.yaml; DVC runs, restores or leaves each one, as `dvc repro` does.

    Args:
        stages: Only these stages, in the graph's order. Empty: all of them.
        overrides: Values of params.yaml for this run alone. With any of them set the run works in
            a copy of the project and comes back as a DVC experiment; your files stay as they are.
    """
    log = get_run_logger()
    try:
        root = find_root(Path.cwd())
        values = changes(overrides)
        if values:
            return _run_isolated(root, stages, values)
        with hold_workspace(root, str(flow_run.name), log.info):
            return _run(root, stages)
    except RegraftError as err:
        log.error("%s", err)
        return Failed(message=str(err))


def _run_isolated(root: Path, names: Sequence[str], values: dict[str, Any]) -> State[Any]:
    """Run in a clone with other values; keep its results as an experiment, itself on failure."""
    log = get_run_logger()
    choose_stages(read_graph(root), names)  # a wrong name is told before anything is made
    name = isolation.experiment_name(root, str(flow_run.name))
    for path, value in values.items():
        log.info("override: %s = %s", path, value)
    clone = isolation.make_clone(root, name, values)
    log.info("working in %s", clone)
    try:
        state = _run(clone, names)
        if not state.is_completed():
            message = f"{state.message}\nThe working copy is kept at {clone}"
            return Failed(message=message)
        isolation.keep_results(root, clone, name)
    except Exception:
        log.error("the working copy is kept at %s", clone)
        raise
    except BaseException:  # cancelled
        isolation.remove_clone(clone)
        raise
    isolation.remove_clone(clone)
    kept = f"kept as experiment {name}: `dvc exp show`, `dvc exp apply {name}`"
    log.info("%s", kept)
    return Completed(message=f"{state.message}; {kept}")


def _run(root: Path, names: Sequence[str]) -> State[Any]:
    """Run the chosen stages one after the other; after a failure the rest is skipped."""
    graph = read_graph(root)
    chosen = choose_stages(graph, names)
    _warn_of_stale_upstream(root, graph, chosen)
    reports: list[StageReport] = []
    failure: StageReport | None = None
    for stage in chosen:
        started = time.monotonic()
        why = [] if failure else _why(root, stage)
        blocked_by = f"{failure.stage} failed" if failure else None
        state = stage_task(stage.name, root, why=why, blocked_by=blocked_by, return_state=True)
        report = StageReport(
            stage=stage.name,
            outcome=state.name or state.type.value,
            message=state.message or "",
            why="; ".join(why),
            seconds=time.monotonic() - started,
        )
        reports.append(report)
        failure = report if state.is_failed() else failure
    publish_stages(reports)
    if failure is not None:
        return Failed(message=f"{failure.stage}: {failure.message}")
    publish_results(root, chosen)
    return Completed(message=_summary(reports))


@task(name="stage", task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False, retries=0)
def stage_task(
    stage: str, root: Path, *, why: Sequence[str], blocked_by: str | None = None
) -> State[Any]:
    """Run one stage through DVC where there is a reason; the state says what happened."""
    if blocked_by is not None:
        return Cancelled(name="Skipped", message=blocked_by)
    if not why:
        return Completed(name="Cached", message="unchanged")
    log = get_run_logger()
    log.info("%s: %s", stage, "; ".join(why))
    outcome = run_stage(root, stage, lambda line: log.log(_level(line), "%s", line))
    if outcome.kind == "failed":
        return Failed(message=outcome.message)
    name = "Completed" if outcome.kind == "ran" else "Cached"
    return Completed(name=name, message=outcome.message)


def _why(root: Path, stage: Stage) -> list[str]:
    """Say why DVC would run a stage. If DVC cannot tell, that is a reason: the run will meet it."""
    try:
        return why_stale(root, stage.name)
    except GraphError as err:
        return [str(err)]


def _warn_of_stale_upstream(root: Path, graph: Sequence[Stage], chosen: Sequence[Stage]) -> None:
    """Say which stages that are left out are stale: the chosen ones then work on old files."""
    names = [stage.name for stage in chosen]
    needed = {name for stage in names for name in all_upstream(graph, stage)} - set(names)
    for stage in graph:
        why = _why(root, stage) if stage.name in needed else []
        if why:
            get_run_logger().warning(
                "%s is stale (%s) but not chosen; what follows works on its old results",
                stage.name,
                "; ".join(why),
            )


def _level(line: str) -> int:
    if line.startswith("ERROR:") or " stopped: " in line:
        return logging.ERROR
    return logging.WARNING if line.startswith("WARNING:") else logging.INFO


def _summary(reports: Sequence[StageReport]) -> str:
    """Write "9 stages: 3 ran, 1 restored, 5 unchanged"."""
    words = ("ran", "restored from run-cache", "unchanged")
    counts = [(sum(report.message == word for report in reports), word) for word in words]
    return f"{len(reports)} stages: " + ", ".join(f"{n} {word}" for n, word in counts if n)
