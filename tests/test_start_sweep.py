"""`regraft sweep`: what it refuses, and the run that it starts on a real server."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import tells
from served import Server, free_port
from test_cli import said, stopped
from test_doctor import answering
from toy import ToyProject

pytest_plugins = ["toy_fixtures"]

RATES = ("--set", "finetune.head_lr=0.0004,0.0005")


def test_without_a_server_the_way_to_one_is_told(toy: ToyProject) -> None:
    port = str(free_port())
    text = stopped(toy.root, "sweep", *RATES, REGRAFT_UI_PORT=port)
    assert (
        text == f"regraft stopped: no server answers at 127.0.0.1:{port}; start one: regraft ui\n"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "nothing to try; give --set"),
        (("--set", "finetune.head_lr"), "--set finetune.head_lr is no setting"),
        (("--seeds", ""), "--seeds has no values"),
        (("--set", "finetune.head_lr=[1"), "cannot be read"),
        (("--set", "finetune.heade_lr=1"), "Did you mean finetune.head_lr?"),
        (("--set", "finetune.head_lr=0.0004,-1"), "finetune.head_lr is -1; allowed: "),
        (("--set", "seed=1", "--set", "seed=2"), "--set seed stands twice"),
        (("--set", "seed=1", "--seeds", "2"), "--seeds and --set seed are both given"),
        (("--set", "seed=1,two"), "seed is 'two'"),
    ],
)
def test_a_setting_that_cannot_be_tried_is_told(
    toy: ToyProject, words: tuple[str, ...], told: str
) -> None:
    assert tells(stopped(toy.root, "sweep", *words), "regraft stopped: ", told)


@pytest.mark.parametrize("setting", ["finetune.headlr=1", "finetune.head_lr=-1", "heads.lr=1"])
def test_no_line_is_told_of_a_value_that_stands_in_no_file(toy: ToyProject, setting: str) -> None:
    text = stopped(toy.root, "sweep", "--set", setting)
    key = "heads" if setting.startswith("heads") else setting.partition("=")[0]
    assert f"\n{key} is " in text
    assert not re.search(r"params\.yaml:\d", text)


def test_values_are_checked_together(toy: ToyProject) -> None:
    words = ("--set", "finetune.head_lr=0.0001")  # below backbone_lr
    assert "backbone_lr" in stopped(toy.root, "sweep", *words)
    both = (*words, "--set", "finetune.backbone_lr=0.0001")
    text = stopped(toy.root, "sweep", *both, REGRAFT_UI_PORT=str(free_port()))
    assert "no server answers" in text


def test_the_server_of_another_project_is_left_alone(toy: ToyProject) -> None:
    answers = {"deployments/name/sweep/regraft-sweep": {"id": "1"}}
    with answering(answers) as port:
        text = stopped(toy.root, "sweep", *RATES, REGRAFT_UI_PORT=str(port))
    assert tells(text, f"is that of {Path.cwd()}", "regraft ui")


def test_a_server_without_the_deployment_is_told(toy: ToyProject) -> None:
    with answering({}) as port:
        text = stopped(toy.root, "sweep", *RATES, REGRAFT_UI_PORT=str(port))
    assert "has no sweep/regraft-sweep" in text


@pytest.fixture
def server(toy: ToyProject) -> Iterator[Server]:
    toy.add_flows()
    running = Server(toy.root)
    try:
        yield running
    finally:
        assert running.stop() == []


@pytest.mark.slow
def test_the_running_server_gets_the_sweep(server: Server) -> None:
    settings = {"REGRAFT_UI_PORT": str(server.port)}
    words = (*RATES, "--seeds", "1,2")
    text = said(server.root, "sweep", *words, **settings)
    assert tells(text, ", 4 runs: ", server.address)
    run = server.api(f"flow_runs/{text.strip().rsplit('/', 1)[1]}")
    grid = {"finetune.head_lr": [0.0004, 0.0005]}
    assert {"grid": grid, "seeds": [1, 2]}.items() <= run["parameters"].items()
    server.wait_for_end(run["id"])
    trials = [one["name"] for one in server.runs() if one["parent_task_run_id"]]
    assert len(trials) == 4


@pytest.mark.slow
def test_doctor_knows_a_server_whose_schedules_fire(server: Server) -> None:
    settings = {"REGRAFT_UI_PORT": str(server.port)}
    known = server.api("deployments/name/pipeline/regraft-pipeline")
    (schedule,) = known["schedules"]
    path = f"deployments/{known['id']}/schedules/{schedule['id']}"
    server.api(path, {"active": True}, "PATCH")
    text = said(server.root, "doctor", **settings)
    assert tells(text, f"runs at 127.0.0.1:{server.port}, for this machine alone", "1 schedule on")
