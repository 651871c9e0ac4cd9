"""Runs stages of dvc.yaml as task runs of a Prefect flow; DVC alone decides what is stale.

In the user's working tree, or with other values in a clone of it whose results become an
experiment.
"""

# No `from __future__ import annotations`: Prefect could not build the parameters of a served run.

import logging
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect import allow_failure, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, Running

from flows.artifacts import (
    StageProgress,
    StageReport,
    publish_results,
    publish_stages,
    read_metrics,
)
from flows.assets import asset_key, emit_asset
from flows.durations import in_time, last_seconds
from flows.endings import cancel, fail
from flows.errors import GraphError
from flows.stages import isolation
from flows.stages.git import REMOTE
from flows.stages.graph import (
    GUARD,
    Stage,
    all_upstream,
    choose_stages,
    find_root,
    locked_stages,
    order_lock,
    read_graph,
    read_state,
    restore,
    run_key,
    why_stale,
)
from flows.stages.locks import WORKSPACE, hold, hold_lane, lanes_of
from flows.stages.runner import Outcome, Runner
from tasks.artifacts.words import listed
from tasks.errors import RegraftError
from tasks.evaluation.words import headline, headline_on_val
from tasks.runtime.machine import read_machine

TWINS = Path(".regraft/twins")  # a lock for each computation that is going on
BLOCKING = {"Failed", "Skipped", "Cancelled"}
TELLS_TEST = "evaluate"  # the stage whose numbers are those of test
RETRY_SECONDS = [30.0, 120.0]
SHOWN_REASONS = 4  # in the log; the table of stages has all of them


@dataclass(frozen=True, slots=True)
class Wish:
    """What a run is asked to do.

    Attributes:
        stages: Their names; empty: all of them.
        follow: Whether the stages that stand on them run too.
        force: Stages that run although nothing changed.
        values: Values of params.yaml for this run alone, by key path.
        base: What a run with values starts from; None: the project as it is then.
        test_is_hidden: Whether the page keeps quiet about test, as for one of many that val is to
            choose from.
    """

    stages: Sequence[str] = ()
    follow: bool = False
    force: Collection[str] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    base: isolation.Base | None = None
    test_is_hidden: bool = False


class Run:
    """What the task runs of one flow run share: the stages, the runner, what became of each.

    Args:
        home: The project, whose machine all its runs share.
        chosen: The stages, in the graph's order.
        graph: All stages.
        stale: Why each of them would run now.
        runner: Runs them in the project itself or in a clone.
        wish: What the run is asked to do.
        experiment: Name of the experiment that the clone becomes.
    """

    def __init__(
        self,
        home: Path,
        chosen: Sequence[Stage],
        graph: Sequence[Stage],
        stale: Mapping[str, list[str]],
        runner: Runner,
        wish: Wish,
        *,
        experiment: str | None = None,
    ) -> None:
        self.home, self.root, self.runner, self.wish = home, runner.root, runner, wish
        self.chosen = {stage.name: stage for stage in chosen}
        self.graph, self.experiment = graph, experiment
        self.reports: dict[str, StageReport] = {}
        self._stale = dict(stale)

    def upstream(self, name: str) -> list[str]:
        """Chosen stages that a stage stands on, directly or through stages that are left out."""
        return [other for other in all_upstream(self.graph, name) if other in self.chosen]

    def waits_for(self, name: str) -> list[str]:
        """Chosen stages that come right before a stage, none before another of them."""
        before = self.upstream(name)
        earlier = {first for other in before for first in self.upstream(other)}
        return [other for other in before if other not in earlier]

    def stale_and_left_out(self) -> dict[str, list[str]]:
        """Stages that are not chosen though a chosen one stands on them, and why they are stale."""
        needed = {other for name in self.chosen for other in all_upstream(self.graph, name)}
        needed -= {*self.chosen, GUARD}
        left_out = [stage.name for stage in self.graph if stage.name in needed]
        return {name: self._stale[name] for name in left_out if self._stale[name]}

    def blocked_by(self, name: str) -> str | None:
        """Name a stage before this one that did not do its work; None where all did."""
        found = (other for other in self.upstream(name) if self._outcome(other) in BLOCKING)
        return next(found, None)

    def why(self, name: str) -> list[str]:
        """Say why a stage has to run; nothing where it has not."""
        if any(self._outcome(other) != "unchanged" for other in self.upstream(name)):
            self._stale |= why_stale(self.root, [name])
        return self._stale[name] or (["asked for"] if name in self.wish.force else [])

    def _outcome(self, name: str) -> str:
        report = self.reports[name]
        return report.message if report.outcome == "Cached" else report.outcome

    def tell(self, name: str, *, ran: bool) -> None:
        """Emit the asset that a stage made, or that is there as it was."""

        def key(stage: str) -> str:
            return asset_key(self.home, stage, self.experiment)

        before = [key(other) for other in self.waits_for(name)]
        shown = not (self.wish.test_is_hidden and name == TELLS_TEST)
        emit_asset(self.root, name, key(name), before, ran=ran, with_metric=shown)

    def do(self, name: str, say: Callable[[str], None]) -> Outcome:
        """Restore a stage, or run it on a lane of the machine; another run may be at the same."""
        if name not in self.wish.force and self._restore(name):
            return Outcome("restored", "restored from run-cache")
        told: list[str] = []

        def wait(holder: str) -> None:
            told.append(holder)
            say(f"waiting: {holder} is computing the same")

        twin = self.home / TWINS / f"{run_key(self.root, name)}.lock"
        run = f"{flow_run.name}, {name}"
        with hold(twin, run, wait) as lock:
            if told and name not in self.wish.force and self._restore(name):
                return Outcome("restored", "restored from run-cache")
            try:
                return self._compute(name, say, run, lock)
            finally:
                twin.unlink(missing_ok=True)

    def _restore(self, name: str) -> bool:
        try:
            return restore(self.root, name, pull=REMOTE in os.environ)
        except GraphError:  # another process holds the files; the runner knows how to wait
            return False

    def _compute(self, name: str, say: Callable[[str], None], run: str, lock: int) -> Outcome:
        machine = read_machine()

        def wait(holder: str) -> None:
            say(f"waiting: the machine is busy with {holder}")

        with hold_lane(self.home, run, machine, wait) as lane:
            gpus = {"CUDA_VISIBLE_DEVICES": lane.gpus} if lane.gpus else {}
            return self.runner.run(
                name,
                say,
                force=name in self.wish.force,
                settings=gpus,
                locks=[lock, lane.descriptor],
            )


def run_stages(wish: Wish, root: Path | None = None) -> State[Any]:
    """Run stages as task runs of the current flow run and give its final state.

    With values of its own it runs in a clone of the project and becomes an experiment.

    Args:
        wish: What to run.
        root: The project; None: that of the current folder.
    """
    log = get_run_logger()
    try:
        root = root or find_root(Path.cwd())
        if wish.values:
            return _run_isolated(root, wish)
        waited: list[str] = []
        with hold(root / WORKSPACE, str(flow_run.name), _show_waiting(waited)) as lock:
            if waited:
                _show(Running())
            runner = Runner(root, locks=[lock])
            state = _run(root, wish, runner)
            _push(runner)
            return state
    except RegraftError as err:
        log.error("%s", err)
        return fail(str(err))


def _push(runner: Runner) -> None:
    """Bring what stages made to the DVC remote, where others need it, also after a failure."""
    if REMOTE in os.environ:
        runner.dvc("push", "--run-cache")


def _show_waiting(waited: list[str]) -> Callable[[str], None]:
    """Make what shows on the run's page that it waits, and remembers that it did."""

    def show(holder: str) -> None:
        waited.append(holder)
        get_run_logger().info("waiting: this working tree is held by %s", holder)
        _show(Running(name="Waiting", message=f"for {holder}"))

    return show


def _show(state: State[Any]) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run.id, state, force=True)


def _run_isolated(root: Path, wish: Wish) -> State[Any]:
    """Run in a clone with other values; keep its results as an experiment, itself on failure."""
    log = get_run_logger()
    choose_stages(read_graph(root), wish.stages)  # a mistake is told before anything is made
    base = wish.base or isolation.base_of(root)
    isolation.check_values(root, wish.values)
    remote = os.environ.get(REMOTE)
    name = isolation.experiment_name(root, str(flow_run.name), remote)
    for path, value in wish.values.items():
        log.info("override: %s = %s", path, value)
    with isolation.cloned(root, name, wish.values, base) as clone:
        log.info("working in %s", clone.path)
        try:
            runner = Runner(clone.path, clone.settings, [clone.lock])
            state = _run(root, wish, runner, experiment=name)
            if state.is_cancelled():
                return state
            if not state.is_completed():
                _push(runner)
                isolation.keep_clone(clone.path, str(state.message))
                message = f"{state.message}\nThe working copy is kept at {clone.path}"
                return fail(message)
            isolation.keep_results(root, clone.path, name)
            if remote:
                said = Runner(root).dvc("exp", "push", "--run-cache", remote, name)
                if "diverged" in said:
                    raise GraphError(f"{remote} has another experiment {name}; name the run anew")
        except Exception as err:
            isolation.keep_clone(clone.path, str(err) or repr(err))
            log.error("the working copy is kept at %s", clone.path)
            raise
    kept = f"kept as experiment {name}: `dvc exp show`, `dvc exp apply {name}`"
    log.info("%s", kept)
    return Completed(message=f"{state.message}; {kept}")


def _run(home: Path, wish: Wish, runner: Runner, *, experiment: str | None = None) -> State[Any]:
    """Run the chosen stages; after a failure those that stand on the failed one are skipped."""
    root = runner.root
    graph, stale = read_state(root)
    chosen = choose_stages(graph, wish.stages, follow=wish.follow)
    run = Run(home, chosen, graph, stale, runner, wish, experiment=experiment)
    for stage, why in run.stale_and_left_out().items():
        get_run_logger().warning(
            "%s is stale (%s) but not chosen; what follows works on its old results",
            stage,
            listed(why, SHOWN_REASONS),
        )
    before = locked_stages(root)
    try:
        _submit(run)
    except BaseException:
        runner.stop()
        raise
    order_lock(root, graph, before)
    reports = [run.reports[stage.name] for stage in chosen]
    publish_stages(reports)
    failed = [report for report in reports if report.outcome == "Failed"]
    if failed:
        return fail("\n".join(f"{one.stage}: {one.message}" for one in failed))
    if any(report.outcome in BLOCKING for report in reports):
        return cancel("the run was stopped")
    publish_results(root, reports, test_is_hidden=wish.test_is_hidden)
    return Completed(message=_summary(home, root, reports, wish))


def _submit(run: Run) -> None:
    """Start every stage once those before it have ended; one by one where there is one lane."""
    one_by_one = len(lanes_of(read_machine())) == 1
    futures: dict[str, PrefectFuture[Any]] = {}
    for name in run.chosen:
        before = [allow_failure(futures[other]) for other in run.waits_for(name)]
        futures[name] = stage_task.submit(name, run, wait_for=before, return_state=False)
        if one_by_one:
            futures[name].wait()
    for future in futures.values():
        future.wait()


def _is_passing(task: object, task_run: object, state: State[Any]) -> bool:
    """Tell whether a failure may be gone in a while: of the machine, never of a parameter."""
    return state.name == "Failed" and getattr(state.data, "passing", False)


@task(
    name="stage",
    task_run_name="{stage}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=len(RETRY_SECONDS),
    retry_delay_seconds=RETRY_SECONDS,
    retry_condition_fn=_is_passing,
)
def stage_task(stage: str, run: Run) -> State[Any]:
    """Run one stage through DVC where there is a reason; the state says what happened."""
    started = time.monotonic()
    why: list[str] = []
    try:
        blocker = run.blocked_by(stage)
        why = [] if blocker else run.why(stage)
        state = _blocked(blocker) if blocker else _do(run, stage, why)
    except (RegraftError, OSError) as err:
        state = Failed(message=str(err))
    except BaseException as err:
        run.reports[stage] = StageReport(stage, "Failed", repr(err), "; ".join(why), 0.0)
        raise
    run.reports[stage] = StageReport(
        stage=stage,
        outcome=state.name or state.type.value,
        message=state.message or "",
        why="; ".join(why),
        seconds=time.monotonic() - started,
    )
    if state.is_completed():
        run.tell(stage, ran=state.name == "Completed")
    return state


def _blocked(blocker: str) -> State[Any]:
    # Of the type Failed: after a cancelled task run Prefect leaves what waits for it pending.
    return Failed(name="Skipped", message=f"{blocker} failed")


def _do(run: Run, stage: str, why: Sequence[str]) -> State[Any]:
    if not why:
        return Completed(name="Cached", message="unchanged")
    log = get_run_logger()
    log.info("%s: %s", stage, listed(why, SHOWN_REASONS))
    progress = StageProgress(stage)

    def say(line: str) -> None:
        tells_test = run.wish.test_is_hidden and line.startswith(f"{TELLS_TEST}: test accuracy")
        log.log(logging.DEBUG if tells_test else _level(line), "%s", line)
        progress.read(line)

    outcome = run.do(stage, say)
    if outcome.kind == "stopped":
        return Failed(name="Cancelled", message=outcome.message)
    if outcome.kind == "failed":
        return Failed(message=outcome.message, data=outcome)
    progress.finish()
    name = "Completed" if outcome.kind == "ran" else "Cached"
    return Completed(name=name, message=outcome.message)


def _level(line: str) -> int:
    if line.startswith("ERROR:") or " stopped: " in line:
        return logging.ERROR
    if line.startswith(("> ", "Updating lock file", "Running stage ")):
        return logging.DEBUG  # DVC's own, which the state of the task run says too
    return logging.WARNING if line.startswith("WARNING:") else logging.INFO


def _summary(home: Path, root: Path, reports: Sequence[StageReport], wish: Wish) -> str:
    """Write "shipped fine-tuned: 86.6 % [...], +3.3 over frozen; 3 ran, 6 cached, 7 min saved"."""
    cached = [report.stage for report in reports if report.outcome == "Cached"]
    saved = sum(last_seconds(home, stage) or 0.0 for stage in cached)
    counts = [(len(reports) - len(cached), "ran"), (len(cached), "cached")]
    words = [f"{number} {word}" for number, word in counts if number]
    if saved >= 1:
        words.append(f"{in_time(saved)} saved")
    found = read_metrics(root) if "evaluate" in {report.stage for report in reports} else None
    say = headline_on_val if wish.test_is_hidden else headline
    return "; ".join([*([say(*found)] if found else []), ", ".join(words)])
