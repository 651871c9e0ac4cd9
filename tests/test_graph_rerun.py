"""The whole graph on tiny data with real DVC: what reruns, is restored, and survives a kill."""

import contextlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT, TINY, draw_classes, draw_image
from dvc.repo import Repo
from ruamel.yaml import YAML
from test_contracts import ALL_MODULES, GRAPH, STAGES, expected_code_deps, templated_keys

from flows.stages.graph import read_state
from tasks.params_file import leaf_paths

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("default"),  # DVC's own dependencies warn
]

COPIED = [
    "dvc.yaml",
    "params.yaml",
    "constraints.txt",
    ".dvcignore",
    ".dvc/plots",
    "tasks",
    "data/cards",
    "data/weights",
]


MACHINE = {"REGRAFT_ENGINE": "torch", "REGRAFT_THREADS": "1"}


class Project:
    """A copy of the project in a folder of its own, with tiny parameters and images."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_SITE_CACHE_DIR": str(root.parent / "site"),
            "DVC_NO_ANALYTICS": "1",
            "PYTHONPATH": "",
            **MACHINE,
        }

    def create(self) -> None:
        for name in COPIED:
            source, target = ROOT / name, self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        (self.root / ".dvc").mkdir(exist_ok=True)
        shutil.copy(ROOT / ".dvc/config", self.root / ".dvc/config")
        for name in ("data/groups.csv", "data/corrections.csv"):
            shutil.copy(ROOT / name, self.root / name)
        draw_classes(self.root / "data/raw")
        for path, value in {**TINY, "ingest.source": "data/raw"}.items():
            self.put(path, value)
        (self.root / ".gitignore").write_text(".regraft/\n/data/raw/\n__pycache__/\n")
        self.git("init", "--quiet")
        self.commit("Start")

    def compute(self) -> None:
        """Run the stages in this process, which imports everything once, and tell DVC."""
        with pytest.MonkeyPatch.context() as patch, contextlib.chdir(self.root):
            for key, value in MACHINE.items():
                patch.setenv(key, value)
            for stage in STAGES[:-1]:
                arguments = shlex.split(GRAPH[stage]["cmd"])[3:]
                import_module(f"tasks.{stage}").main(arguments)
        self.dvc("commit", "--force", *STAGES[:-1])
        assert self.repro() == STAGES[-1:]  # a report names the code that wrote it

    def commit(self, message: str) -> None:
        self.git("add", "--all")
        name = ["-c", "user.name=Regraft", "-c", "user.email=regraft@localhost"]
        self.git(*name, "commit", "--quiet", "--message", message)

    def git(self, *arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=self.root, check=True)

    def put(self, path: str, value: Any) -> None:
        yaml = YAML()
        tree = yaml.load(self.root / "params.yaml")
        *blocks, leaf = path.split(".")
        node = tree
        for block in blocks:
            node = node[block]
        node[leaf] = value
        yaml.dump(tree, self.root / "params.yaml")

    def get(self, path: str) -> Any:
        node = YAML(typ="safe").load(self.root / "params.yaml")
        for part in path.split("."):
            node = node[part]
        return node

    def dvc(self, *arguments: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            check=False,
            cwd=self.root,
            env={**self.environment, **environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def repro(self, *arguments: str, **environment: str) -> list[str]:
        """Run `dvc repro` and name the stages whose command ran."""
        return re.findall(r"Running stage '(\w+)'", self.dvc("repro", *arguments, **environment))

    def changes(self) -> dict[str, set[str]]:
        """Key paths and files that `dvc status` calls changed, for each stale stage."""
        with contextlib.chdir(self.root), Repo() as repo:
            status = repo.status()
        found: dict[str, set[str]] = {}
        for stage, entries in status.items():
            found[stage] = set()
            for entry in entries:
                changed = entry.get("changed deps", {}) if isinstance(entry, dict) else {entry: ""}
                for path, how in changed.items():
                    found[stage] |= set(how) if isinstance(how, dict) else {path}
        return found

    def seconds_to_start(self, stage: str) -> float:
        """Measure how long the stage's process takes until it has read its arguments."""
        started = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", f"tasks.{stage}", "--help"],
            check=True,
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.DEVNULL,
        )
        return time.monotonic() - started

    def kill_after(self, seconds: float, stage: str) -> bool:
        """Run a stage and kill its process; tell whether that came before its end."""
        running = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro", "--single-item", "--force", stage],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        child = wait_for_stage(running.pid, stage)
        time.sleep(seconds)
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
        return running.wait(timeout=120) != 0  # DVC fails where its stage was killed

    @property
    def lock(self) -> bytes:
        return (self.root / "dvc.lock").read_bytes()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("whole") / "project")
    project.create()
    project.compute()
    return project


@pytest.fixture(scope="module")
def ran(project: Project) -> Project:
    """The same after DVC ran every stage again with other workers, to the same bytes."""
    before = project.lock
    assert project.repro("--force", REGRAFT_WORKERS="3") == topological(STAGES)
    assert project.lock == before
    return project


@pytest.fixture(autouse=True)
def unchanged_afterwards(project: Project) -> Iterator[None]:
    params, lock = (project.root / "params.yaml").read_bytes(), project.lock
    yield
    (project.root / "params.yaml").write_bytes(params)
    if project.lock != lock:
        project.repro()


def topological(stages: list[str]) -> list[str]:
    return sorted(stages, key=STAGES.index)


def other(value: Any) -> Any:
    """A value that differs from the given one, of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return [*value, 0.77] if isinstance(value, list) else f"{value}x"


def test_an_unchanged_project_runs_nothing(project: Project) -> None:
    before = project.lock
    assert project.repro() == []
    assert project.lock == before


def test_results_are_not_on_the_disk_twice(project: Project) -> None:
    cached = {path.stat().st_ino for path in (project.root / ".dvc/cache/files").rglob("*")}
    shards = list((project.root / "data/augment").rglob("*.npy"))
    assert shards
    assert {path.stat().st_ino for path in shards} <= cached


def test_each_value_is_named_where_it_makes_a_stage_stale(project: Project) -> None:
    leaves = set(leaf_paths()) - set().union(*map(templated_keys, STAGES))
    for path in leaves:
        project.put(path, other(project.get(path)))
    # One state names, for every stage, which of all the changed values concern it.
    _, reasons = read_state(project.root)
    named = {
        stage: {why.split(" ")[0] for why in reasons[stage] if " -> " in why} for stage in STAGES
    }
    blocks = {stage: set(GRAPH[stage].get("params", [])) for stage in STAGES if stage != "report"}
    expected = {
        stage: {leaf for leaf in leaves if leaf.split(".")[0] in read}
        for stage, read in blocks.items()
    }
    assert named == expected | {"report": leaves}
    assert reasons["check"] == ["params.yaml modified"]


def test_another_source_makes_only_ingest_stale(project: Project) -> None:
    shutil.copytree(project.root / "data/raw", project.root / "data/other", dirs_exist_ok=True)
    project.put("ingest.source", "data/other")
    assert set(project.changes()) == {"check", "ingest", "report"}  # the report prints every value
    shutil.rmtree(project.root / "data/other")


def test_each_package_makes_exactly_its_importers_stale(project: Project) -> None:
    for module in ALL_MODULES:
        with (project.root / module.relative_to(ROOT)).open("a") as file:
            file.write("\n# touched\n")
    assert project.changes() == {
        stage: expected_code_deps(stage) - {"constraints.txt"} for stage in STAGES
    }
    for module in ALL_MODULES:
        shutil.copy(module, project.root / module.relative_to(ROOT))
    assert project.changes() == {}


def test_what_editors_leave_beside_code_and_images_is_not_seen(project: Project) -> None:
    left = ["tasks/training/.loop.py.swp", "tasks/heads/mlp.py~", "data/raw/.DS_Store"]
    for path in left:
        (project.root / path).write_text("")
    assert project.changes() == {}
    for path in left:
        (project.root / path).unlink()


@pytest.mark.parametrize(
    "name",
    [
        '$(touch PWNED) "b" `touch PWNED` set$2',
        pytest.param("-n", marks=pytest.mark.slow),
        pytest.param("${seed}", marks=pytest.mark.slow),
    ],
)
def test_no_shell_reads_the_name_of_a_folder(project: Project, name: str) -> None:
    shutil.copytree(project.root / "data/raw", project.root / "data" / name)
    project.put("ingest.source", f"data/{name}")
    assert project.repro("ingest") == ["check", "ingest"]
    origin = json.loads((project.root / "data/ingest/source.json").read_text())
    assert origin["root"] == f"data/{name}"
    assert not list(project.root.rglob("PWNED"))
    shutil.rmtree(project.root / "data" / name)


def test_a_mistake_is_told_first_and_in_one_line(project: Project) -> None:
    text = (project.root / "params.yaml").read_text()
    (project.root / "params.yaml").write_text(text.replace("  head_lr:", "  heed_lr:"))
    with pytest.raises(AssertionError) as stopped:
        project.repro()
    said = str(stopped.value)
    assert "finetune.heed_lr is not a parameter. Did you mean finetune.head_lr?" in said
    assert "Running stage 'ingest'" not in said
    (project.root / "params.yaml").write_text(text)
    assert project.repro() == []


def test_other_contents_of_the_weights_are_seen(project: Project) -> None:
    weights = project.root / "data/weights/mine.safetensors"
    weights.write_bytes(b"one")
    assert project.changes() == {"extract": {"data/weights"}}
    weights.unlink()
    (project.root / "data/weights/README.md").write_text("Other words")
    assert project.changes() == {}


def test_a_change_of_an_image_is_seen(project: Project) -> None:
    image = project.root / "data/raw/cat/000.png"
    original = image.read_bytes()
    draw_image(0, 999).save(image)
    assert set(project.changes()) == {"ingest"}
    image.write_bytes(original)
    assert project.changes() == {}


@pytest.mark.slow
def test_one_stage_can_be_rerun_alone(ran: Project) -> None:
    ran.put("evaluate.ece_bins", 4)
    assert ran.repro("--single-item", "evaluate") == ["evaluate"]


# Those that work long enough to be killed at it; the others write a file or two at their end.
AT_WORK = ["ingest", "augment", "extract", "audit", "race", "finetune", "evaluate", "report"]


def read_plots(page: Path) -> list[dict[str, Any]]:
    """The Vega-Lite specifications of the page that `dvc plots show` writes."""
    found = re.findall(r"var spec = (\{.*?\});\s*vegaEmbed", page.read_text(), flags=re.DOTALL)
    return [json.loads(specification) for specification in found]


def check_axes_have_numbers(plot: dict[str, Any]) -> None:
    """A text on a quantitative axis draws nothing."""
    rows = plot["data"]["values"]
    fields = re.findall(r'"field": "([^"]+)", "type": "quantitative"', json.dumps(plot))
    known = [field for field in fields if field in rows[0]]
    assert known or fields == 3 * ["xy_count"], plot["title"]  # of the confusion, which Vega counts
    assert all(math.isfinite(float(row[field])) for row in rows for field in known)


@pytest.mark.slow
def test_metrics_plots_and_experiments_work_unaided(ran: Project) -> None:
    shown = json.loads(ran.dvc("metrics", "show", "--json"))
    val, test = shown[""]["data"]
    assert (val, test) == ("data/finetune/val.json", "data/evaluate/summary.json")
    for path, accuracy in ((val, "val_accuracy"), (test, "test_accuracy")):
        assert 0 <= shown[""]["data"][path]["data"][accuracy] <= 1
    ran.dvc("plots", "show", "--out", str(ran.root.parent / "plots"))
    plots = read_plots(ran.root.parent / "plots/index.html")
    assert len(plots) == 5
    for plot in plots:
        check_axes_have_numbers(plot)
    ran.dvc("exp", "run", "--name", "faster", "--set-param", "evaluate.ece_bins=3")
    listed = ran.dvc("exp", "show", "--csv")
    assert "faster" in listed
    assert "evaluate.ece_bins" in ran.dvc("params", "diff")
    ran.git("checkout", "--quiet", "--", ".")
    ran.dvc("checkout")


@pytest.mark.slow
@pytest.mark.parametrize("stage", AT_WORK)
def test_a_stage_killed_at_work_runs_again_to_the_same_result(ran: Project, stage: str) -> None:
    before = ran.lock
    seconds = json.loads((ran.root / f".regraft/timings/{stage}.json").read_text())["seconds"]
    start = ran.seconds_to_start(stage)
    moments = [start + seconds * share for share in (0.5, 0.25, 0.1)]
    moments += [start / part for part in (2, 4, 8)]  # where the machine is faster than it was
    assert any(ran.kill_after(moment, stage) for moment in moments), "it always ended before"
    assert ran.repro("--single-item", "--force", stage) == [stage]  # not from the run cache
    assert ran.repro() == []
    assert ran.lock == before


def wait_for_stage(pid: int, stage: str) -> psutil.Process:
    """Wait until the stage's own process below `dvc repro` exists."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in psutil.Process(pid).children(recursive=True):
            if f"tasks.{stage}" in " ".join(child.cmdline()) and "python" in child.name():
                return child
        time.sleep(0.05)
    raise AssertionError(f"{stage} did not start")
