"""`make ui`: the checks before it starts, and the whole of it on a real server."""

import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import psutil
import pytest
from conftest import ROOT, tells
from prefect.schedules import Schedule
from served import DEPLOYMENT, Server, eventually, free_port, wait_for_file
from toy import STAGES, ToyProject

from flows.errors import ServerError
from flows.pipeline import pipeline
from flows.serve import (
    check_port_is_free,
    explain_end,
    prefect_environment,
    read_port,
    serve,
)
from flows.serving.deployment import read_specifications
from flows.stage import STAGES as STAGES_OF

pytest_plugins = ["toy_fixtures"]


def test_the_port_is_4200_unless_the_environment_names_one() -> None:
    assert read_port(None) == read_port("") == 4200
    assert read_port("4300") == 4300


@pytest.mark.parametrize("value", ["0", "65535", "-1", "http", "4200.5"])
def test_a_wrong_port_is_told_with_what_is_allowed(value: str) -> None:
    with pytest.raises(ServerError, match=f"REGRAFT_UI_PORT is '{value}'; allowed: 1 to 65534"):
        read_port(value)


def test_a_port_in_use_is_told_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "prefect.yaml").touch()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServerError, match=rf"127\.0\.0\.1:{port} cannot be used .*=4300 make"):
            serve(tmp_path, port)
    check_port_is_free(port)


def test_another_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"holds no prefect\.yaml; run from the project's folder"):
        serve(tmp_path, free_port())


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "prefect.yaml").touch()
    (tmp_path / ".regraft").write_text("a file")
    with pytest.raises(ServerError, match=r"prefect is to be a folder, but a file .* in the way"):
        serve(tmp_path, free_port())


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("sqlite3.DatabaseError: file is not a database", "is no database.* mv .*db.old"),
        ("alembic: Can't locate revision identified by 'x'", "another version of Prefect.* mv "),
        (
            "Traceback\nOSError: [Errno 28] full\n",
            r"its last line: OSError: \[Errno 28\] full \(see ",
        ),
        (None, "its last line: nothing was written"),
    ],
)
def test_the_end_of_a_server_is_explained(tmp_path: Path, written: str | None, told: str) -> None:
    log = tmp_path / "server.log"
    if written:
        log.write_text(written)
    assert re.search(told, explain_end("server", log, tmp_path / "prefect.db"))
    of_runner = explain_end("runner", log, tmp_path / "prefect.db")
    assert of_runner == "what it said last stands above" or "prefect.db" in of_runner


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\0" + b"\1" * 5000])
def test_a_database_that_cannot_be_used_is_told_with_the_way_out(
    toy: ToyProject, content: bytes
) -> None:
    toy.add_flows()
    database = toy.root / ".regraft/prefect/prefect.db"
    database.parent.mkdir(parents=True)
    database.write_bytes(content)
    with pytest.raises(ServerError, match=rf"prefect\.db (is|was) .* mv {database} "):
        serve(toy.root, free_port())


def test_nothing_of_the_users_prefect_reaches_the_server(tmp_path: Path) -> None:
    inherited = {
        "PREFECT_API_KEY": "secret",
        "PREFECT_API_URL": "https://elsewhere",
        "PATH": "/bin",
        "NO_PROXY": "intranet",
    }
    made = prefect_environment(inherited, tmp_path, tmp_path / "home", 4300)
    assert "secret" not in made.values()
    assert made["PREFECT_API_URL"] == "http://127.0.0.1:4300/api"
    assert made["PREFECT_HOME"] == str(tmp_path / "home")
    assert made["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert made["PREFECT_SERVER_UI_V2_ENABLED"] == "false"
    assert made["DO_NOT_TRACK"] == "1"
    assert made["NO_PROXY"] == "127.0.0.1,intranet"
    assert made["PATH"] == "/bin"


def test_the_deployment_is_paused_and_has_a_time_zone() -> None:
    *others, predict, promote, monitor = read_specifications(ROOT / "prefect.yaml")
    whole, *single, sweep, sweep_dask = others
    assert f"{pipeline.name}/{whole['name']}" == DEPLOYMENT
    for one in (whole, predict, monitor):
        [schedule] = [Schedule(**schedule) for schedule in one["schedules"]]
        assert (schedule.active, schedule.timezone) == (False, "Etc/UTC")
    assert [one["entrypoint"] for one in single] == [f"flows/stage.py:{name}" for name in STAGES_OF]
    assert [one["name"] for one in single] == [f"regraft-{name}" for name in STAGES_OF]
    last = [one["name"] for one in (sweep, sweep_dask, predict, promote, monitor)]
    names = ("sweep", "sweep-dask", "predict", "promote", "monitor")
    assert last == [f"regraft-{name}" for name in names]


@pytest.mark.parametrize("module", sorted((ROOT / "flows").rglob("*.py")), ids=lambda p: p.stem)
def test_annotations_are_evaluated_because_prefect_reads_them(module: Path) -> None:
    assert "\nfrom __future__ import annotations" not in module.read_text()


@pytest.fixture
def served(toy: ToyProject) -> Iterator[Server]:
    toy.add_flows()
    server = Server(toy.root)
    yield server
    server.stop()


@pytest.mark.slow
def test_a_served_run_takes_the_form_and_can_be_cancelled(toy: ToyProject, served: Server) -> None:
    with pytest.raises(HTTPError, match=r"409|422"):
        served.run(overrides={"finetune": {"head_lr": 2}})

    run = served.run(overrides={"finetune": {"head_lr": 0.0004}})
    assert served.wait_for_end(run)["name"] == "Completed"
    assert served.ended_tasks(run, 4)["left"] == "Completed"
    assert "experiment" in served.api(f"flow_runs/{run}")["state"]["message"]
    assert toy.git("status", "--porcelain") == ""

    toy.set("finetune.head_lr", 0.0003)
    toy.write("left.sleep", "120")
    run = served.run()
    stage = wait_for_file(toy.root / "left.pid")
    served.api(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    assert served.wait_for_end(run)["type"] == "CANCELLED"
    assert not psutil.pid_exists(stage)
    states = eventually(
        lambda: served.task_states(run), lambda names: "Running" not in names.values()
    )
    assert (states["fetch"], states["left"]) == ("Cached", "Cancelled")
    # Where there are lanes for both, its sibling was begun too, and what follows was told.
    assert {*states.values()} <= {"Cached", "Cancelled", "Skipped"}


@pytest.mark.slow
def test_a_schedule_that_is_switched_on_starts_runs_at_their_time(
    toy: ToyProject, served: Server
) -> None:
    deployment = served.api(f"deployments/name/{DEPLOYMENT}")
    nightly = f"deployments/{deployment['id']}/schedules/{deployment['schedules'][0]['id']}"
    served.api(nightly, {"active": True}, method="PATCH")
    planned = eventually(lambda: served.runs(["SCHEDULED"]), bool)
    assert {run["expected_start_time"][11:16] for run in planned} == {"03:00"}
    served.api(nightly, {"active": False}, method="PATCH")

    minutely = {"active": True, "schedule": {"cron": "* * * * *", "timezone": "Etc/UTC"}}
    served.api(f"deployments/{deployment['id']}/schedules", [minutely])
    run = eventually(lambda: served.runs(["COMPLETED", "FAILED", "CRASHED"]), bool)[0]
    assert run["state"]["name"] == "Completed"
    assert served.ended_tasks(run["id"], 4) == dict.fromkeys(STAGES, "Cached")
    times = [datetime.fromisoformat(run[f"{which}start_time"]) for which in ("", "expected_")]
    late = times[0] - times[1]  # the runner looks ahead and may be early by a moment
    assert abs(late) < timedelta(seconds=30)


@pytest.mark.slow
def test_schedules_stay_as_changed_and_nothing_outlives_the_server(
    toy: ToyProject, served: Server
) -> None:
    deployment = served.api(f"deployments/name/{DEPLOYMENT}")
    known = deployment["schedules"][0]
    assert (known["active"], known["schedule"]["timezone"]) == (False, "Etc/UTC")
    added = {"active": True, "schedule": {"cron": "0 5 * * *", "timezone": "Europe/Vienna"}}
    served.api(f"deployments/{deployment['id']}/schedules", [added])

    toy.set("finetune.head_lr", 0.0003)
    toy.write("left.sleep", "120")
    served.run()
    stage = wait_for_file(toy.root / "left.pid")
    assert served.stop() == []
    assert not psutil.pid_exists(stage)

    (toy.root / "left.sleep").unlink()
    again = Server(toy.root)
    found = again.api(f"deployments/name/{DEPLOYMENT}")["schedules"]
    assert sorted((one["active"], one["schedule"]["cron"]) for one in found) == [
        (False, "0 3 * * *"),
        (True, "0 5 * * *"),
    ]
    run = again.run()
    assert again.wait_for_end(run)["name"] == "Completed"
    assert set(again.task_states(run)) == set(STAGES)
    assert again.stop() == []


def start_sleeping_run(served: Server, toy: ToyProject, **parameters: Any) -> tuple[str, int]:
    """Start a run whose stage `left` sleeps; give the run and the process of the stage."""
    toy.set("finetune.head_lr", 0.0003)
    toy.write("left.sleep", "120")
    run = served.run(**parameters)
    return run, wait_for_file(toy.root / "left.pid")


def kill(*processes: psutil.Process) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, 20)


def flow_process(stage: int) -> psutil.Process:
    """The process of the run that started a stage: the parent of the stage's guard."""
    above = psutil.Process(stage).parents()
    guarded = next(one for one in above if any(word.endswith("guard.py") for word in one.cmdline()))
    flow = guarded.parent()
    assert flow is not None
    return flow


@pytest.mark.slow
def test_a_second_run_waits_for_the_first_and_says_so(toy: ToyProject, served: Server) -> None:
    first, _ = start_sleeping_run(served, toy)
    second = served.run()
    waiting = eventually(lambda: served.state(second), lambda state: state["name"] == "Waiting")
    assert waiting["type"] == "RUNNING"
    name = served.api(f"flow_runs/{first}")["name"]
    assert waiting["message"].startswith(f"for run {name}")
    (toy.root / "left.sleep").unlink()
    served.api(f"flow_runs/{first}/set_state", {"state": {"type": "CANCELLING"}})
    assert served.wait_for_end(second)["name"] == "Completed"
    assert "Aborted" not in "".join(served.said)


@pytest.mark.slow
def test_a_run_whose_process_is_killed_is_told_with_all_its_tasks(
    toy: ToyProject, served: Server
) -> None:
    run, stage = start_sleeping_run(served, toy)
    kill(flow_process(stage))
    assert served.wait_for_end(run)["type"] == "CRASHED"
    told = eventually(
        lambda: served.task_states(run),
        lambda names: not {"Running", "Pending"} & {*names.values()},
    )
    assert (told["fetch"], told["left"]) == ("Cached", "Crashed")
    assert {*told.values()} <= {"Cached", "Crashed"}  # of two lanes, its sibling's too
    asked = {"logs": {"flow_run_id": {"any_": [run]}}}
    eventually(
        lambda: served.api("logs/filter", asked),
        lambda logs: any("run it again" in log["message"] for log in logs),
    )
    (toy.root / "left.sleep").unlink()
    again = served.run()
    assert served.wait_for_end(again)["name"] == "Completed"
    assert not psutil.pid_exists(stage)


@pytest.mark.slow
def test_after_a_power_cut_the_next_server_settles_what_was_at_work(
    toy: ToyProject, served: Server
) -> None:
    run, _ = start_sleeping_run(served, toy)
    values = {"finetune": {"head_lr": 0.0004}}
    isolated = served.run(overrides=values)
    clone = eventually(lambda: list((toy.root / ".regraft/runs").glob("*/params.yaml")), bool)[0]
    eventually(lambda: served.task_states(isolated), lambda names: "left" in names)
    kill(*psutil.Process(served.process.pid).children(recursive=True))
    kill(psutil.Process(served.process.pid))
    (toy.root / "left.sleep").unlink()

    again = Server(toy.root)
    assert {again.state(one)["type"] for one in (run, isolated)} == {"CRASHED"}
    assert "run it again" in again.state(run)["message"]
    for one in (run, isolated):
        assert not {"RUNNING", "PENDING"} & {state["type"] for state in again.tasks(one).values()}
    assert not clone.parent.exists()
    said = "".join(again.said)
    assert f"Removed the working copy of run {clone.parent.name}, which was killed." in said
    retried = again.run()
    assert again.wait_for_end(retried)["name"] == "Completed"
    again.api(f"flow_runs/{isolated}/set_state", {"state": {"type": "SCHEDULED"}, "force": True})
    assert again.wait_for_end(isolated)["name"] == "Completed"
    assert toy.dvc("exp", "list", "--name-only").split() == [clone.parent.name]
    assert again.stop() == []


@pytest.mark.slow
def test_a_run_that_fails_and_a_runner_that_is_killed_are_told_in_a_line(
    toy: ToyProject, served: Server
) -> None:
    toy.set("finetune.head_lr", 0.0003)
    toy.write("left.break", "no rates")
    family = psutil.Process(served.process.pid).children(recursive=True)
    run = served.run()
    assert served.wait_for_end(run)["message"] == "left: no rates"
    eventually(lambda: psutil.Process(served.process.pid).children(recursive=True), family.__eq__)
    said = "".join(served.said)
    assert "Finished in state Failed('left: no rates')" in said
    assert "Traceback" not in said

    runner = [one for one in family if "flows.serving.deployment" in one.cmdline()][-1]
    kill(runner)
    assert served.process.wait(90) == 1
    eventually(lambda: served.said[-1], lambda line: line.startswith("ui stopped: "))
    assert tells(served.said[-1], "the runner ended by itself (killed (SIGKILL)", "stands above")


@pytest.mark.slow
def test_nothing_outlives_a_guard_that_is_killed(toy: ToyProject, served: Server) -> None:
    start_sleeping_run(served, toy)
    family = psutil.Process(served.process.pid).children(recursive=True)
    guards = [one for one in family if any(word.endswith("guard.py") for word in one.cmdline())]
    runner = next(one for one in guards if "flows.serving.deployment" in one.cmdline())
    kill(runner)
    assert served.process.wait(90) == 1
    assert psutil.wait_procs(family, 30)[1] == []


@pytest.mark.slow
def test_nothing_outlives_a_server_that_is_killed(toy: ToyProject, served: Server) -> None:
    _, stage = start_sleeping_run(served, toy)
    family = psutil.Process(served.process.pid).children(recursive=True)
    assert stage in {process.pid for process in family}
    kill(psutil.Process(served.process.pid))
    assert psutil.wait_procs(family, 60)[1] == []
