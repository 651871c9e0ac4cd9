"""`regraft doctor` finds each planted fault and tells its fix; a sound project has none."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import torch
from conftest import ROOT, draw_classes, tells
from test_cli import regraft
from toy import ToyProject

from flows.commands.doctor import check_disk, check_git, check_locks, check_storage, check_versions
from flows.commands.finding import Finding
from flows.commands.server_health import check_schedules, check_server, check_settings
from flows.stages.locks import WORKSPACE, hold
from tasks.params import Params
from tasks.runtime.machine import Machine

pytest_plugins = ["toy_fixtures"]

LONG_AGO = datetime.now(UTC) - timedelta(hours=1)


@contextmanager
def answering(
    answers: dict[str, Any], *, host: str = "127.0.0.1", status: int = 200
) -> Iterator[int]:
    """Something that answers as the server's API would; give its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.removeprefix("/api/")
            found = answers.get("late" if b"Late" in asked else path)
            self.send_response(status if found is not None else 404)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer((host, 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def prefect(
    *, planned: int = 3, late: int = 0, changed: datetime = LONG_AGO, active: bool = True
) -> Any:
    """What a Prefect server answers of one deployment with a schedule."""
    schedule = {"active": active, "updated": changed.isoformat(), "created": changed.isoformat()}
    deployment = {"id": "1", "name": "regraft-pipeline", "schedules": [schedule]}
    return {
        "admin/version": "3.9.1",
        "deployments/filter": [deployment],
        "flow_runs/count": planned,
        "late": late,
    }


def faults(findings: Iterator[Finding], level: str = "fault") -> list[str]:
    """What of a level was found, each with a fix."""
    chosen = [finding for finding in findings if finding.level == level]
    assert all(finding.fix for finding in chosen if level != "ok")
    return [finding.line() for finding in chosen]


def with_versions(project: ToyProject) -> ToyProject:
    for name in ("constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, project.root)
    return project


# the whole of it ---------------------------------------------------------------------------------


def test_a_sound_project_has_no_fault(toy: ToyProject) -> None:
    with_versions(toy)
    status, text = regraft(toy.root, "doctor", REGRAFT_UI_PORT="1")
    lines = text.splitlines()
    assert not [line for line in lines if line.startswith("fault")], text
    assert status == 0
    known = {"versions", "git", "parameters", "locks", "cache", "remote", "gpu", "server"}
    assert {line.split()[1] for line in lines} >= known


@pytest.mark.skipif(torch.cuda.is_available(), reason="looks for a GPU that is not there")
def test_every_planted_fault_is_found_at_once(toy: ToyProject) -> None:
    with_versions(toy)
    constraints = toy.read("constraints.txt").replace("\nfastapi==", "\nfastapi==0.1.")
    toy.write("constraints.txt", constraints)
    toy.set("finetune.head_lr", -1)
    toy.write(".dvc/tmp/rwlock", '{"read": {')
    settings = {"REGRAFT_DEVICE": "cuda", "PREFECT_SERVER_API_HOST": "0.0.0.0"}
    with answering(prefect(planned=0), host="0.0.0.0") as port:
        status, text = regraft(toy.root, "doctor", REGRAFT_UI_PORT=str(port), **settings)
    found = [line.split(maxsplit=2)[1:] for line in text.splitlines() if line.startswith("fault")]
    assert [what for what, _ in found] == [
        "versions",
        "parameters",
        "locks",
        "gpu",
        "settings",
        "server",
        "schedules",
    ]
    assert all("; fix: " in words for _, words in found)
    assert status == 1


# one by one --------------------------------------------------------------------------------------


def test_versions_that_break_schedules_are_a_fault(toy: ToyProject) -> None:
    with_versions(toy)
    assert faults(check_versions(toy.root)) == []
    text = toy.read("constraints.txt")
    toy.write("constraints.txt", text.replace("\nSQLAlchemy==", "\nSQLAlchemy==1."))
    (line,) = faults(check_versions(toy.root))
    assert tells(line, "sqlalchemy 2", "in place of 1.2", "schedules may never fire", "pip install")


def test_other_versions_are_a_warning(toy: ToyProject) -> None:
    with_versions(toy)
    text = toy.read("constraints.txt")
    toy.write("constraints.txt", text.replace("\nnumpy==", "\nnumpy==1."))
    assert faults(check_versions(toy.root)) == []
    (line,) = faults(check_versions(toy.root), "warning")
    assert tells(line, "numpy 2", "results may round anew")


def test_what_is_not_installed_is_a_fault(toy: ToyProject) -> None:
    with_versions(toy)
    text = toy.read("pyproject.toml").replace('"dvc>=', '"never-there>=1",\n    "dvc>=')
    toy.write("pyproject.toml", text)
    assert "not installed: never-there" in faults(check_versions(toy.root))[0]


def test_a_project_without_a_commit_is_a_fault(toy: ToyProject) -> None:
    assert faults(check_git(toy.root)) == []
    shutil.rmtree(toy.root / ".git")
    toy.git("init", "--quiet")
    assert "has no commit" in faults(check_git(toy.root))[0]
    toy.write(".dvc/config.local", "[core]\n    no_scm = true\n")
    assert faults(check_git(toy.root)) == []


def test_a_lock_that_is_held_names_its_holder(toy: ToyProject) -> None:
    assert faults(check_locks(toy.root), "ok") != []
    with hold(toy.root / WORKSPACE, "clever-owl", lambda holder: None):
        (line,) = [one.line() for one in check_locks(toy.root)]
    assert tells(line, "warning", "held by run clever-owl")


def test_a_lock_whose_holder_died_is_a_fault(toy: ToyProject) -> None:
    holder = {"pid": os.getpid(), "cmd": "dvc repro of long ago"}
    toy.write(".dvc/tmp/rwlock", json.dumps({"write": {"out/left.txt": holder}}))
    (line,) = faults(check_locks(toy.root))
    assert tells(line, "what held the lock has died", "fix: rm ", "rwlock")
    toy.write(".dvc/tmp/rwlock", "{}")
    assert faults(check_locks(toy.root)) == []


def test_a_process_that_is_at_work_is_named(toy: ToyProject) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    readers = [{"pid": int(ended.stdout), "cmd": "dvc repro"}]
    command = " ".join(psutil.Process().cmdline())
    writers = {"out/left.txt": {"pid": os.getpid(), "cmd": command}}
    toy.write(".dvc/tmp/rwlock", json.dumps({"write": writers, "read": {"work.py": readers}}))
    (line,) = [one.line() for one in check_locks(toy.root)]
    assert tells(line, "warning", f"process {os.getpid()} is at work", "fix: wait for it")


def test_a_copy_that_a_run_left_is_told(toy: ToyProject) -> None:
    (toy.root / ".regraft/runs/owl").mkdir(parents=True)
    toy.write(".regraft/runs/owl.kept", "left: no bins")
    (line,) = [one.line() for one in check_locks(toy.root)]
    assert tells(line, "left: no bins", "fix: rm -r ", "runs/owl")


def test_copies_in_place_of_links_are_a_warning(
    toy: ToyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.dvc("config", "cache.type", "hardlink,symlink,copy")
    assert "links (hardlink)" in faults(check_storage(toy.root), "ok")[0]
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("another device")))
    assert "no hard links between" in faults(check_storage(toy.root), "warning")[0]
    toy.dvc("config", "cache.type", "copy")
    assert "the disk twice" in faults(check_storage(toy.root), "warning")[0]


def test_a_project_without_a_remote_is_told(toy: ToyProject, tmp_path: Path) -> None:
    assert any("remote add" in line for line in faults(check_storage(toy.root), "warning"))
    toy.dvc("remote", "add", "--default", "shelf", str(tmp_path / "shelf"))
    assert any("shelf" in line for line in faults(check_storage(toy.root), "ok"))


@pytest.mark.parametrize(("gigabytes", "level"), [(0.0001, "fault"), (5, "warning"), (50, "ok")])
def test_the_disk_is_measured_against_what_the_run_needs(
    tmp_path: Path,
    default_params: Params,
    monkeypatch: pytest.MonkeyPatch,
    gigabytes: float,
    level: str,
) -> None:
    draw_classes(tmp_path / "raw", images=2)
    source = default_params.ingest.model_copy(update={"source": "raw"})
    usage = namedtuple("usage", "total used free")(0, 0, int(gigabytes * 1e9))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    params = default_params.model_copy(update={"ingest": source})
    (finding,) = check_disk(tmp_path, params, Machine())
    assert finding.level == level
    assert "6 images" in finding.found


# the server --------------------------------------------------------------------------------------


def looked(port: int) -> list[Finding]:
    return list(check_server({"REGRAFT_UI_PORT": str(port)}))


def test_a_server_for_this_machine_alone_is_sound() -> None:
    with answering(prefect()) as port:
        assert [finding.level for finding in looked(port)] == ["ok", "ok"]


def test_a_server_that_all_can_reach_is_a_fault() -> None:
    with answering(prefect(), host="0.0.0.0") as port:
        (line,) = faults(iter(looked(port)))
    assert tells(line, f"0.0.0.0:{port}", "without a password", "PREFECT_SERVER_API_AUTH_STRING")


def test_a_server_with_a_password_is_sound() -> None:
    with answering(prefect(), host="0.0.0.0", status=401) as port:
        assert [finding.level for finding in looked(port)] == ["ok"]


def test_what_is_no_server_is_told() -> None:
    with answering({}) as port:
        assert "is no Prefect server" in faults(iter(looked(port)))[0]
    assert "none runs" in faults(iter(looked(port)), "ok")[0]
    assert "allowed: 1 to 65534" in faults(check_server({"REGRAFT_UI_PORT": "x"}))[0]


def test_a_schedule_that_is_on_and_does_not_fire_is_a_fault() -> None:
    with answering(prefect(planned=0)) as port:
        (line,) = faults(check_schedules(port))
        assert tells(line, "regraft-pipeline is on", "will never fire")
    with answering(prefect(late=2)) as port:
        assert "2 planned runs of regraft-pipeline are late" in faults(check_schedules(port))[0]
    for sound in (prefect(planned=0, changed=datetime.now(UTC)), prefect(planned=0, active=False)):
        with answering(sound) as port:
            assert faults(check_schedules(port)) == []


def test_settings_that_open_a_server_are_a_fault() -> None:
    assert list(check_settings({"PREFECT_API_URL": "http://127.0.0.1:4200/api"})) == []
    open_to_all = {"PREFECT_SERVER_API_HOST": "0.0.0.0"}
    assert "0.0.0.0 without a password" in faults(check_settings(open_to_all))[0]
    guarded = open_to_all | {"PREFECT_SERVER_API_AUTH_STRING": "me:secret"}
    assert list(check_settings(guarded)) == []
    away = {"PREFECT_API_URL": "http://host.example/api", "PREFECT_API_AUTH_STRING": "me:secret"}
    (line,) = faults(check_settings(away), "warning")
    assert "host.example without https" in line
    assert "secret" not in line
