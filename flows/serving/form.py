"""What the form of a run shows beside each field: the value that params.yaml holds now.

The form is drawn from a schema that the server keeps. It offers no default values, which would go
into every run; the values of params.yaml stand in the descriptions and follow the file.
"""

import copy
import json
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import PrefectException

from tasks.errors import ParamsError
from tasks.params_file import load_params

log = logging.getLogger(__name__)

NOW = " In params.yaml now: "
SECONDS_BETWEEN_LOOKS = 2.0


def keep_forms_true(params: Path, deployments: Sequence[UUID]) -> None:
    """Write the values of params.yaml into the forms, and again whenever the file changes.

    Args:
        params: The file; while it cannot be read the forms stay as they are.
        deployments: Whose forms.
    """
    seen = _written(params)
    _update(params, deployments)
    watching = threading.Thread(target=_watch, args=(params, seen, deployments), daemon=True)
    watching.start()


def _watch(params: Path, seen: int, deployments: Sequence[UUID]) -> None:
    while True:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        if (changed := _written(params)) == seen:
            continue
        try:
            _update(params, deployments)
            seen = changed
        except (httpx.HTTPError, PrefectException) as err:  # a busy server; the next look tries
            log.warning("the forms show older values: %s", err)


def _written(params: Path) -> int:
    return params.stat().st_mtime_ns if params.exists() else 0


def _update(params: Path, deployments: Sequence[UUID]) -> None:
    try:
        values = load_params(params).model_dump(mode="json")
    except ParamsError as err:
        log.warning("the forms show older values: %s", err)
        return
    with get_client(sync_client=True) as client:
        for one in deployments:
            deployment: DeploymentResponse = client.read_deployment(one)
            schema = with_values(deployment.parameter_openapi_schema or {}, values)
            client.update_deployment(one, DeploymentUpdate(parameter_openapi_schema=schema))


def with_values(schema: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Give a flow's schema with the value of params.yaml in the description of each override.

    Args:
        schema: Of a flow's parameters, also one that was given back before.
        values: Of params.yaml, nested as there.
    """
    changed = copy.deepcopy(schema)
    definitions = changed.get("definitions", {})

    def annotate(node: dict[str, Any], value: Any) -> None:
        if isinstance(value, dict):
            block = definitions[node["$ref"].rsplit("/", 1)[-1]] if "$ref" in node else node
            for name, child in block["properties"].items():
                annotate(child, value[name])
        else:
            described = node.get("description", "").split(NOW)[0]
            node["description"] = f"{described}{NOW}{json.dumps(value)}."

    overrides = changed["properties"].get("overrides")
    if overrides is not None:
        annotate(overrides, values)
    return changed
