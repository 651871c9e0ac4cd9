"""One stage as a process group: what DVC did, its lines, waiting, and that no child is left."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from toy import STAGES, ToyProject

from flows.errors import GraphError
from flows.stages import guard, runner
from flows.stages.guard import GRACE_SECONDS
from flows.stages.runner import Outcome, Runner, read_outcome

pytest_plugins = ["toy_fixtures"]


class Interruption(BaseException):
    """Stands for the signal that cancels a flow."""


def silent(line: str) -> None:
    """Take a line and do nothing."""


def wait_until_gone(pid: int, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def wait_for_file(path: Path, seconds: float = 30.0) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} never came")


def test_outcomes_of_real_dvc_are_ran_unchanged_and_restored(toy: ToyProject) -> None:
    lines: list[str] = []
    assert Runner(toy.root).run("left", lines.append).kind == "unchanged"
    toy.set("finetune.head_lr", 0.0003)
    assert Runner(toy.root).run("left", lines.append).kind == "ran"
    toy.set("finetune.head_lr", 0.0005)
    restored = Runner(toy.root).run("left", lines.append)
    assert restored == Outcome("restored", "restored from run-cache")
    assert "left starts" in lines  # what the stage itself printed on stderr
    assert not any("dvc push" in line or "git add" in line for line in lines)


def test_a_failure_is_told_by_the_stages_own_message(toy: ToyProject) -> None:
    toy.set("evaluate.ece_bins", 5)
    toy.write("right.break", "image 7 is broken;\nmend it")
    outcome = Runner(toy.root).run("right", silent)
    assert outcome == Outcome("failed", "image 7 is broken;\nmend it")


def error_line(status: int) -> str:
    return f"ERROR: failed to reproduce 'x': failed to run: python -m tasks.x, exited with {status}"


@pytest.mark.parametrize(
    ("status", "lines", "outcome"),
    [
        (0, ["Stage 'x' didn't change, skipping"], Outcome("unchanged", "unchanged")),
        (0, ["'data.dvc' didn't change, skipping"], Outcome("unchanged", "unchanged")),
        (
            0,
            ["Stage 'x' is cached - skipping run, checking out outputs", "Updating lock file"],
            Outcome("restored", "restored from run-cache"),
        ),
        (0, ["Running stage 'x':", "> python -m tasks.x", "x: 0.93 on val"], Outcome("ran", "ran")),
        (
            1,
            ["Running stage 'x':", "x stopped: no images", "", error_line(1), "hint"],
            Outcome("failed", "no images"),
        ),
        (
            1,
            ["Traceback", "ValueError: boom", error_line(1)],
            Outcome("failed", "exited with 1; its last line: ValueError: boom"),
        ),
        (
            1,
            ["x: epoch 3", error_line(-9)],
            Outcome(
                "failed",
                "killed (SIGKILL), most often because memory ran out; its last line: x: epoch 3",
                passing=True,
            ),
        ),
        (
            1,
            ["x stopped: data/x: cannot be written (No space left on device)", error_line(75)],
            Outcome("failed", "data/x: cannot be written (No space left on device)", passing=True),
        ),
        (
            1,
            ["x: epoch 3", error_line(143)],
            Outcome("failed", "ended by signal 15; its last line: x: epoch 3"),
        ),
        (
            1,
            ["ERROR: failed to reproduce 'x': missing data 'source': data/raw"],
            Outcome("failed", "missing data 'source': data/raw"),
        ),
        (254, ["ERROR: 'dvc.yaml' is invalid"], Outcome("failed", "'dvc.yaml' is invalid")),
        (137, [], Outcome("failed", "dvc exited with 137")),
    ],
    ids=lambda value: str(value)[:30],
)
def test_dvcs_lines_are_understood(status: int, lines: list[str], outcome: Outcome) -> None:
    assert read_outcome("x", status, lines) == outcome


def test_lines_come_while_the_stage_runs_and_an_interruption_ends_it(toy: ToyProject) -> None:
    toy.set("finetune.head_lr", 0.0003)
    toy.write("left.sleep", "60")

    def interrupt(line: str) -> None:
        if line == "left starts":
            wait_for_file(toy.root / "left.pid")
            raise Interruption

    started = time.monotonic()
    with pytest.raises(Interruption):
        Runner(toy.root).run("left", interrupt)
    assert time.monotonic() - started < 40
    assert wait_until_gone(int(toy.read("left.pid")))


def test_a_stage_whose_flow_is_killed_outright_does_not_live_on(toy: ToyProject) -> None:
    toy.set("finetune.head_lr", 0.0003)
    toy.write("left.sleep", "60")
    code = (
        "import pathlib\n"
        "from flows.stages.runner import Runner\n"
        f"Runner(pathlib.Path({str(toy.root)!r})).run('left', print)"
    )
    flow = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    stage = int(wait_for_file(toy.root / "left.pid"))
    flow.send_signal(signal.SIGKILL)
    flow.wait()
    assert wait_until_gone(stage)


COUNTING = """
import pathlib, signal, time
came = []
signal.signal(signal.SIGTERM, lambda *args: came.append(args))
print("ready", flush=True)
while not came:
    time.sleep(0.05)
time.sleep(0.5)
pathlib.Path({path!r}).write_text(str(len(came)))
"""
LEAVING = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(60)"


def test_a_stage_that_outlives_dvc_gets_one_signal(tmp_path: Path) -> None:
    stage = [sys.executable, "-c", COUNTING.format(path=str(tmp_path / "count"))]
    guarded = subprocess.Popen(
        [sys.executable, guard.__file__, sys.executable, "-c", LEAVING, *stage],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert guarded.stdout is not None
    assert guarded.stdout.readline() == "ready\n"
    guarded.communicate()  # closes its input
    assert (tmp_path / "count").read_text() == "1"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a parent's end")
def test_a_command_ends_when_the_guard_alone_is_killed(tmp_path: Path) -> None:
    script = COUNTING.format(path=str(tmp_path / "count"))
    with subprocess.Popen(
        [sys.executable, guard.__file__, sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as guarded:
        assert guarded.stdout is not None
        assert guarded.stdout.readline() == "ready\n"
        guarded.kill()
        # One signal for each thread of the guard that the kernel finds dead after the other.
        assert wait_for_file(tmp_path / "count") in {"1", "2"}


@pytest.mark.slow
def test_a_stage_that_ignores_sigterm_is_killed(toy: ToyProject) -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    toy.write("work.py", stubborn + toy.read("work.py"))
    toy.write("left.sleep", "60")
    started = time.monotonic()

    def interrupt(line: str) -> None:
        if line == "left starts":
            wait_for_file(toy.root / "left.pid")
            raise Interruption

    with pytest.raises(Interruption):
        Runner(toy.root).run("left", interrupt)
    assert wait_until_gone(int(toy.read("left.pid")))
    assert time.monotonic() - started < 40 + GRACE_SECONDS


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like a `dvc repro left` at work."""
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)", "dvc", "repro", "left"]
    process = subprocess.Popen(sleeping)
    yield process
    process.kill()
    process.wait()


def hold(toy: ToyProject, pid: int) -> None:
    info = {"pid": pid, "cmd": "dvc repro left"}
    held = {"write": {str(toy.root / "out/left.txt"): info}, "read": {}}
    toy.write(".dvc/tmp/rwlock", json.dumps(held))


def test_a_busy_stage_is_waited_for(
    toy: ToyProject, monkeypatch: pytest.MonkeyPatch, holder: subprocess.Popen[bytes]
) -> None:
    monkeypatch.setattr(runner, "FIRST_PAUSE_SECONDS", 0.1)
    toy.set("finetune.head_lr", 0.0003)
    hold(toy, holder.pid)
    lines: list[str] = []

    def listen(line: str) -> None:
        lines.append(line)
        if line.startswith("waiting"):
            (toy.root / ".dvc/tmp/rwlock").unlink()  # the other process has finished

    assert Runner(toy.root).run("left", listen).kind == "ran"
    assert f"waiting 0.1 s for process {holder.pid} (dvc repro left)" in lines


def test_waiting_ends_with_the_name_of_the_holder(
    toy: ToyProject, holder: subprocess.Popen[bytes]
) -> None:
    hold(toy, holder.pid)
    outcome = Runner(toy.root).run("left", silent, busy_seconds=0)
    message = f"process {holder.pid} (dvc repro left) still at work after 0 s"
    assert outcome == Outcome("failed", message, passing=True)


def test_a_lock_whose_number_another_program_has_by_now_is_named(toy: ToyProject) -> None:
    hold(toy, os.getppid())
    outcome = Runner(toy.root).run("left", silent)
    assert outcome.kind == "failed"
    assert not outcome.passing
    named = rf"rwlock names process {os.getppid()} \(dvc repro left\), a number that belongs to"
    assert re.search(named, outcome.message)
    assert outcome.message.endswith("Delete that file")


def test_a_lock_that_was_cut_off_is_named(toy: ToyProject) -> None:
    toy.set("finetune.head_lr", 0.0003)
    toy.write(".dvc/tmp/rwlock", '{"write": {"/so')
    outcome = Runner(toy.root).run("left", silent)
    assert outcome.kind == "failed"
    assert str(toy.root / ".dvc/tmp/rwlock") in outcome.message
    assert "Delete that file" in outcome.message


def test_stopping_ends_a_stage_and_starts_no_other(toy: ToyProject) -> None:
    toy.set("finetune.head_lr", 0.0003)
    toy.write("left.sleep", "60")
    stages = Runner(toy.root)
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(stages.run("left", silent)))
    thread.start()
    stage = int(wait_for_file(toy.root / "left.pid"))
    stages.stop()
    thread.join(10)
    assert wait_until_gone(stage)
    stopped = Outcome("stopped", "the run was stopped")
    assert [*outcomes, stages.run("right", silent)] == [stopped, stopped]


def test_another_dvc_command_gives_its_output_or_its_error(toy: ToyProject) -> None:
    assert Runner(toy.root).dvc("stage", "list", "--name-only").split() == STAGES
    with pytest.raises(GraphError, match=r"dvc exp at .* failed: .*ERROR"):
        Runner(toy.root).dvc("exp", "apply", "nothing")
