"""The use by DVC, walked from a fresh clone to its end: dvc repro, whole and after a change.

Also what comes between: runs that are killed at any moment, and a worker elsewhere. Everything is
real: git, DVC with a remote, a Prefect server. The uses from the UI are in test_uses_ui.
"""

import json
import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from cloned import Project
from served import Server, eventually

pytest_plugins = ["cloned_fixtures"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

TRAINED = "data/finetune/model.safetensors"


# dvc repro ---------------------------------------------------------------------------------------


def test_dvc_repro_runs_what_a_change_made_stale_and_restores_what_was_there(
    project: Project,
) -> None:
    assert "up to date" in project.dvc("status")
    before, rate = project.lock, project.read("params.yaml")
    project.set("finetune.head_lr", 0.0004)
    assert project.repro() == ["check", "race", "decide", "finetune", "evaluate", "report"]
    assert "0.0004" in project.dvc("params", "diff")
    project.write("params.yaml", rate)
    assert project.repro() == []
    assert project.lock == before
    assert project.git("status", "--porcelain") == ""


def test_images_that_are_added_go_wherever_the_project_goes(
    project: Project, tmp_path: Path
) -> None:
    project.dvc("add", "data/raw")
    project.dvc("remote", "add", "--default", "shelf", str(tmp_path / "shelf"))
    assert project.repro() == []
    project.commit("Track the images")
    project.dvc("push")
    second = Project.clone(project.root, tmp_path / "second")
    assert not (second.root / "data/raw").exists()
    second.dvc("pull")
    assert len(list((second.root / "data/raw").rglob("*.png"))) == 90
    assert "up to date" in second.dvc("status")
    assert second.repro() == []

    second.dvc("exp", "run", "--temp", "--name", "apart", "-S", "evaluate.ece_bins=4", "evaluate")
    second.dvc("exp", "run", "--queue", "--name", "queued", "-S", "evaluate.ece_bins=3", "evaluate")
    second.dvc("queue", "start")
    eventually(second.experiments, lambda names: {"apart", "queued"} <= set(names), 180)
    eventually(lambda: second.dvc("queue", "status"), lambda text: "Running" not in text, 60)


def test_with_the_cache_on_another_disk_the_images_are_links_and_read(
    project: Project, tmp_path: Path
) -> None:
    manifest = project.read("data/ingest/manifest.csv")
    project.dvc("config", "--local", "cache.type", "symlink")
    project.dvc("cache", "dir", "--local", str(tmp_path / "disk"))
    project.dvc("add", "data/raw")
    images = list((project.root / "data/raw").rglob("*.png"))
    assert images
    assert all(path.is_symlink() for path in images)
    assert project.repro("--force", "--single-item", "ingest") == ["ingest"]
    assert project.read("data/ingest/manifest.csv") == manifest


def test_without_dvc_add_a_copy_lacks_the_images_and_says_so(project: Project) -> None:
    with pytest.raises(AssertionError) as error:
        project.dvc("exp", "run", "--temp", "-S", "ingest.min_side_px=9")
    assert "dvc add data/raw in the project itself" in str(error.value)


# killed, and elsewhere ---------------------------------------------------------------------------


def test_a_run_killed_at_random_moments_ends_in_the_same_model(
    ran: Project, tmp_path: Path
) -> None:
    # From scratch, so that the model is what training made of it, whatever val thinks.
    values = {"decide": {"arm": "scratch"}, "finetune": {"scratch_epochs": 12}, "seed": 18}
    calm = ran.copy(tmp_path / "calm")
    server = Server(calm.root)
    started = time.monotonic()
    run = server.run(overrides=values)
    assert server.wait_for_end(run, 300)["type"] == "COMPLETED"
    seconds = time.monotonic() - started
    server.stop()
    (name,) = calm.experiments()
    expected = calm.hash_in(calm.reference(name), TRAINED)

    project = ran.copy(tmp_path / "killed")
    drawn, server = random.Random(5), Server(project.root)
    try:
        run = server.run(overrides=values)
        for _ in range(5):
            time.sleep(drawn.uniform(2, seconds * 0.4))
            if server.state(run)["type"] == "COMPLETED":
                break
            kill_something(drawn, server)
            server.stop()
            server = Server(project.root)
            state = server.state(run)["type"]
            # Cancelled, where what was killed left the others the time to end.
            assert state in {"CRASHED", "CANCELLED", "COMPLETED", "RUNNING"}
            if state in {"CRASHED", "CANCELLED"}:
                again = {"state": {"type": "SCHEDULED"}, "force": True}
                server.api(f"flow_runs/{run}/set_state", again)
        assert server.wait_for_end(run, 300)["type"] == "COMPLETED"
    finally:
        server.stop()
    (name,) = project.experiments()
    assert project.hash_in(project.reference(name), TRAINED) == expected
    assert not list((project.root / ".regraft/runs").glob("*/"))
    assert project.git("status", "--porcelain") == ""


def kill_something(drawn: random.Random, server: Server) -> None:
    """Kill the whole of it, as a power cut does, or one process alone."""
    family = [psutil.Process(server.process.pid)]
    family += family[0].children(recursive=True)
    drawn.shuffle(family)
    for process in family[: drawn.choice([1, len(family)])]:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def test_runs_of_a_worker_elsewhere_come_back_through_the_remotes(
    ran: Project, tmp_path: Path
) -> None:
    project = ran.copy(tmp_path / "cells")
    project.dvc("add", "data/raw")
    project.dvc("remote", "add", "--default", "shelf", str(tmp_path / "shelf"))
    project.commit("Track the images")
    hub = tmp_path / "hub.git"
    project.git("clone", "--quiet", "--bare", str(project.root), str(hub))
    project.git("remote", "set-url", "origin", str(hub))
    project.dvc("push", "--run-cache")
    server = Server(project.root)
    try:
        with worker_elsewhere(project, server, hub, tmp_path):
            deployment = "pipeline/regraft-docker"
            whole = server.run(deployment)
            assert server.wait_for_end(whole, 300)["type"] == "COMPLETED"
            assert set(server.ended_tasks(whole, 14).values()) == {"Cached"}
            apart = server.run(deployment, overrides={"evaluate": {"ece_bins": 4}})
            message = server.wait_for_end(apart, 300)["message"]
            assert "3 ran, 11 cached" in message, message  # data/raw.dvc is one of them
            name = message.split("experiment ")[1].split(":")[0]
            again = server.run(deployment, overrides={"evaluate": {"ece_bins": 4}})
            assert server.wait_for_end(again, 300)["type"] == "COMPLETED"
            states = server.ended_tasks(again, 14)  # made by the run before, in another clone
            assert (states["check"], states["report"]) == ("Cached", "Cached")
            swept = server.run(
                "sweep/regraft-sweep", rows=[{"evaluate.ece_bins": 6}], deployment=deployment
            )
            message = server.wait_for_end(swept, 300)["message"]
            assert message.endswith("1 run"), message
    finally:
        server.stop()
    assert len(project.experiments()) == 1  # the sweep's own came back with it
    project.dvc("exp", "pull", "origin", name)
    project.dvc("exp", "apply", name)
    assert project.repro() == []
    summary = json.loads(project.read("data/evaluate/summary.json"))
    assert 0 <= summary["test_accuracy"] <= 1


@contextmanager
def worker_elsewhere(
    project: Project, server: Server, hub: Path, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker that has nothing of the project but its two remotes."""
    environment = {
        **os.environ,
        "PREFECT_API_URL": f"http://127.0.0.1:{server.port}/api",
        "PREFECT_HOME": str(folder / "prefect"),
        "REGRAFT_REPOSITORY": f"file://{hub}",
        "REGRAFT_IMAGE": "none",
        "DO_NOT_TRACK": "1",
    }
    server.api("work_pools/", {"name": "elsewhere", "type": "process"})
    deploy = ["prefect", "--no-prompt", "deploy", "--name", "regraft-docker", "--pool", "elsewhere"]
    settings = ["--job-variable", "env.REGRAFT_GIT_REMOTE=origin"]
    subprocess.run([*deploy, *settings], cwd=project.root, env=environment, check=True)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    start = ["prefect", "worker", "start", "--pool", "elsewhere"]
    with subprocess.Popen(start, cwd=elsewhere, env=environment) as worker:
        try:
            yield worker
        finally:
            worker.terminate()
            try:
                worker.wait(60)
            except subprocess.TimeoutExpired:  # its way to the server may hang; not ours to prove
                worker.kill()
