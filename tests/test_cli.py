"""`regraft`: every verb through the real command line, on the toy project."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, tells
from PIL import Image
from served import wait_for_file
from toy import STAGES, ToyProject

from tasks.artifacts.records import write_json

pytest_plugins = ["toy_fixtures"]

VERBS = (
    "run",
    "plan",
    "ui",
    "predict",
    "monitor",
    "compare",
    "promote",
    "sweep",
    "card",
    "doctor",
    "new",
)
AFTER_LEFT = "if the results of left change"
HEAVY = {"torch", "prefect", "dvc", "numpy", "PIL"}
# Saves for a second when it is told to end, below a shell that ends at once.
SLOW_TO_END = """\
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), sys.exit(143)))
"""
OWN_CODE = "import sys\n\ndef main():\n    print('own code', *sys.argv[1:])\n\nmain()\n"


def regraft(folder: Path, *words: str, **settings: str) -> tuple[int, str]:
    """Type a command in a folder: exit status, and all that it said."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *words],
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **settings},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert "Traceback" not in done.stdout, done.stdout
    return done.returncode, done.stdout


def said(folder: Path, *words: str, **settings: str) -> str:
    """What a command that succeeds says."""
    status, text = regraft(folder, *words, **settings)
    assert status == 0, text
    return text


def stopped(folder: Path, *words: str, **settings: str) -> str:
    """What a command that fails says."""
    status, text = regraft(folder, *words, **settings)
    assert status == 1, text
    return text


# starting ----------------------------------------------------------------------------------------


def test_help_names_every_verb_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, contextlib, time\n"
        "sys.argv = ['regraft', '--help']\n"
        "from flows.cli import main\n"
        "with contextlib.suppress(SystemExit):\n    main()\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)), time.process_time() < 0.5)\n"
    )
    command = [sys.executable, "-c", code]
    text = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert text.endswith("[] True\n")
    assert all(f"  {verb} " in text for verb in VERBS)


def test_the_nearest_project_above_is_entered(toy: ToyProject) -> None:
    below = toy.root / "out/deep"
    below.mkdir()
    assert "4 stages unchanged" in said(below, "plan")


@pytest.mark.parametrize("verb", ["predict", "monitor"])
def test_from_below_the_project_its_own_model_is_meant(toy: ToyProject, verb: str) -> None:
    below = toy.root / "out/below"
    below.mkdir()
    Image.new("RGB", (40, 30)).save(below / "a.png")
    out = "answers.csv" if verb == "predict" else "looks"
    assert "../../data/report/model: " in stopped(below, verb, ".", out)
    assert "other: " in stopped(below, verb, ".", out, "--model", "other")


@pytest.mark.parametrize("verb", ["run", "plan", "ui", "doctor"])
def test_outside_of_a_project_the_way_in_is_told(tmp_path: Path, verb: str) -> None:
    text = stopped(tmp_path, verb)
    assert tells(text, "regraft stopped: ", str(tmp_path), "dvc.yaml and params.yaml", "new")
    assert text.count("\n") == 1


def test_a_project_runs_its_own_code_from_wherever_the_script_is(tmp_path: Path) -> None:
    for name in ("dvc.yaml", "params.yaml", "flows/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "flows/cli.py").write_text(OWN_CODE)
    (tmp_path / "data").mkdir()
    assert said(tmp_path / "data", "plan", "--deep") == "own code plan --deep\n"


# run ---------------------------------------------------------------------------------------------


def test_run_runs_what_is_stale_and_says_where_the_results_are(fresh_toy: ToyProject) -> None:
    fresh_toy.write("data/report/report.html", "")
    text = said(fresh_toy.root, "run")
    assert [line for line in STAGES if f"Running stage '{line}'" in text] == STAGES
    assert f"Report:  {fresh_toy.root}/data/report/report.html\nModel:" in text
    assert "Running stage" not in said(fresh_toy.root, "run")


def test_run_of_a_stage_runs_what_it_needs_alone(fresh_toy: ToyProject) -> None:
    text = said(fresh_toy.root, "run", "left")
    assert [line for line in STAGES if f"Running stage '{line}'" in text] == ["fetch", "left"]
    assert "Report:" not in text


def test_a_wrong_value_is_told_before_anything_runs(fresh_toy: ToyProject) -> None:
    fresh_toy.set("finetune.head_lr", -1)
    text = stopped(fresh_toy.root, "run")
    assert tells(text, "check stopped: params.yaml:", "finetune.head_lr is -1; allowed: ")
    assert "Running stage" not in text


def test_a_stage_that_fails_fails_the_run(fresh_toy: ToyProject) -> None:
    fresh_toy.write("right.break", "no bins")
    status, text = regraft(fresh_toy.root, "run")
    assert status != 0
    assert "right stopped: no bins" in text


def start_run(toy: ToyProject) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run"],
        cwd=toy.root,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_second_run_waits_for_the_first_and_says_so(fresh_toy: ToyProject) -> None:
    fresh_toy.write("fetch.sleep", "120")
    with start_run(fresh_toy) as first:
        stage = wait_for_file(fresh_toy.root / "fetch.pid")
        plan = said(fresh_toy.root, "plan", "fetch")
        second = start_run(fresh_toy)
        assert second.stdout is not None
        waiting = second.stdout.readline()
        (fresh_toy.root / "fetch.sleep").unlink()
        os.kill(stage, signal.SIGTERM)
        assert "Running stage 'fetch'" in first.communicate()[0]
        rest = second.communicate()[0]
        assert first.returncode != 0
        assert second.returncode == 0
    at_work = r"another run is at work \(process \d+\)\n"
    assert re.fullmatch(f"waiting: {at_work}", waiting)
    assert re.search(f"^fetch .* {at_work}", plan, re.MULTILINE)
    assert "waiting" not in rest
    assert "Running stage 'join'" in rest


def test_a_lock_that_was_left_over_is_told_before_a_run_meets_it(toy: ToyProject) -> None:
    toy.write(".dvc/tmp/rwlock", '{"write": {"/so')
    assert tells(stopped(toy.root, "run"), "regraft stopped: ", "rwlock was cut off. Delete that")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_lets_the_stage_end_and_leaves_nothing(
    fresh_toy: ToyProject, number: signal.Signals
) -> None:
    fresh_toy.write("fetch.sleep", "60")
    fresh_toy.write("work.py", SLOW_TO_END + fresh_toy.read("work.py"))
    graph = fresh_toy.read("dvc.yaml")
    fresh_toy.write("dvc.yaml", graph.replace("out/fetch.txt\n", "out/fetch.txt && true\n", 1))
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run"],
        cwd=fresh_toy.root,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        # What a shell starts in the background ignores Ctrl-C, these tests perhaps too.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    stage = wait_for_file(fresh_toy.root / "fetch.pid")
    if number == signal.SIGINT:  # a terminal sends it to all
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    assert process.wait(60) != 0
    # Whose parent has ended is taken over by the system's first process, which may let it lie.
    with suppress(psutil.NoSuchProcess):
        assert psutil.Process(stage).status() == psutil.STATUS_ZOMBIE


# plan --------------------------------------------------------------------------------------------


def test_plan_tells_what_would_run_and_why(toy: ToyProject) -> None:
    toy.set("finetune.head_lr", 0.5)
    lines = said(toy.root, "plan").splitlines()
    assert lines[0].split(maxsplit=3) == ["left", "not", "known", "finetune.head_lr 0.0005 -> 0.5"]
    assert lines[1].split(maxsplit=3) == ["join", "not", "known", AFTER_LEFT]
    assert lines[2] == (
        "1 of 4 stages would run, 1 of unknown time; "
        "1 more if results before them change, 1 of unknown time"
    )
    assert len(lines) == 3


def test_plan_changes_nothing(toy: ToyProject) -> None:
    toy.set("finetune.head_lr", 0.5)
    before = toy.git("status", "--porcelain"), toy.lock, toy.read("out/left.txt")
    said(toy.root, "plan")
    assert before == (toy.git("status", "--porcelain"), toy.lock, toy.read("out/left.txt"))


def test_plan_knows_the_time_of_the_last_run(toy: ToyProject) -> None:
    for stage, seconds in (("left", 100.0), ("join", 20.0)):
        write_json(toy.root / f".regraft/timings/{stage}.json", {"seconds": seconds})
    toy.set("finetune.head_lr", 0.5)
    lines = said(toy.root, "plan").splitlines()
    assert tells(lines[0], "left", " 2 min ")
    assert tells(lines[1], "join", " 20 s ")
    assert lines[2] == (
        "1 of 4 stages would run, about 2 min; 1 more if results before them change, about 20 s"
    )


def test_plan_knows_what_the_cache_brings_back(toy: ToyProject) -> None:
    toy.set("finetune.head_lr", 0.5)
    toy.dvc("repro")
    toy.set("finetune.head_lr", 0.0005)
    assert tells(said(toy.root, "plan").splitlines()[0], "left", "from cache", "0.5 -> 0.0005")


def test_plan_of_a_stage_looks_at_what_it_needs_alone(toy: ToyProject) -> None:
    toy.set("finetune.head_lr", 0.5)
    assert said(toy.root, "plan", "right") == "nothing to run: 2 stages unchanged\n"


def test_plan_names_the_stage_that_was_meant(toy: ToyProject) -> None:
    text = stopped(toy.root, "plan", "rigth")
    assert tells(text, "regraft stopped: 'rigth' is no stage", "Did you mean right?")


# the verbs that call a module ---------------------------------------------------------------------


def test_ui_says_what_the_folder_lacks(toy: ToyProject) -> None:
    assert "ui stopped: " in (text := stopped(toy.root, "ui"))
    assert "holds no prefect.yaml" in text


def test_predict_passes_on_what_it_is_given(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    words = ["predict", "--model", "nowhere", "--on-bad", "fail", "a.png", "out.csv"]
    assert tells(stopped(tmp_path, *words), "predict stopped: ", "nowhere")
    assert tells(said(tmp_path, "predict", "--help"), "--probabilities", "source out")


def test_monitor_passes_on_what_it_is_given(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    words = ["monitor", "--model", "nowhere", "a.png", "looks"]
    assert tells(stopped(tmp_path, *words), "monitor stopped: ", "nowhere")


@pytest.mark.slow
def test_card_passes_on_what_it_is_given(toy: ToyProject) -> None:
    (toy.root / "none").mkdir()
    words = ["card", "--images", "none", "--name", "none", "--out", "card.safetensors"]
    assert tells(stopped(toy.root, *words), "cards stopped: none: holds no image files")
