"""The three uses, each walked from a fresh clone to its end: dvc repro, the Prefect UI, one stage.

Everything is real: git, DVC with a remote, a Prefect server and, marked `browser`, Debian's
chromium. The images are drawn and few, the networks small.
"""

import json
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, TINY, draw_classes, tells
from playwright.sync_api import Locator, Page, expect, sync_playwright
from ruamel.yaml import YAML
from served import DEPLOYMENT, Server, eventually
from test_contracts import STAGES
from toy import ToyProject

from tasks.runtime.machine import usable_cores

pytest_plugins = ["toy_fixtures"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

NOT_COPIED = ("docs/", "tests/")
TRAINED = "data/finetune/model.safetensors"


class Project(ToyProject):
    """A clone of the whole project, with a user's images in data/raw."""

    @classmethod
    def clone(cls, origin: Path, root: Path) -> "Project":
        """Clone it and do what README says for images of one's own."""
        subprocess.run(["git", "clone", "--quiet", str(origin), str(root)], check=True)
        project = cls(root)
        project.git("config", "user.name", "User")
        project.git("config", "user.email", "user@localhost")
        return project

    def add_images(self) -> None:
        draw_classes(self.root / "data/raw")
        for path, value in {**TINY, "ingest.source": "data/raw"}.items():
            self.set(path, value)

    def copy(self, root: Path) -> "Project":
        shutil.copytree(self.root, root, symlinks=True)
        return Project(root)

    def repro(self, *arguments: str) -> list[str]:
        """Run `dvc repro` and name the stages whose command ran."""
        lines = self.dvc("repro", *arguments).splitlines()
        return [line.split("'")[1] for line in lines if line.startswith("Running stage")]

    def experiments(self) -> list[str]:
        return self.dvc("exp", "list", "--name-only").split()

    def hash_in(self, revision: str, path: str) -> str:
        """The md5 of an out in the dvc.lock of a revision."""
        stages = YAML(typ="safe").load(self.git("show", f"{revision}:dvc.lock"))["stages"].values()
        outs = (out for stage in stages for out in stage["outs"])
        return str(next(out["md5"] for out in outs if out["path"] == path))

    def reference(self, experiment: str) -> str:
        found = self.git("for-each-ref", "--format=%(refname)", "refs/exps/").split()
        return next(name for name in found if name.endswith(f"/{experiment}"))


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory, dvc_state: None) -> Path:
    """A git repository that holds the project as it is here, as a fresh clone would find it."""
    root = tmp_path_factory.mktemp("origin") / "regraft"
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT).decode().split("\0")
    for name in listed:
        if name and not name.startswith(NOT_COPIED) and (ROOT / name).exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    project = ToyProject(root)
    project.git("init", "--quiet", "--initial-branch=main")
    project.git("config", "user.name", "Regraft")
    project.git("config", "user.email", "regraft@localhost")
    project.git("config", "receive.denyCurrentBranch", "ignore")
    project.commit("Regraft")
    return root


@pytest.fixture(scope="module")
def ran(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone with images of its own after `dvc repro`, results committed. Not to be changed."""
    project = Project.clone(origin, tmp_path_factory.mktemp("ran") / "cells")
    project.add_images()
    assert project.repro() == STAGES
    project.commit("My images")
    return project


@pytest.fixture
def project(ran: Project, tmp_path: Path) -> Project:
    return ran.copy(tmp_path / "cells")


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


# the Prefect UI ----------------------------------------------------------------------------------


@pytest.fixture
def served(project: Project) -> Iterator[Server]:
    server = Server(project.root)
    yield server
    server.stop()


def test_a_run_of_the_whole_leaves_the_lock_of_dvc_repro_and_shows_what_came_of_it(
    origin: Path, ran: Project, tmp_path: Path
) -> None:
    project = Project.clone(origin, tmp_path / "cells")
    project.add_images()
    server = Server(project.root, empty=True)
    try:
        run = server.run()
        state = server.wait_for_end(run, 600)
        assert state["type"] == "COMPLETED", state
        assert set(server.ended_tasks(run, len(STAGES)).values()) == {"Completed"}
        shown = server.artifacts(run)
    finally:
        server.stop()
    assert project.lock == ran.lock
    told = rf"shipped .*: [\d.]+ % \[[\d., ]+\].*; {len(STAGES)} ran"
    assert re.fullmatch(told, state["message"])
    assert "on test" in shown["metrics"]
    assert shown["decision"]
    for picture in ("contact-sheet", "confusion"):
        assert shown[picture].startswith("![](data:image/")


def test_a_run_with_overrides_becomes_an_experiment_that_can_be_branched_and_rerun(
    project: Project, served: Server
) -> None:
    before = project.git("status", "--porcelain"), project.read("params.yaml"), project.lock
    run = served.run(overrides={"finetune": {"head_lr": 0.0004}})
    message = served.wait_for_end(run, 300)["message"]
    assert "6 ran, 7 cached" in message
    assert (project.git("status", "--porcelain"), project.read("params.yaml"), project.lock) == (
        before
    )
    (name,) = project.experiments()
    assert f"kept as experiment {name}" in message
    project.dvc("exp", "branch", name, "faster")
    project.git("checkout", "--quiet", "faster")
    project.dvc("checkout")
    assert project.repro() == []
    project.set("evaluate.ece_bins", 4)
    assert project.repro() == ["check", "evaluate", "report"]


def test_one_stage_is_rerun_from_its_deployment(project: Project, served: Server) -> None:
    project.set("evaluate.ece_bins", 4)
    deployment = "evaluate/regraft-evaluate"
    alone = served.run(deployment, reach="this stage alone")
    assert served.wait_for_end(alone, 300)["type"] == "COMPLETED"
    assert served.ended_tasks(alone, 1) == {"evaluate": "Completed"}
    follow = served.run(deployment)
    assert served.wait_for_end(follow, 300)["type"] == "COMPLETED"
    assert served.ended_tasks(follow, 2) == {"evaluate": "Cached", "report": "Completed"}
    assert project.repro() == ["check"]
    isolated = served.run("report/regraft-report", overrides={"report": {"title": "Mine"}})
    assert served.wait_for_end(isolated, 300)["message"].startswith("1 ran; kept as experiment")


def test_a_sweep_compares_settings_on_val_and_a_failed_run_stops_no_other(
    project: Project, served: Server
) -> None:
    rows = [{"finetune.head_lr": 0.0004}, {"finetune.head_lr": 0.0006}]
    broken = {
        "augment.image_px": 17,
        "backbone.name": "test_vit",
    }  # this network takes no such size
    run = served.run("sweep/regraft-sweep", rows=[*rows, broken], seeds=[17])
    state = served.wait_for_end(run, 600)
    assert state["type"] == "COMPLETED", state
    assert "; 2 runs, 1 failed" in state["message"]
    assert len(project.experiments()) == 2
    shown = served.artifacts(run)["sweep"]
    assert "| chosen |" in shown
    assert "test was looked at for it alone" in shown

    wrong = served.run("sweep/regraft-sweep", grid={"finetune.heed_lr": [0.1]})
    told = served.wait_for_end(wrong)
    assert told["type"] == "FAILED"
    assert tells(told["message"], "finetune.heed_lr", "Did you mean finetune.head_lr?")


@pytest.mark.skipif(usable_cores() < 2, reason="needs two cores for two processes")
def test_a_sweep_runs_on_a_dask_cluster_of_two_processes(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGRAFT_THREADS", "1")
    server = Server(project.root)
    try:
        rows = [{"evaluate.ece_bins": bins} for bins in (3, 4, 6)]
        run = server.run("sweep-dask/regraft-sweep-dask", rows=rows)

        def workers() -> set[int]:
            family = psutil.Process(server.process.pid).children(recursive=True)
            return {one.pid for one in family if is_dask_worker(one)}

        eventually(workers, lambda found: len(found) >= 2)
        state = server.wait_for_end(run, 300)
        assert state["type"] == "COMPLETED", state
        assert state["message"].endswith("3 runs")
        assert len(project.experiments()) == 3
        eventually(workers, lambda found: not found)
    finally:
        server.stop()


def is_dask_worker(process: psutil.Process) -> bool:
    try:
        return "multiprocessing.spawn" in " ".join(process.cmdline())
    except psutil.Error:
        return False


# in the browser ----------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or "chromium"
SCREENSHOTS = os.environ.get("REGRAFT_SCREENSHOTS")  # a folder for pictures of the repository's own


@pytest.fixture
def page() -> Iterator[Page]:
    quiet = ["background-networking", "component-update", "gpu", "quic", "sync"]
    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = browser.new_page(viewport={"width": 1280, "height": 825})
        yield page
        browser.close()


@pytest.fixture
def shown(ran: Project, tmp_path: Path) -> Project:
    """The project in the browser; for the pictures of docs/ the repository as it is committed."""
    if not SCREENSHOTS:
        return ran.copy(tmp_path / "cells")
    project = Project.clone(ROOT, tmp_path / "regraft")
    project.dvc("cache", "dir", "--local", str(ROOT / ".dvc/cache"))
    project.dvc("checkout")
    return project


def take_picture(page: Page, name: str) -> None:
    if SCREENSHOTS:
        page.wait_for_timeout(1500)
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


def field(page: Page, name: str) -> Locator:
    label = f".schema-form-property__label:text-is('{name} (Optional)')"
    return page.locator(f".p-label:has(> .p-label__header {label})").last


def submit(page: Page, field: Locator, value: str) -> None:
    field.locator("input").fill(value)
    page.wait_for_timeout(1000)  # the form takes a value over after a moment
    page.get_by_role("button", name="Submit").click()
    page.wait_for_timeout(3000)  # a locked database makes it answer "Oops": submit again


@pytest.mark.browser
def test_the_form_tells_a_wrong_value_at_its_field_and_the_page_of_a_run_leads_to_its_report(
    shown: Project, page: Page
) -> None:
    server = Server(shown.root)
    try:
        known = server.api(f"deployments/name/{DEPLOYMENT}")["id"]
        page.goto(f"{server.address}/deployments/deployment/{known}/run")
        bins = field(page, "ece_bins")
        expect(bins).to_contain_text("Allowed: at least 2, at most 100. In params.yaml now:")
        submit(page, bins, "1")
        expect(bins).to_contain_text("1 is less than the minimum of 2")
        bins.scroll_into_view_if_needed()
        take_picture(page, "ui-form-wrong")
        assert server.runs() == []
        submit(page, bins, "4")
        (made,) = eventually(lambda: server.runs() or submit(page, bins, "4"), bool)
        message = server.wait_for_end(made["id"], 300)["message"]

        page.goto(f"{server.address}/runs/flow-run/{made['id']}")
        expect(page.get_by_text("evaluate: evaluate.ece_bins")).to_be_visible(timeout=30_000)
        take_picture(page, "ui-run")
        page.get_by_text("Details", exact=True).click()
        expect(page.get_by_text(message.split(",")[0]).first).to_be_visible()
        page.get_by_text("Artifacts", exact=True).click()
        expect(page.get_by_text("metrics", exact=True).first).to_be_visible()
        take_picture(page, "ui-artifacts")
        made_of = server.api("artifacts/filter", {"flow_runs": {"id": {"any_": [made["id"]]}}})
        (report,) = [artifact["id"] for artifact in made_of if artifact["key"] == "report"]
        page.goto(f"{server.address}/artifacts/artifact/{report}")
        with page.expect_popup() as popup:
            page.get_by_role("link", name="Open the report").click()
        expect(popup.value.locator("h1")).to_contain_text("classifies")
    finally:
        server.stop()


@pytest.mark.browser
def test_a_schedule_with_overrides_that_is_switched_on_in_the_browser_fires(
    project: Project, page: Page
) -> None:
    text = project.read("prefect.yaml")
    assert text.count('cron: "0 3 * * *"') == 1
    project.write("prefect.yaml", text.replace('cron: "0 3 * * *"', 'cron: "* * * * *"'))
    server = Server(project.root)
    try:
        deployment = server.api(f"deployments/name/{DEPLOYMENT}")
        known, (schedule,) = deployment["id"], deployment["schedules"]
        parameters = {"overrides": {"evaluate": {"ece_bins": 4}}}
        path = f"deployments/{known}/schedules/{schedule['id']}"
        server.api(path, {"parameters": parameters}, "PATCH")
        page.goto(f"{server.address}/deployments/deployment/{known}")
        page.get_by_role("switch").click()
        (first, *_) = eventually(lambda: server.runs(["RUNNING", "COMPLETED"]), bool)
        page.reload()
        page.get_by_role("switch").click()
        assert first["auto_scheduled"]
        message = server.wait_for_end(first["id"], 300)["message"]
        assert "kept as experiment" in message
        states = server.ended_tasks(first["id"], 13)
        assert (states["finetune"], states["evaluate"]) == ("Cached", "Completed")
        eventually(lambda: server.runs(["SCHEDULED"]), lambda runs: not runs)
    finally:
        server.stop()


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
