"""The flow `sweep`: several settings, each as an isolated run, compared on val.

The runs share what is cached, also with each other. Prefect places them: in threads of this
process, on a Dask cluster (flows/sweep_dask.py), or as runs of a deployment on a work pool.
"""

# No `from __future__ import annotations`: Prefect could not build the parameters of a served run.

import itertools
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import httpx
import numpy as np
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelling, Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import Field

from flows.artifacts import publish_sweep
from flows.endings import fail
from flows.errors import GraphError
from flows.recovery import settle_run
from flows.run import Wish, run_stages
from flows.stages import isolation
from flows.stages.git import REMOTE
from flows.stages.graph import find_root
from flows.stages.locks import lanes_of
from flows.stages.runner import Runner, stop_all
from tasks.artifacts.arrays import read_array
from tasks.artifacts.records import Arm, Baseline, Finetuned, Metrics, read_record
from tasks.artifacts.tables import read_manifest
from tasks.errors import RegraftError
from tasks.evaluation.comparison import Answers, Ranked, rank, read_answers
from tasks.params import Params
from tasks.params_file import load_params
from tasks.runtime.machine import read_machine

PAUSE_SECONDS = 5.0  # between looks at a run elsewhere
AS_IT_IS = "as in params.yaml"  # the setting of a sweep over seeds alone

Values = dict[str, Any]
Lists = Annotated[
    dict[str, list[Any]],
    Field(description="Name of a value -> the values to try, in every combination."),
]


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a sweep: its name, which is its experiment's, its setting and its seed.

    All start from the same base, however long the sweep takes and whatever is edited meanwhile.
    """

    name: str
    setting: str
    seed: int
    values: Values
    base: isolation.Base


_THREADS: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=len(lanes_of(read_machine())))


@flow(
    name="sweep",
    persist_result=False,
    task_runner=_THREADS,
    on_crashed=[settle_run],
    on_cancellation=[settle_run],
)
def sweep(
    grid: Lists | None = None,
    rows: list[Values] | None = None,
    backbones: list[str] | None = None,
    seeds: list[int] | None = None,
    deployment: str | None = None,
) -> State[Any]:
    """Try settings, each as an isolated run, and compare them on val; test is shown of one alone.

    Args:
        grid: Lists of values to be combined, such as {"finetune.head_lr": [0.0002, 0.0003]}.
        rows: Settings one by one instead, such as [{"finetune.head_lr": 0.0002}].
        backbones: Values of backbone.name, combined with the others.
        seeds: Every setting runs with each of them. Empty: the seed of params.yaml. Alone they
            show how far chance moves the result.
        deployment: Name of a deployment of the pipeline that does the runs, such as
            pipeline/regraft-docker, from what is pushed. Empty: this process does them, as many at
            once as the machine has room for.
    """
    try:
        root = find_root(Path.cwd())
        params = load_params(root / "params.yaml")
        settings = combine(grid or {}, rows or [], backbones or [], seeds or [])
        trials = plan(root, settings, seeds or [])
        get_run_logger().info("%d runs of %d settings", len(trials), len(settings))
        return _compare(root, params, trials, _try_all(trials, root, deployment))
    except RegraftError as err:
        get_run_logger().error("%s", err)
        return fail(str(err))


def _try_all(trials: Sequence[Trial], root: Path, deployment: str | None) -> dict[str, str]:
    """Do all runs; give the names of those that failed and why."""
    started: dict[str, UUID] = {}
    try:
        for trial in trials if deployment else []:
            started[trial.name] = _start(trial, str(deployment))
        futures = [try_setting.submit(trial, root, started.get(trial.name)) for trial in trials]
        for future in futures:
            future.wait()
    except BaseException:
        stop_all()
        _cancel(started.values())
        raise
    return {
        trial.name: str(future.state.message)
        for trial, future in zip(trials, futures, strict=True)
        if not future.state.is_completed()
    }


def combine(
    grid: Mapping[str, Sequence[Any]],
    rows: Sequence[Values],
    backbones: Sequence[str],
    seeds: Sequence[int],
) -> list[Values]:
    """List the settings of a sweep as values by key path; with seeds alone, params.yaml as it is.

    Raises:
        GraphError: Both grid and rows are given, or nothing at all, or a list without values.
    """
    if grid and rows:
        raise GraphError("grid and rows are both given; write the settings as one of them")
    if not (grid or rows or backbones or seeds):
        raise GraphError("nothing to try: give grid, rows, backbones or seeds")
    for path, values in grid.items():
        if not values:
            raise GraphError(f"grid: {path} has no values; name at least one")
    chosen = rows or [
        dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
    ]
    named = [{"backbone.name": name} for name in backbones] or [{}]
    return [{**network, **values} for network in named for values in chosen]


def plan(root: Path, settings: Sequence[Values], seeds: Sequence[int]) -> list[Trial]:
    """Name the runs of a sweep and check all of their values before the first one starts.

    Raises:
        GraphError: A run stands there twice, or has two seeds.
        ParamsError: Values do not fit together or into params.yaml.
    """
    trials: list[Trial] = []
    base = isolation.base_of(root)
    own = load_params(root / "params.yaml").seed
    for setting in settings:
        words = ", ".join(f"{path} = {value}" for path, value in setting.items())
        if "seed" in setting and seeds:
            raise GraphError("seed stands among the values and in seeds; give it in one of them")
        for seed in seeds or [setting.get("seed", own)]:
            values = {**setting, "seed": seed}
            isolation.check_values(root, values)
            if any(trial.values == values for trial in trials):
                raise GraphError(f"{words or AS_IT_IS} stands twice with seed {seed}")
            name = isolation.experiment_name(root, f"{flow_run.name}-{len(trials) + 1}")
            trials.append(Trial(name, words or AS_IT_IS, seed, values, base))
    return trials


@task(name="try", task_run_name="{trial.name}", cache_policy=NO_CACHE, persist_result=False)
def try_setting(trial: Trial, root: Path, started: UUID | None) -> State[Any]:
    """Do one run, or wait for that of a deployment; the state says how it ended."""
    if not started and isolation.experiment_name(root, trial.name) != trial.name:
        return Failed(message=f"{trial.name} is a run of another sweep; name this one anew")
    state = (
        _wait_for(started)
        if started
        else trial_flow(trial.name, trial.values, trial.base, root, return_state=True)
    )
    if not state.is_completed():
        return Failed(message=f"{trial.setting}: {state.message}")
    if not isolation.has_experiment(root, trial.name):  # it was done elsewhere
        Runner(root).dvc("exp", "pull", os.environ.get(REMOTE, "origin"), trial.name)
    return Completed(message=f"{trial.setting}: {state.message}")


@flow(
    name="trial",
    flow_run_name="{name}",
    persist_result=False,
    on_crashed=[settle_run],
    on_cancellation=[settle_run],
)
def trial_flow(name: str, values: Values, base: isolation.Base, root: Path) -> State[Any]:
    """Run the pipeline with other values; its results become an experiment of this name."""
    return run_stages(Wish(values=values, base=base, test_is_hidden=True), root)


def _start(trial: Trial, deployment: str) -> UUID:
    """Let a deployment do the run, wherever its workers are."""
    overrides: Values = {}
    for path, value in trial.values.items():
        *blocks, leaf = path.split(".")
        node = overrides
        for block in blocks:
            node = node.setdefault(block, {})
        node[leaf] = value
    parameters = {"overrides": overrides, "hide_test": True}
    try:
        run = run_deployment(deployment, parameters=parameters, flow_run_name=trial.name, timeout=0)
    except (ObjectNotFound, ValueError) as err:
        hint = "write flow and name, as in pipeline/regraft-docker"
        raise GraphError(f"there is no deployment {deployment}; {hint}") from err
    except httpx.HTTPStatusError as err:
        raise GraphError(f"{deployment} does not take these runs: {err.response.text}") from err
    assert isinstance(run, FlowRun)  # this flow is not asynchronous
    return run.id


def _wait_for(run: UUID) -> State[Any]:
    with get_client(sync_client=True) as client:
        while True:
            state = client.read_flow_run(run).state
            if state is not None and state.is_final():
                return state
            time.sleep(PAUSE_SECONDS)


def _cancel(runs: Iterable[UUID]) -> None:
    with get_client(sync_client=True) as client:
        for run in runs:
            client.set_flow_run_state(run, Cancelling())


# the results -------------------------------------------------------------------------------------


def _compare(
    root: Path, params: Params, trials: Sequence[Trial], failed: Mapping[str, str]
) -> State[Any]:
    """Rank the settings on val and show them; test of the chosen one alone."""
    done = [trial for trial in trials if trial.name not in failed]
    outs = {trial.name: _outs(root, trial.name) for trial in done}
    # One measure for all: where runs differ in it, every image counts the same.
    balanced = all(read_record(one["baseline"], Baseline).class_balanced for one in outs.values())
    runs: dict[str, dict[int, Answers]] = defaultdict(dict)
    for trial in done:
        runs[trial.setting][trial.seed] = _answers_of(outs[trial.name], balanced=balanced)
    ranked = rank(runs, confidence=params.evaluate.confidence, seed=params.seed)
    names = {
        setting: [trial.name for trial in done if trial.setting == setting] for setting in runs
    }
    troubles = {trial.setting: failed[trial.name] for trial in trials if trial.name in failed}
    if not ranked:
        publish_sweep([], names, troubles, [])
        return fail(f"all {len(trials)} runs failed: {next(iter(failed.values()))}")
    best = ranked[0]
    tested = [_tested(outs[name]) for name in names[best.setting]]
    publish_sweep(ranked, names, troubles, tested)
    return Completed(message=_say(best, tested, len(done), len(failed)))


def _tested(outs: Mapping[str, Path]) -> tuple[Metrics, Arm]:
    return read_record(outs["metrics"], Metrics), read_record(outs["finetuned"], Finetuned).arm


def _say(best: Ranked, tested: Sequence[tuple[Metrics, Arm]], done: int, failed: int) -> str:
    shipped = [
        one.finetuned if one.shipped == "finetuned" and one.finetuned else one.baseline
        for one, _ in tested
    ]
    accuracies = [one.balanced_accuracy if best.balanced else one.accuracy for one in shipped]
    test = 100 * float(np.mean([accuracy.value for accuracy in accuracies]))
    kind = "class-balanced " if best.balanced else ""
    words = (
        f"chosen on val: {best.setting}, {kind}{100 * best.accuracy:.1f} %; on test {test:.1f} %"
    )
    return f"{words}; {done} run{'s' * (done != 1)}" + (f", {failed} failed" if failed else "")


def _answers_of(outs: Mapping[str, Path], *, balanced: bool) -> Answers:
    shipped = read_record(outs["metrics"], Metrics).shipped
    logits = outs["tuned" if shipped == "finetuned" else "frozen"]
    return read_answers(
        read_manifest(outs["manifest"]),
        np.array(read_array(logits), dtype=np.float32),
        balanced=balanced,
    )


def _outs(root: Path, experiment: str) -> dict[str, Path]:
    found = isolation.experiment_outs(root, experiment)
    return {
        "manifest": found["data/ingest/manifest.csv"],
        "metrics": found["data/evaluate/metrics.json"],
        "baseline": found["data/baseline/baseline.json"],
        "frozen": found["data/baseline/val_logits.npy"],
        "tuned": found["data/finetune/val_logits.npy"],
        "finetuned": found["data/finetune/finetune.json"],
    }
