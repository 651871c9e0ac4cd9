import json
import logging
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tasks.errors import DataError
from tasks.runtime import entry
from tasks.runtime.entry import Read, StagePaths, Write, read_paths, run_stage

STAGE = """
import logging, sys, time
from pathlib import Path
from tasks.artifacts.files import replacing_file
from tasks.runtime.entry import run_stage
from tasks.errors import DataError
log = logging.getLogger("tasks.toy")

def main(argv):
    log.info("found %d cats", 3)
    logging.getLogger("library").info("chatter")
    {body}

sys.exit(run_stage("toy", main))
"""
WAIT = """
    with replacing_file(Path("out.txt")) as temporary:
        temporary.write_text("half")
        print("ready", flush=True)
        time.sleep(60)
"""


def start(tmp_path, body="pass", **environment):
    script = tmp_path / "stage.py"
    script.write_text(STAGE.format(body=body))
    return subprocess.Popen(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parent.parent), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background ignores Ctrl-C, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )


def run(tmp_path, body="pass", **environment):
    process = start(tmp_path, body, **environment)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


# a stage as a process ----------------------------------------------------------------------------


def test_a_finished_stage_logs_what_it_found_and_how_long_it_took(tmp_path):
    status, errors = run(tmp_path)
    assert status == 0
    assert errors == "toy: found 3 cats\n"
    timing = json.loads((tmp_path / ".regraft/timings/toy.json").read_text())
    assert timing["stage"] == "toy"
    assert 0 <= timing["seconds"] < 60


def test_a_mistake_of_the_user_is_one_message_without_traceback(tmp_path):
    status, errors = run(tmp_path, "raise DataError('class \\'cat\\' has no images')")
    assert status == 1
    assert errors == "toy: found 3 cats\ntoy stopped: class 'cat' has no images\n"
    assert not (tmp_path / ".regraft").exists()


@pytest.mark.parametrize("cause", ["OSError(errno.ENOSPC, 'No space left')", "MemoryError()"])
def test_a_machine_at_its_limits_has_an_exit_status_of_its_own(tmp_path, cause):
    code = f"import errno\n    raise DataError('cannot be written') from {cause}"
    assert run(tmp_path, code)[0] == 75


def test_a_name_that_is_not_utf8_can_be_shown(tmp_path):
    status, errors = run(tmp_path, r"raise DataError('bad \udcff.png')")
    assert status == 1
    assert r"toy stopped: bad \udcff.png" in errors


def test_a_defect_keeps_its_traceback(tmp_path):
    status, errors = run(tmp_path, "1 / 0")
    assert status == 1
    assert "Traceback" in errors
    assert "ZeroDivisionError" in errors


def test_a_wrong_variable_stops_a_stage_before_it_starts(tmp_path):
    status, errors = run(tmp_path, REGRAFT_DEVICE="tpu")
    assert status == 1
    assert errors.startswith("toy stopped: environment variable REGRAFT_DEVICE is 'tpu'; ")
    assert "cats" not in errors


def test_a_timing_that_cannot_be_written_does_not_fail_the_stage(tmp_path):
    (tmp_path / "scratch").write_text("a file, not a folder")
    status, errors = run(tmp_path, REGRAFT_SCRATCH="scratch")
    assert status == 0
    assert "toy.json: cannot be written" in errors


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_a_stopped_stage_tidies_up_and_says_how_it_ended(tmp_path, number, expected):
    process = start(tmp_path, WAIT)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == expected
    assert "Traceback" not in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stage.py"]


# in this process ---------------------------------------------------------------------------------


@pytest.fixture
def quiet(monkeypatch, tmp_path):
    """Keep this process's log, signals and memory settings as they are."""
    root, tasks = logging.getLogger(), logging.getLogger("tasks")
    before = root.handlers[:], root.level, tasks.level
    terminate = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(entry, "prepare_memory", lambda: None)
    monkeypatch.setenv("REGRAFT_SCRATCH", str(tmp_path))
    yield
    root.handlers[:], root.level = before[:2]
    tasks.setLevel(before[2])
    signal.signal(signal.SIGTERM, terminate)


def fail(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "status"),
    [
        (lambda argv: None, 0),
        (fail(DataError("no images")), 1),
        (fail(KeyboardInterrupt()), 130),
    ],
    ids=["finished", "stopped", "interrupted"],
)
def test_the_status_says_how_a_stage_ended(quiet, tmp_path, main, status):
    assert run_stage("toy", main) == status
    assert (tmp_path / "timings/toy.json").exists() == (status == 0)


def test_what_is_no_stage_of_the_graph_leaves_no_timing_in_anybodys_folder(quiet, tmp_path):
    assert run_stage("toy", lambda argv: None, timed=False) == 0
    assert not (tmp_path / "timings").exists()


def test_a_terminal_gets_a_styled_log(quiet, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    run_stage("toy", lambda argv: logging.getLogger("tasks.toy").info("found [b]3[/b] cats"))
    shown = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().err)
    assert shown.strip() == "toy: found [b]3[/b] cats"


def test_the_terminate_signal_exits_with_its_status(quiet):
    with pytest.raises(SystemExit, match="143"):
        run_stage("toy", lambda argv: signal.raise_signal(signal.SIGTERM))


# arguments ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ToyPaths(StagePaths):
    test_features: Read
    metrics: Write


def paths(*arguments):
    return read_paths(ToyPaths, "toy", "A toy.", arguments)


def test_arguments_are_paths_by_name():
    found = paths("--test-features", "a b/f.npy", "--metrics", "m.json")
    assert found.test_features == Path("a b/f.npy")
    assert found.metrics == Path("m.json")
    assert found.params == Path("params.yaml")


def test_paths_know_which_of_them_are_read():
    assert ToyPaths(test_features=Path("f"), metrics=Path("m")).read == [Path("f")]


def test_other_parameters_can_be_named():
    found = paths("--test-features", "f", "--metrics", "m", "--params", "other.yaml")
    assert found.params == Path("other.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "m"], "required: --test-features"),
        (
            ["--test-features", "f", "--metrics", "m", "--more", "x"],
            "unrecognized arguments: --more",
        ),
    ],
    ids=["missing", "unknown"],
)
def test_wrong_arguments_are_named(capsys, arguments, message):
    with pytest.raises(SystemExit):
        paths(*arguments)
    shown = capsys.readouterr().err
    assert message in shown
    assert "python -m tasks.toy" in shown
