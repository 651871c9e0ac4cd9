"""`regraft sweep`: hands a sweep to the server of `regraft ui`, whose flow does the runs."""

import itertools
import os
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.commands.server_health import ask, owner_of
from flows.errors import GraphError, ServerError
from flows.serve import read_port
from flows.serving.reports import HOST
from flows.stages.isolation import check_values
from tasks.artifacts.words import plural

DEPLOYMENT = "sweep/regraft-sweep"


def start_sweep(
    root: Path, settings: Sequence[str], backbones: str | None, seeds: str | None
) -> Iterator[str]:
    """Check the values, start the run and say where it is shown.

    Args:
        root: The project.
        settings: Each `key=value,value,...`; they are combined.
        backbones: Names, separated by commas.
        seeds: Numbers, separated by commas.

    Raises:
        GraphError: There is nothing to try, or a setting is none.
        ParamsError: A value does not fit into params.yaml.
        ServerError: No server of this project runs.
    """
    grid: dict[str, list[Any]] = {}
    for key, listed in map(_read_setting, settings):
        if key in grid:
            raise GraphError(f"--set {key} stands twice; write its values as one list")
        grid[key] = listed
    names, numbers = _read_values("--backbones", backbones), _read_values("--seeds", seeds)
    parameters = {"grid": grid, "backbones": names, "seeds": numbers}
    parameters = {name: values for name, values in parameters.items() if values}
    if not parameters:
        raise GraphError("nothing to try; give --set KEY=VALUE,VALUE, --backbones or --seeds")
    own = (("backbone.name", "--backbones", names), ("seed", "--seeds", numbers))
    twice = [f"{option} and --set {key}" for key, option, values in own if values and key in grid]
    if twice:
        raise GraphError(f"{twice[0]} are both given; give the values in one of them")
    lists = grid | {key: values for key, _, values in own if values}
    runs = [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
    for values in runs:  # the flow would tell too, on its page
        check_values(root, values)
    port = read_port(os.environ.get("REGRAFT_UI_PORT"))
    run = _start(root, port, parameters)
    page = f"http://{HOST}:{port}/runs/flow-run/{run['id']}"
    yield f"sweep {run['name']}, {plural(len(runs), 'run')}: {page}"


def _read_setting(text: str) -> tuple[str, list[Any]]:
    key, found, values = text.partition("=")
    if not found or not key.strip():
        raise GraphError(f"--set {text} is no setting; write KEY=VALUE,VALUE, as in params.yaml")
    return key.strip(), _read_values(f"--set {key}", values)


def _read_values(option: str, text: str | None) -> list[Any]:
    """Read values as params.yaml would, separated by commas."""
    if text is None:
        return []
    try:
        values = list(YAML(typ="safe").load(f"[{text}]"))
    except (YAMLError, TypeError) as err:
        raise GraphError(f"{option}: {text!r} cannot be read; write values and commas") from err
    if not values:
        raise GraphError(f"{option} has no values; name at least one")
    return values


def _start(root: Path, port: int, parameters: dict[str, Any]) -> dict[str, Any]:
    """Start the run on the server of this project."""
    try:
        deployment = ask(port, f"deployments/name/{DEPLOYMENT}")["id"]
        owner = owner_of(port)
        if owner is not None and owner != root.resolve():
            raise ServerError(
                f"the server at {HOST}:{port} is that of {owner}; start one here: "
                f"REGRAFT_UI_PORT={port + 100} regraft ui, and name that port here too"
            )
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        run: dict[str, Any] = ask(port, f"deployments/{deployment}/create_flow_run", body)
    except HTTPError as err:
        if err.code == HTTPStatus.NOT_FOUND:
            words = f"has no {DEPLOYMENT}; wait until `regraft ui` says Open, or start it anew"
        else:
            words = f"refused ({err.code}): {err.read().decode(errors='replace')[:300]}"
        raise ServerError(f"the server at {HOST}:{port} {words}") from err
    return run
