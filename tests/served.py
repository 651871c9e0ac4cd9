"""`make ui` of a project as a test sees it: the process, its API, what became of a run."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import psutil

DEPLOYMENT = "pipeline/regraft-pipeline"


ENDED = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}


def free_port() -> int:
    """A port free together with the next, of those that no system hands out by itself.

    One from the system's own range may be given to another connection before the server binds it.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 30_000, 2)
        with socket.socket() as one, socket.socket() as other, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 1))
            return port


def eventually(read: Callable[[], Any], right: Callable[[Any], Any], seconds: float = 120) -> Any:
    """Read until it is right and give what was read."""
    deadline = time.monotonic() + seconds
    while not right(found := read()):
        assert time.monotonic() < deadline, found
        time.sleep(0.3)
    return found


def wait_for_file(path: Path) -> int:
    """Wait for a file that holds the number of a process."""
    return int(eventually(lambda: path.exists() and path.read_text(), bool))


@cache
def new_database() -> bytes:
    """A Prefect database without a run, as a server's first start makes it."""
    with tempfile.TemporaryDirectory() as home:
        command = ["prefect", "--no-prompt", "server", "database", "upgrade", "--yes"]
        environment = {**os.environ, "PREFECT_HOME": home}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        return (Path(home) / "prefect.db").read_bytes()


class Server:
    """A running `python -m flows.serve` of a project.

    `empty`: it makes its database itself, which takes long; others find a new one.
    """

    def __init__(self, root: Path, port: int | None = None, *, empty: bool = False) -> None:
        self.root = root
        database = root / ".regraft/prefect/prefect.db"
        if not empty and not database.exists():
            database.parent.mkdir(parents=True, exist_ok=True)
            database.write_bytes(new_database())
        self.port = port or free_port()
        environment = {**os.environ, "REGRAFT_UI_PORT": str(self.port), "PREFECT_API_KEY": "none"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows.serve"],
            cwd=root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith(f"Open http://127.0.0.1:{self.port}"):
                self._reader = threading.Thread(target=self._keep_reading, daemon=True)
                self._reader.start()
                return
        raise AssertionError("".join(self.said))

    def _keep_reading(self) -> None:
        """A pipe that nobody reads would stop the runs that write to it."""
        assert self.process.stdout is not None
        self.said += self.process.stdout

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def api(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """Ask; while its database is locked the server answers 503, and Prefect's client waits."""
        for _ in range(60):
            try:
                return self._ask(path, body, method)
            except HTTPError as err:
                if err.code != HTTPStatus.SERVICE_UNAVAILABLE:
                    raise
            time.sleep(0.5)
        raise AssertionError("the database stays locked")

    def _ask(self, path: str, body: Any, method: str | None) -> Any:
        request = urllib.request.Request(
            f"{self.address}/api/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method=method,
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def run(self, deployment: str = DEPLOYMENT, /, **parameters: Any) -> str:
        """Start a run of a deployment, as the form does, and give its id."""
        known = self.api(f"deployments/name/{deployment}")["id"]
        made = self.api(f"deployments/{known}/create_flow_run", {"parameters": parameters})
        return str(made["id"])

    def state(self, run: str) -> dict[str, Any]:
        state: dict[str, Any] = self.api(f"flow_runs/{run}")["state"]
        return state

    def wait_for_end(self, run: str, seconds: float = 120) -> dict[str, Any]:
        state: dict[str, Any] = eventually(
            lambda: self.state(run), lambda state: state["type"] in ENDED, seconds
        )
        return state

    def runs(self, states: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Runs of all deployments by their expected start; those in some states where named."""
        chosen = {"flow_runs": {"state": {"type": {"any_": list(states)}}}} if states else {}
        found = self.api("flow_runs/filter", {"sort": "EXPECTED_START_TIME_ASC", **chosen})
        return list(found)

    def tasks(self, run: str) -> dict[str, dict[str, Any]]:
        """State of every task run of a run, by the name of the task run."""
        found = self.api("task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
        return {task["name"]: task["state"] for task in found if task["state"]}

    def task_states(self, run: str) -> dict[str, str]:
        return {name: state["name"] for name, state in self.tasks(run).items()}

    def ended_tasks(self, run: str, number: int) -> dict[str, str]:
        """Names of the states of a run's tasks, which reach the database after that of the run."""
        states: dict[str, str] = eventually(
            lambda: self.task_states(run),
            lambda found: len(found) == number and not {"Pending", "Running"} & {*found.values()},
        )
        return states

    def artifacts(self, run: str) -> dict[str, str]:
        """What a run shows on its page, by key."""
        made = self.api("artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}})
        return {artifact["key"]: artifact["data"] for artifact in made}

    def stop(self) -> list[psutil.Process]:
        """Stop it, if it lives, and give what is still alive of everything it started."""
        family = []
        if self.process.poll() is None:
            family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(90)
        self._reader.join(90)
        assert not self._reader.is_alive(), "something that make ui started outlives it"
        assert self.process.stdout is not None
        self.process.stdout.close()
        return psutil.wait_procs(family, 10)[1]
