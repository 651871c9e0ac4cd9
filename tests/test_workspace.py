"""One run at a time in one working tree."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT

from flows.errors import GraphError
from flows.stages import workspace
from flows.stages.workspace import LOCK, hold_workspace

HOLD = """
import pathlib, sys, time
from flows.stages.workspace import hold_workspace
with hold_workspace(pathlib.Path(sys.argv[1]), "busy-bee", print):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "PAUSE_SECONDS", 0.05)


def start_holder(root: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def stop(holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.communicate()


def test_a_second_run_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    said: list[str] = []
    with (
        pytest.raises(GraphError, match=rf"still held by run busy-bee \(process {holder.pid}, si"),
        hold_workspace(tmp_path, "second", said.append, busy_seconds=0.2),
    ):
        pass
    stop(holder)
    assert len(said) == 1
    assert "waiting" in said[0]


def test_the_lock_of_a_killed_run_is_free(tmp_path: Path) -> None:
    stop(start_holder(tmp_path))
    said: list[str] = []
    with hold_workspace(tmp_path, "second", said.append):
        assert '"run": "second"' in (tmp_path / LOCK).read_text()
    assert said == []


def test_a_second_run_starts_when_the_first_ends(tmp_path: Path) -> None:
    order: list[str] = []
    waiting = threading.Event()

    def second() -> None:
        with hold_workspace(tmp_path, "second", lambda line: waiting.set()):
            order.append("second")

    with hold_workspace(tmp_path, "first", print):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_holder_that_is_just_writing_its_name_is_another_run(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    os.truncate(tmp_path / LOCK, 0)
    with (
        pytest.raises(GraphError, match="held by another run"),
        hold_workspace(tmp_path, "second", print, busy_seconds=0),
    ):
        pass
    stop(holder)
