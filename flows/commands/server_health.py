"""The Prefect server as `regraft doctor` and `regraft sweep` see it: who reaches it, what fires."""

import json
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

import psutil

from flows.commands.finding import Finding
from flows.errors import ServerError
from flows.serve import read_port
from flows.serving.reports import HOST
from tasks.artifacts.words import plural

PLANNED_AFTER_SECONDS = 180.0  # the server plans the runs of a new schedule within that
TIMEOUT_SECONDS = 10.0
SHUT = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
PASSWORD = "PREFECT_SERVER_API_AUTH_STRING and PREFECT_API_AUTH_STRING"


def ask(port: int, path: str, body: Any = None) -> Any:
    """Ask the API of the server on a port of this machine.

    Raises:
        ServerError: Nothing answers there, or not as Prefect does.
        HTTPError: It refuses.
    """
    request = urllib.request.Request(
        f"http://{HOST}:{port}/api/{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
            return json.loads(answer.read())
    except HTTPError:
        raise
    except (URLError, TimeoutError, ConnectionError) as err:
        raise ServerError(f"no server answers at {HOST}:{port}; start one: regraft ui") from err
    except ValueError as err:
        raise ServerError(f"what answers at {HOST}:{port} is no Prefect server") from err


def check_settings(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Tell Prefect settings that open a server to others; `regraft ui` reads none of them."""
    host = environment.get("PREFECT_SERVER_API_HOST", HOST)
    if not is_own(host) and not environment.get("PREFECT_SERVER_API_AUTH_STRING"):
        yield Finding(
            "fault",
            "settings",
            f"PREFECT_SERVER_API_HOST is {host} without a password: who reaches it runs code",
            f"set {PASSWORD}, or unset it",
        )
    url = urlsplit(environment.get("PREFECT_API_URL", ""))
    password = environment.get("PREFECT_API_AUTH_STRING") or environment.get("PREFECT_API_KEY")
    if url.hostname and not is_own(url.hostname) and (url.scheme != "https" or not password):
        yield Finding(
            "warning",
            "settings",
            f"PREFECT_API_URL leads to {url.hostname} without https or without a password",
            "https, and PREFECT_API_AUTH_STRING",
        )


def is_own(host: str) -> bool:
    """Tell whether a name or an address is that of this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_server(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Tell whether a server runs, who can reach it, and whether its schedules fire."""
    try:
        port = read_port(environment.get("REGRAFT_UI_PORT"))
        ask(port, "admin/version")
    except HTTPError as err:
        if err.code in SHUT:
            yield Finding("ok", "server", f"{HOST}:{port} asks for a password")
        else:
            found = f"what answers at {HOST}:{port}, with {err.code}, is no Prefect server"
            yield Finding("fault", "server", found, f"REGRAFT_UI_PORT={port + 100} regraft ui")
        return
    except ServerError as err:
        if "REGRAFT_UI_PORT" in str(err):
            yield Finding("fault", "server", str(err), "set it anew")
        elif "no Prefect" in str(err):
            yield Finding("fault", "server", str(err), f"REGRAFT_UI_PORT={port + 100} regraft ui")
        else:
            yield Finding("ok", "server", f"none runs at {HOST}:{port}; `regraft ui` starts one")
        return
    yield _exposure(port)
    yield from check_schedules(port)


def _exposure(port: int) -> Finding:
    found = sorted(address for address in _addresses(port) if not is_own(address))
    if found:
        return Finding(
            "fault",
            "server",
            f"listens at {', '.join(found)}:{port} without a password: who reaches it runs code",
            f"end it and type `regraft ui`, which listens at {HOST} alone; or set {PASSWORD}",
        )
    return Finding("ok", "server", f"runs at {HOST}:{port}, for this machine alone")


def owner_of(port: int) -> Path | None:
    """Give the folder in which what listens on a port was started; None where nobody may know."""
    for _, pid in _listening(port):
        with suppress(psutil.Error):
            return Path(psutil.Process(pid).cwd())
    return None


def _addresses(port: int) -> set[str]:
    """Addresses at which something on this machine listens; empty where nobody may know."""
    return {address for address, _ in _listening(port)}


def _listening(port: int) -> Iterator[tuple[str, int | None]]:
    """Give address and process of what listens on a port."""
    with suppress(psutil.AccessDenied):
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr[1] == port:
                yield one.laddr[0], one.pid


def check_schedules(port: int) -> Iterator[Finding]:
    """Tell schedules that are on but have no run before them, and runs that nobody starts."""
    found: list[Finding] = []
    on = 0
    try:
        for deployment in ask(port, "deployments/filter", {}):
            active = [one for one in deployment["schedules"] if one["active"]]
            on += len(active)
            found += _check_schedule(port, deployment, active) if active else []
    except (ServerError, HTTPError, KeyError, TypeError, ValueError) as err:
        yield Finding("warning", "schedules", f"not known: {err}", "regraft ui, then again")
        return
    yield from found or [Finding("ok", "schedules", f"{plural(on, 'schedule')} on")]


def _check_schedule(
    port: int, deployment: Mapping[str, Any], active: list[dict[str, Any]]
) -> Iterator[Finding]:
    name = deployment["name"]
    changes = (datetime.fromisoformat(one["updated"] or one["created"]) for one in active)
    if not _count(port, deployment["id"], {"type": {"any_": ["SCHEDULED"]}}):
        if time.time() - max(changes).timestamp() > PLANNED_AFTER_SECONDS:
            yield Finding(
                "fault",
                "schedules",
                f"that of {name} is on, but the server has planned no run: it will never fire",
                "the versions of constraints.txt (see above), then start `regraft ui` anew",
            )
        return
    late = _count(port, deployment["id"], {"name": {"any_": ["Late"]}})
    if late:
        yield Finding(
            "fault",
            "schedules",
            f"{late} planned runs of {name} are late: nobody starts them",
            "start `regraft ui` anew; of a work pool of your own, start its worker",
        )


def _count(port: int, deployment: str, state: Mapping[str, Any]) -> int:
    body = {"deployments": {"id": {"any_": [deployment]}}, "flow_runs": {"state": state}}
    return int(ask(port, "flow_runs/count", body))
