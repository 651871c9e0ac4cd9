"""Automations on a real server: the ready ones, and one of a user's on a stage that was made."""

import http.server
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import tells
from served import DEPLOYMENT, Server, eventually
from toy import ToyProject
from watched import darken, draw, export_watched

from flows.serving.automations import BLOCK, FAILED, MISSED, RERUN, TOLD

pytest_plugins = ["toy_fixtures"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def project(toy: ToyProject) -> ToyProject:
    toy.add_flows()
    return toy


@pytest.fixture
def server(project: ToyProject) -> Iterator[Server]:
    server = Server(project.root)
    yield server
    server.stop()


@pytest.fixture
def webhook() -> Iterator[tuple[str, "queue.Queue[str]"]]:
    """The address of a webhook, and what was sent to it."""
    sent: queue.Queue[str] = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}/hook", sent
        listening.shutdown()


def automations(server: Server) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in server.api("automations/filter", {})}


def test_a_failed_run_is_told_once_the_automation_is_switched_on_and_stays_as_it_was_set(
    project: ToyProject, server: Server, webhook: tuple[str, "queue.Queue[str]"]
) -> None:
    address, sent = webhook
    offered = automations(server)
    enabled = {name: one["enabled"] for name, one in offered.items()}
    assert enabled == dict.fromkeys((FAILED, MISSED, TOLD, RERUN), False)

    block = server.api(f"block_types/slug/custom-webhook/block_documents/name/{BLOCK}")
    data = block["data"] | {"url": address}
    server.api(f"block_documents/{block['id']}", {"data": data}, "PATCH")
    server.api(f"automations/{offered[FAILED]['id']}", {"enabled": True}, "PATCH")
    project.set("finetune.head_lr", 0.0004)
    project.write("left.break", "out of paint")
    assert server.wait_for_end(server.run())["type"] == "FAILED"
    told = sent.get(timeout=60)
    assert "Failed" in told
    assert "out of paint" in told

    server.stop()
    again = Server(project.root)
    try:
        kept = automations(again)
        assert {name: one["enabled"] for name, one in kept.items()} == enabled | {FAILED: True}
        block = again.api(f"block_types/slug/custom-webhook/block_documents/name/{BLOCK}")
        assert block["data"]["url"] == address
    finally:
        again.stop()


def test_a_stage_that_was_made_sets_off_an_automation_and_one_that_is_cached_does_not(
    project: ToyProject, server: Server
) -> None:
    deployment = server.api(f"deployments/name/{DEPLOYMENT}")["id"]
    trigger = {
        "type": "event",
        "match": {"prefect.resource.id": "dvc://*/data/left"},
        "expect": ["prefect.asset.materialization.succeeded"],
        "posture": "Reactive",
        "threshold": 1,
    }
    action = {
        "type": "run-deployment",
        "source": "selected",
        "deployment_id": deployment,
    }
    made = {"name": "again after left", "trigger": trigger, "actions": [action]}
    server.api("automations/", made)

    assert server.wait_for_end(server.run())["type"] == "COMPLETED"  # everything is cached
    project.set("finetune.head_lr", 0.0004)
    run = server.run()
    assert server.wait_for_end(run)["type"] == "COMPLETED"
    assert server.ended_tasks(run, 4)["left"] == "Completed"
    followed = eventually(lambda: server.runs()[2:], bool, 60)
    assert server.wait_for_end(followed[0]["id"])["type"] == "COMPLETED"
    assert set(server.ended_tasks(followed[0]["id"], 4).values()) == {"Cached"}
    time.sleep(5)
    assert len(server.runs()) == 3


def test_a_change_of_the_images_runs_the_pipeline_and_is_told_once_both_are_switched_on(
    project: ToyProject, server: Server, webhook: tuple[str, "queue.Queue[str]"], tmp_path: Path
) -> None:
    address, sent = webhook
    export_watched(project.root / "data/report/model", tmp_path)
    darken(draw(project.root / "data/incoming", range(20)), range(100, 130))
    block = server.api(f"block_types/slug/custom-webhook/block_documents/name/{BLOCK}")
    data = block["data"] | {"url": address}
    server.api(f"block_documents/{block['id']}", {"data": data}, "PATCH")
    for name in (TOLD, RERUN):
        server.api(f"automations/{automations(server)[name]['id']}", {"enabled": True}, "PATCH")
    run = server.run("monitor/regraft-monitor", source="data/incoming", out="data/looks")
    assert server.wait_for_end(run)["name"] == "Changed"
    assert tells(sent.get(timeout=60), "Changed", "out of the domain")
    followed = eventually(lambda: server.runs()[1:], bool, 60)
    assert server.wait_for_end(followed[0]["id"])["type"] == "COMPLETED"
