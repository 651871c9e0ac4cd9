"""The flow on a real Prefect server: one task run a stage, and the same dvc.lock as `dvc repro`."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, draw_classes, tells
from prefect import Flow, flow
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.settings import PREFECT_HOME, PREFECT_SERVER_ANALYTICS_ENABLED, temporary_settings
from prefect.testing.utilities import prefect_test_harness
from test_delivery import make_samples
from test_export import shipped_model
from toy import STAGES, ToyProject
from watched import darken, draw, export_watched

from flows import monitor as monitor_flow
from flows.errors import GraphError
from flows.monitor import monitor_images
from flows.overrides import ParamsOverrides
from flows.pipeline import pipeline
from flows.predict import predict_images
from flows.run import Wish, run_stages, stage_task
from flows.stages.runner import Outcome
from tasks.reporting.export import export_model

pytest_plugins = ["toy_fixtures"]
pytestmark = pytest.mark.filterwarnings(
    "ignore:_NoneStep.value will soon raise:DeprecationWarning:dvc"
)


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    own = {
        PREFECT_HOME: tmp_path_factory.mktemp("prefect"),
        PREFECT_SERVER_ANALYTICS_ENABLED: False,
    }
    with temporary_settings(own), prefect_test_harness(server_startup_timeout=120):
        yield


class Run:
    """One finished run as the server has it."""

    def __init__(self, flow_run: FlowRun, task_runs: list[TaskRun]) -> None:
        self.flow_run = flow_run
        self.task_runs = task_runs

    @property
    def state(self) -> State[Any]:
        assert self.flow_run.state is not None
        return self.flow_run.state

    @property
    def outcomes(self) -> dict[str, tuple[str | None, str | None]]:
        """Stage -> name and message of the state of its task run, in the order of the runs."""
        states = [(run.name, run.state) for run in self.task_runs]
        return {name: (state.name, state.message) for name, state in states if state is not None}

    @property
    def log(self) -> str:
        chosen = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[self.flow_run.id]))
        with get_client(sync_client=True) as client:
            return "\n".join(entry.message for entry in client.read_logs(chosen))

    def artifact(self, key: str) -> str:
        chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[self.flow_run.id]))
        with get_client(sync_client=True) as client:
            found = client.read_artifacts(artifact_filter=chosen)
        return str(next(artifact.data for artifact in found if artifact.key == key))


def run_flow(expected_tasks: int, of: Flow[..., Any] = pipeline, **parameters: Any) -> Run:
    """Run a flow in the current folder and read back what the server has of it."""
    state = of(**parameters, return_state=True)
    chosen = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))

    def read() -> list[TaskRun]:
        with get_client(sync_client=True) as client:
            return client.read_task_runs(flow_run_filter=chosen)

    def complete(runs: list[TaskRun]) -> bool:
        return len(runs) == expected_tasks and all(
            run.state is not None and run.state.is_final() for run in runs
        )

    runs = eventually(read, complete)  # the server records task runs with a delay
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(chosen.id.any_[0])  # type: ignore[union-attr,index]
    return Run(flow_run, sorted(runs, key=lambda run: str(run.start_time or run.created)))


def eventually(read: Callable[[], Any], right: Callable[[Any], bool], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not right(found := read()):
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return found


def test_the_flow_leaves_the_same_lock_as_dvc_repro(
    fresh_toy: ToyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ToyProject(tmp_path / "plain")
    plain.create()
    plain.dvc("repro")
    monkeypatch.chdir(fresh_toy.root)
    run = run_flow(4)
    assert fresh_toy.lock == plain.lock
    assert run.outcomes == dict.fromkeys(STAGES, ("Completed", "ran"))
    first, *siblings, last = run.outcomes
    assert (first, {*siblings}, last) == ("fetch", {"left", "right"}, "join")
    assert run.state.message == "4 ran"
    assert "Data and pipelines are up to date." in fresh_toy.dvc("status")
    eventually(lambda: run.log, lambda log: "left starts" in log)


def test_after_dvc_repro_every_stage_is_cached(
    toy: ToyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy.root / "out")
    before = toy.lock
    run = run_flow(4)
    assert run.outcomes == dict.fromkeys(STAGES, ("Cached", "unchanged"))
    assert toy.lock == before
    assert toy.git("status", "--porcelain") == ""


def test_data_that_dvc_tracks_is_taken_over_where_it_changed(
    toy: ToyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.git("rm", "--quiet", "--cached", "source.txt")
    toy.dvc("add", "source.txt")
    toy.commit("Track the source")
    toy.write("source.txt", "more images\n")
    shutil.copytree(toy.root, tmp_path / "plain", symlinks=True)
    plain = ToyProject(tmp_path / "plain")
    plain.dvc("repro")
    monkeypatch.chdir(toy.root)
    run = run_flow(5)
    assert run.state.name == "Completed"
    assert run.outcomes["source.txt.dvc"] == ("Completed", "ran")
    assert run.outcomes["fetch"] == ("Completed", "ran")
    assert toy.lock == plain.lock
    assert toy.read("source.txt.dvc") == plain.read("source.txt.dvc")


@pytest.mark.parametrize("error", [GraphError("no lock is free"), ZeroDivisionError("a mistake")])
def test_whatever_goes_wrong_in_a_stage_is_named_and_what_follows_is_skipped(
    toy: ToyProject, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: Any) -> None:
        raise error

    monkeypatch.chdir(toy.root)
    toy.set("finetune.head_lr", 0.0003)
    monkeypatch.setattr("flows.run.run_key", fail)
    run = run_flow(4)
    assert run.state.name == "Failed"
    assert str(error) in str(run.state.message)
    assert run.state.message.startswith("left: ")
    assert run.outcomes["join"] == ("Skipped", "left failed")


def test_a_run_whose_stages_were_stopped_is_cancelled_and_leaves_no_experiment(
    toy: ToyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy.root)
    stopped = Outcome("stopped", "the run was stopped")
    monkeypatch.setattr("flows.run.Run.do", lambda run, name, say: stopped)
    overrides = ParamsOverrides.model_validate({"finetune": {"head_lr": 0.0003}})
    run = run_flow(4, overrides=overrides)
    assert (run.state.name, run.state.message) == ("Cancelled", "the run was stopped")
    assert toy.dvc("exp", "list", "--name-only").split() == []
    assert not list((toy.root / ".regraft/runs").glob("*/"))


@pytest.mark.slow
def test_a_value_changed_back_is_restored(toy: ToyProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toy.root)
    before = toy.lock
    toy.set("evaluate.ece_bins", 7)
    toy.dvc("repro", "right")
    toy.set("evaluate.ece_bins", 15)
    run = run_flow(4)
    assert run.outcomes["right"] == ("Cached", "restored from run-cache")
    assert toy.lock == before
    (row,) = [line for line in run.artifact("stages").splitlines() if "| right |" in line]
    assert tells(row, "Cached", "restored", "evaluate.ece_bins 7 -> 15")


def test_a_failed_stage_ends_the_run_with_its_message_and_what_follows_is_skipped(
    toy: ToyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy.root)
    toy.set("finetune.head_lr", 0.0003)
    toy.write("left.break", "image 7 is broken; mend it")
    run = run_flow(4)
    assert run.state.name == "Failed"
    assert run.state.message == "left: image 7 is broken; mend it"
    assert run.outcomes == {
        "fetch": ("Cached", "unchanged"),
        "left": ("Failed", "image 7 is broken; mend it"),
        "right": ("Cached", "unchanged"),
        "join": ("Skipped", "left failed"),
    }
    assert "| join | Skipped | left failed |" in run.artifact("stages")


def test_everything_after_a_failed_stage_is_skipped_however_far(
    toy: ToyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy.root)
    toy.write("source.txt", "other\n")
    toy.write("fetch.break", "no network")
    run = run_flow(4)
    assert run.state.message == "fetch: no network"
    assert {name: state for name, (state, _) in run.outcomes.items()} == {
        "fetch": "Failed",
        "left": "Skipped",
        "right": "Skipped",
        "join": "Skipped",
    }


@pytest.mark.slow
def test_only_the_named_stages_run_and_stale_upstream_is_told(
    toy: ToyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy.root)
    toy.set("finetune.head_lr", 0.0003)
    toy.set("evaluate.ece_bins", 7)
    run = run_flow(2, stages=["join", "right"])
    assert run.outcomes == {"right": ("Completed", "ran"), "join": ("Completed", "ran")}
    facts = "left is stale", "finetune.head_lr 0.0005 -> 0.0003", "not chosen"
    eventually(lambda: run.log, lambda log: tells(log, *facts))


def test_an_unknown_stage_is_told_before_anything_runs(
    toy: ToyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy.root)
    for values in ({}, {"seed": 3}):
        overrides = ParamsOverrides.model_validate(values)
        run = run_flow(0, stages=["fetch", "lefft"], overrides=overrides)
        assert run.state.name == "Failed"
        facts = "'lefft'", "dvc.yaml", "Did you mean left?", "fetch, left, right, join"
        assert tells(str(run.state.message), *facts)
    assert not (toy.root / ".regraft/runs").exists()


@pytest.mark.slow
def test_a_run_with_overrides_leaves_the_tree_alone_and_becomes_an_experiment(
    toy: ToyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy.root)
    toy.write("notes.md", "not committed\n")
    before = toy.git("status", "--porcelain"), toy.read("params.yaml"), toy.lock
    run = run_flow(4, overrides=ParamsOverrides.model_validate({"finetune": {"head_lr": 4e-4}}))
    assert (toy.git("status", "--porcelain"), toy.read("params.yaml"), toy.lock) == before
    assert run.outcomes["left"] == ("Completed", "ran")
    assert run.outcomes["right"] == ("Cached", "unchanged")
    name = run.flow_run.name
    assert f"kept as experiment {name}" in str(run.state.message)
    assert toy.dvc("exp", "list", "--name-only").split() == [name]
    assert not (toy.root / ".regraft/runs" / name).exists()
    assert run.flow_run.parameters["overrides"] == {"finetune": {"head_lr": 4e-4}}


@pytest.mark.slow
def test_a_failed_run_with_overrides_keeps_its_copy_and_says_where(
    toy: ToyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy.root)
    toy.write(".gitignore", ".regraft/\n")
    toy.write("left.break", "too fast")
    run = run_flow(4, overrides=ParamsOverrides.model_validate({"finetune": {"head_lr": 4e-4}}))
    clone = toy.root / ".regraft/runs" / run.flow_run.name
    said, kept = str(run.state.message).splitlines()
    assert said == "left: too fast"
    assert str(clone) in kept
    assert "head_lr: 0.0004" in (clone / "params.yaml").read_text()
    assert toy.dvc("exp", "list", "--name-only").split() == []


def test_values_that_do_not_fit_together_fail_the_run_at_once(
    toy: ToyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy.root)
    run = run_flow(0, overrides=ParamsOverrides.model_validate({"finetune": {"backbone_lr": 0.1}}))
    assert run.state.name == "Failed"
    facts = "backbone_lr is 0.1; allowed: at most head_lr", "0.0005"
    assert tells(str(run.state.message), *facts)


def attempts(run: Run, stage: str) -> int:
    return next(task.run_count for task in run.task_runs if task.name == stage)


def test_a_fault_of_the_machine_is_tried_again_and_a_mistake_is_not(
    toy: ToyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy.root)
    monkeypatch.setattr(stage_task, "retry_delay_seconds", [0.1, 0.1])
    toy.set("finetune.head_lr", 0.0003)
    toy.set("evaluate.ece_bins", 7)
    toy.write("left.lack", "No space left on device")
    toy.write("right.break", "evaluate.ece_bins is wrong")
    run = run_flow(4)
    assert run.outcomes["left"] == ("Completed", "ran")
    assert run.outcomes["right"] == ("Failed", "evaluate.ece_bins is wrong")
    assert (attempts(run, "left"), attempts(run, "right")) == (2, 1)


def test_the_graph_of_a_run_has_the_edges_of_dvcs(
    toy: ToyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy.root)
    run = run_flow(4)
    names = {task.id: task.name for task in run.task_runs}
    edges = {
        task.name: sorted(names[one.id] for one in task.task_inputs.get("wait_for", []))
        for task in run.task_runs
    }
    assert edges == {"fetch": [], "left": ["fetch"], "right": ["fetch"], "join": ["left", "right"]}


def test_where_cores_allow_siblings_run_side_by_side_to_the_same_lock(
    fresh_toy: ToyProject, toy: ToyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fresh_toy.root)
    monkeypatch.setenv("REGRAFT_THREADS", "1")
    monkeypatch.setattr("flows.stages.locks.usable_cores", lambda: 2)
    fresh_toy.write("left.sleep", "6")
    run = run_flow(4)
    times = {task.name: (task.start_time, task.end_time) for task in run.task_runs}
    assert times["right"][0] < times["left"][1]  # type: ignore[operator]
    assert times["right"][1] < times["left"][1]  # type: ignore[operator]
    assert fresh_toy.lock == toy.lock


def test_a_stage_can_be_rerun_with_what_follows_or_alone(
    toy: ToyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy.root)

    @flow(name="left")
    def rerun(follow: bool) -> State[Any]:
        return run_stages(Wish(["left"], follow=follow, force=["left"]))

    alone, follow = (run_flow(count, rerun, follow=count > 1) for count in (1, 2))
    assert alone.outcomes == {"left": ("Completed", "ran")}
    assert follow.outcomes == {"left": ("Completed", "ran"), "join": ("Cached", "unchanged")}


def test_prefect_neither_caches_nor_stores() -> None:
    assert pipeline.persist_result is False
    assert stage_task.persist_result is False
    assert stage_task.cache_policy == NO_CACHE


# the flow `predict` ------------------------------------------------------------------------------


@pytest.fixture
def delivered(toy: ToyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToyProject:
    """A project with an exported model and some images, one of them bad."""
    samples = make_samples(tmp_path / "stores")
    export_model(toy.root / "data/report/model", shipped_model("test_efficientnet"), {}, samples)
    draw_classes(toy.root / "new", images=3)
    (toy.root / "new/bad.png").touch()
    monkeypatch.chdir(toy.root)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return toy


def test_the_flow_classifies_what_is_new_and_says_how_much(delivered: ToyProject) -> None:
    run = run_flow(0, predict_images, source="new", out="out.csv")
    assert run.state.name == "Completed"
    lines = delivered.read("out.csv").splitlines()
    assert len(lines) == 11
    assert tells(str(run.state.message), "10 rows in out.csv, 10 of them new", "1 file could not")
    run = run_flow(0, predict_images, source="new", out="out.csv", on_bad="fail")
    assert run.state.name == "Failed"
    assert tells(str(run.state.message), "1 file could not be used; out.csv says why")
    assert sorted(delivered.read("out.csv").splitlines()) == sorted(lines)  # bad ones go last


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"source": "-"}, "a flow has no stdin"),
        ({"source": "--model"}, "--model: no such file or folder"),
        ({"source": "new", "model": "elsewhere"}, "elsewhere: holds no exported model"),
    ],
)
def test_a_mistake_in_what_to_classify_is_the_state_of_the_run(
    given: dict[str, str], told: str, delivered: ToyProject
) -> None:
    run = run_flow(0, predict_images, **{"out": "out.csv", **given})
    assert run.state.name == "Failed"
    assert told in str(run.state.message)
    assert "\n" not in str(run.state.message)


# the flow `monitor` ------------------------------------------------------------------------------


@pytest.fixture
def watched(toy: ToyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToyProject:
    """A project with an exported model that has a reference, and images as it knows them."""
    export_watched(toy.root / "data/report/model", tmp_path)
    draw(toy.root / "data/incoming", range(20))
    monkeypatch.chdir(toy.root)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return toy


LOOK = {"source": "data/incoming", "out": "data/looks"}


def test_a_look_that_alarms_is_told_in_the_list_of_runs_on_the_page_and_by_an_event(
    watched: ToyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[dict[str, Any]] = []
    monkeypatch.setattr(monitor_flow, "emit_event", lambda **event: events.append(event))
    run = run_flow(0, monitor_images, **LOOK)
    assert run.state.name == "Completed"
    assert tells(str(run.state.message), "fine: 20 new images", "look 1")
    assert tells(run.artifact("look"), "| out of the domain |", "features (MMD), new")
    run = run_flow(0, monitor_images, **LOOK)
    assert (run.state.name, events) == ("Completed", [])
    assert "nothing new in data/incoming since look 1" in str(run.state.message)

    darken(watched.root / "data/incoming", range(100, 130))
    run = run_flow(0, monitor_images, **LOOK)
    assert (run.state.name, run.state.type.value) == ("Changed", "COMPLETED")
    assert tells(str(run.state.message), "changed: ", "of the 30 new images 100.0%", "Look at")
    assert run.artifact("strangest").startswith("![](data:image/jpeg;base64,")
    [event] = events
    assert event["event"] == "regraft.monitor.changed"
    assert event["resource"]["prefect.resource.id"] == "regraft.monitor.looks"
    assert event["payload"]["verdict"] == "changed"
    assert run_flow(0, monitor_images, **LOOK).state.name == "Completed"
    assert len(events) == 1


def test_a_change_is_told_by_the_next_run_where_the_first_was_killed_before_its_word(
    watched: ToyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[dict[str, Any]] = []

    def die(**event: Any) -> None:
        raise KeyboardInterrupt

    darken(watched.root / "data/incoming", range(100, 130))
    monkeypatch.setattr(monitor_flow, "emit_event", die)
    with pytest.raises(KeyboardInterrupt):
        monitor_images(**LOOK)
    monkeypatch.setattr(monitor_flow, "emit_event", lambda **event: events.append(event))
    draw(watched.root / "data/incoming", range(200, 230))
    run = run_flow(0, monitor_images, **LOOK)
    assert run.state.name == "Changed"
    assert [event["payload"]["number"] for event in events] == [1]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"source": "-"}, "a flow has no stdin"),
        ({"source": "nowhere"}, "nowhere: no such file or folder"),
        ({"model": "elsewhere"}, "elsewhere: holds no exported model"),
    ],
)
def test_a_mistake_in_what_to_watch_is_the_state_of_the_run(
    given: dict[str, str], told: str, watched: ToyProject
) -> None:
    run = run_flow(0, monitor_images, **(LOOK | given))
    assert run.state.name == "Failed"
    assert told in str(run.state.message)
