"""The uses from the Prefect UI, the whole and one stage, walked from a fresh clone to their end.

Everything is real: git, DVC, a Prefect server and, marked `browser`, Debian's chromium.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cloned import Project
from conftest import ROOT, tells
from playwright.sync_api import Locator, Page, expect, sync_playwright
from served import DEPLOYMENT, Server, eventually
from test_contracts import STAGES

from tasks.runtime.machine import usable_cores

pytest_plugins = ["cloned_fixtures"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


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
