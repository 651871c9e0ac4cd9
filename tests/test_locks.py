"""Locks: one run at a time in one working tree, and lanes of the machine."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from flows.stages import locks
from flows.stages.locks import (
    WORKSPACE,
    hold,
    hold_if_free,
    hold_lane,
    holder_of,
    lanes_of,
    visible_gpus,
)
from tasks.runtime.machine import Machine

HOLD = """
import pathlib, sys, time
from flows.stages.locks import WORKSPACE, hold
with hold(pathlib.Path(sys.argv[1]) / WORKSPACE, "busy-bee", print):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PAUSE_SECONDS", 0.05)


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


def give_up(holder: str) -> None:
    raise TimeoutError(holder)


def test_a_second_run_is_told_the_name_of_the_first(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    with (
        pytest.raises(TimeoutError, match=rf"^run busy-bee \(process {holder.pid}, since"),
        hold(tmp_path / WORKSPACE, "second", give_up),
    ):
        pass
    stop(holder)


def test_the_lock_of_a_killed_run_is_free(tmp_path: Path) -> None:
    stop(start_holder(tmp_path))
    said: list[str] = []
    with hold(tmp_path / WORKSPACE, "second", said.append):
        assert '"run": "second"' in (tmp_path / WORKSPACE).read_text()
    assert said == []


def test_a_second_run_starts_when_the_first_ends(tmp_path: Path) -> None:
    order: list[str] = []
    waiting = threading.Event()

    def wait(holder: str) -> None:
        order.append("told")
        waiting.set()

    def second() -> None:
        with hold(tmp_path / WORKSPACE, "second", wait):
            order.append("second")

    with hold(tmp_path / WORKSPACE, "first", print):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(10)
        time.sleep(4 * locks.PAUSE_SECONDS)
        order.append("first")
    thread.join(10)
    assert order == ["told", "first", "second"]


def test_a_holder_that_is_just_writing_its_name_is_another_run(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    os.truncate(tmp_path / WORKSPACE, 0)
    with (
        pytest.raises(TimeoutError, match="another run"),
        hold(tmp_path / WORKSPACE, "second", give_up),
    ):
        pass
    stop(holder)


def test_a_stage_that_outlives_its_run_keeps_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with hold(path, "first", print) as lock:
        stage = subprocess.Popen(["sleep", "60"], pass_fds=[lock])
    assert str(holder_of(path)).startswith("run first")
    stage.kill()
    stage.wait()
    assert holder_of(path) is None
    assert holder_of(tmp_path / "never held") is None


@pytest.mark.parametrize(
    ("cores", "gpus", "settings", "lanes"),
    [
        (2, "", {}, [None]),
        (8, "", {}, [None]),
        (8, "", {"threads": 4}, [None, None]),
        (8, "", {"threads": 3}, [None, None]),
        (2, "", {"threads": 4}, [None]),
        (8, "0", {"threads": 2}, [None]),
        (8, "0,1", {}, ["0", "1"]),
        (8, "3,5,7", {}, ["3", "5", "7"]),
        (8, "0,1,2,3", {"processes": 2}, ["0,1", "2,3"]),
        (8, "0,1,2", {"processes": 2}, [None]),
        (8, "0,1", {"device": "cpu"}, [None]),
    ],
    ids=str,
)
def test_lanes_share_out_gpus_or_cores(
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    gpus: str,
    settings: dict[str, Any],
    lanes: list[str | None],
) -> None:
    monkeypatch.delenv("REGRAFT_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    monkeypatch.setattr("flows.stages.locks.usable_cores", lambda: cores)
    assert lanes_of(Machine(**settings)) == lanes


def test_gpus_are_those_that_the_driver_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-1, GPU-2"}) == ["GPU-1", " GPU-2"]
    program.write_text("#!/bin/sh\necho 'GPU 0: H100'\necho 'GPU 1: H100'\n")
    program.chmod(0o755)
    assert visible_gpus({}) == ["0", "1"]
    program.write_text("#!/bin/sh\necho 'GPU 0: A100'\necho '  MIG 3g.20gb Device 0:'\n")
    assert visible_gpus({}) == ["0"]
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert visible_gpus({}) == []


def test_a_lock_that_was_removed_while_it_was_being_taken_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.lock"
    flock = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        path.unlink()  # by who held it, right before this one gets it
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with hold_if_free(path, "late") as descriptor:
        assert descriptor is None
    monkeypatch.undo()
    with hold_if_free(path, "first") as first, hold_if_free(path, "second") as second:
        assert first is not None
        assert second is None


def test_two_lanes_take_two_stages_and_a_third_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    said: list[str] = []
    machine = Machine()
    with (
        hold_lane(tmp_path, "a", machine, print) as a,
        hold_lane(tmp_path, "b", machine, print) as b,
    ):
        assert {a.gpus, b.gpus} == {"0", "1"}
        with (
            pytest.raises(TimeoutError, match="run a"),
            hold_lane(tmp_path, "c", machine, give_up),
        ):
            pass
    with hold_lane(tmp_path, "c", machine, said.append) as lane:
        assert lane.gpus == "0"
    assert said == []
