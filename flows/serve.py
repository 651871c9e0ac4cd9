"""`make ui`: a Prefect server of the project's own on 127.0.0.1, its flows and its reports.

The server's data and settings live in .regraft/prefect; a Prefect profile of the user is neither
read nor changed. Both processes stop with this one.
"""

import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Literal
from urllib.error import URLError

import psutil

from flows.errors import ServerError
from flows.serving.reports import HOST, serving_reports
from flows.stages.graph import storage_of
from flows.stages.runner import GUARD, say_ending
from tasks.errors import RegraftError
from tasks.runtime.machine import read_machine

log = logging.getLogger(__name__)

DEFAULT_PORT = 4200
HOME = Path(".regraft/prefect")
NOT_AWAITED = "coroutine 'Runner.astop' was never awaited:RuntimeWarning"  # on SIGTERM; harmless
READY = "REGRAFT_READY"  # names a file that the runner makes once the deployments are there
REPORTS_URL = "REGRAFT_REPORTS_URL"  # tells flows where the reports are served
SIGNS = {  # in the server's log, of a database that it cannot use
    "file is not a database": "is no database",
    "database disk image is malformed": "is damaged",
    "Can't locate revision": "was written by another version of Prefect",
    "readonly database": "cannot be written",
    "unable to open database file": "cannot be opened",
}
START_SECONDS, STOP_SECONDS = 120.0, 30.0
Name = Literal["server", "runner"]
_FAMILIES: dict[int, list[psutil.Process]] = {}  # by guard, which may be killed alone


def main() -> int:
    """Serve until Ctrl-C, SIGTERM or the end of the terminal."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        serve(Path.cwd(), read_port(os.environ.get("REGRAFT_UI_PORT")))
    except RegraftError as err:
        log.error("ui stopped: %s", err)
        return 1
    except KeyboardInterrupt:
        log.info("Stopped.")
    return 0


def serve(root: Path, port: int) -> None:
    """Run server and flow runner for the project at `root` until one of them ends.

    Raises:
        ServerError: This is no project, the port is in use, or a process ends by itself.
    """
    if not (root / "prefect.yaml").exists():
        raise ServerError(f"{root} holds no prefect.yaml; run from the project's folder")
    read_machine()  # a mistake in a variable is told here, not by every process
    for one in (port, port + 1):
        check_port_is_free(one)
    home = _make_home(root)
    environment = prefect_environment(os.environ, root, home, port)
    environment[REPORTS_URL] = f"http://{HOST}:{port + 1}"
    log.info("Starting the Prefect server ...")
    start = ["server", "start", "--host", HOST, "--port", str(port)]
    server_command = [sys.executable, "-m", "prefect", *start]
    runner_command = [
        sys.executable,
        "-W",
        f"ignore:{NOT_AWAITED}",
        "-m",
        "flows.serving.deployment",
    ]
    server_log = home / "server.log"
    files = (server_log, home / "prefect.db")
    with (
        serving_reports(storage_of(root).cache, port + 1),
        _running(server_command, environment, server_log) as server,
    ):
        _wait_until("server", server, lambda: _answers(port), files)
        ready = home / "ready"
        ready.unlink(missing_ok=True)
        with _running(runner_command, environment | {READY: str(ready)}) as runner:
            _wait_until("runner", runner, ready.exists, files)
            log.info("Open http://%s:%d (Deployments, pipeline). Stop with Ctrl-C.", HOST, port)
            ended, status = _wait_for_any({"server": server, "runner": runner})
    how = say_ending(status)
    raise ServerError(f"the {ended} ended by itself ({how}); {explain_end(ended, *files)}")


def _make_home(root: Path) -> Path:
    home = (root / HOME).resolve()
    try:
        home.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as err:
        raise ServerError(
            f"{home} is to be a folder, but a file of that name, or of a folder above it, is in "
            "the way; move it elsewhere"
        ) from err
    except OSError as err:
        raise ServerError(f"{home}: cannot be made ({err.strerror})") from err
    return home


def explain_end(name: Name, log: Path, database: Path) -> str:
    """Say why the server or the runner ended, from what it wrote last.

    A database that cannot be used ends both; the server's log tells.
    """
    written = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    for sign, reason in SIGNS.items():
        if sign in written:
            aside = shlex.join(["mv", str(database), f"{database}.old"])
            return (
                f"{database} {reason}. It holds the history of runs, their schedules and nothing "
                f"else: {aside}"
            )
    if name == "runner":
        return "what it said last stands above"
    last = next((line.strip() for line in reversed(written.splitlines()) if line.strip()), "")
    return f"its last line: {last or 'nothing was written'} (see {log})"


def read_port(value: str | None) -> int:
    """Read REGRAFT_UI_PORT.

    Raises:
        ServerError: It is no port number.
    """
    if not value:
        return DEFAULT_PORT
    if not value.isdigit() or not 1 <= int(value) <= 65534:
        raise ServerError(
            f"environment variable REGRAFT_UI_PORT is {value!r}; allowed: 1 to 65534 (the next "
            "port serves the reports)"
        )
    return int(value)


def check_port_is_free(port: int) -> None:
    """Refuse a port on which something else listens.

    Raises:
        ServerError: It is in use, or this user may not use it.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as err:
            raise ServerError(
                f"{HOST}:{port} cannot be used ({err.strerror}); stop what listens there, or name "
                "a free port: REGRAFT_UI_PORT=4300 make ui"
            ) from err


def prefect_environment(
    inherited: Mapping[str, str], root: Path, home: Path, port: int
) -> dict[str, str]:
    """Make the environment of both processes: nothing of the user's Prefect, no telemetry."""
    kept = {name: value for name, value in inherited.items() if not name.startswith("PREFECT_")}
    proxied = [kept[name] for name in ("NO_PROXY", "no_proxy") if kept.get(name)]
    paths = [str(root), *filter(None, [kept.get("PYTHONPATH")])]
    return kept | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://{HOST}:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_UI_V2_ENABLED": "false",  # it reports from the browser, whatever is set
        "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "DO_NOT_TRACK": "1",
        "NO_PROXY": ",".join([HOST, *proxied]),
        "no_proxy": ",".join([HOST, *proxied]),
        "PYTHONPATH": os.pathsep.join(paths),
    }


@contextmanager
def _running(
    command: Sequence[str], environment: dict[str, str], output: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command under the guard while the block runs; then end it and its children.

    The guard ends them too when this process is killed.
    """
    with output.open("wb") if output else nullcontext() as file:
        process = subprocess.Popen(
            [sys.executable, str(GUARD), *command],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    assert process.stdin is not None
    with process.stdin:
        try:
            yield process
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything it started, also what is in sessions of its own."""
    family = _family_of(process)
    if process.poll() is None:
        process.terminate()  # the guard passes it on to the command alone
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    for child in family:
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    for child in psutil.wait_procs(family, STOP_SECONDS)[1]:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def _family_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Everything that a process started; of one that was killed, what it had started before."""
    with suppress(psutil.NoSuchProcess):
        if process.poll() is None:
            _FAMILIES[process.pid] = psutil.Process(process.pid).children(recursive=True)
    return _FAMILIES.get(process.pid, [])


def _wait_until(
    name: Name,
    process: subprocess.Popen[bytes],
    come: Callable[[], bool],
    files: tuple[Path, Path],
) -> None:
    """Wait for something, as long as a process lives for that."""
    give_up = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < give_up:
        if come():
            return
        time.sleep(0.2)
    raise ServerError(f"the {name} did not start; {explain_end(name, *files)}")


def _answers(port: int) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{HOST}:{port}/api/health", timeout=5):
            return True
    except (URLError, TimeoutError, ConnectionError):
        return False


def _wait_for_any(processes: Mapping[Name, subprocess.Popen[bytes]]) -> tuple[Name, int]:
    """Wait until one of some processes ends; give its name and its exit status."""
    while True:
        for name, process in processes.items():
            status = process.poll()
            if status is not None:
                return name, status
            _family_of(process)
        time.sleep(0.5)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
