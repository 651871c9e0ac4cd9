"""Serves the deployments of prefect.yaml from this process, on the server of PREFECT_API_URL."""

import asyncio
import logging
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.runner import Runner
from prefect.schedules import Schedule
from ruamel.yaml import YAML

from flows.recovery import recover
from flows.serve import READY
from flows.serving.automations import offer_automations
from flows.serving.form import keep_forms_true

log = logging.getLogger(f"flows.{Path(__file__).stem}")  # run by python -m it is called __main__

SPECIFICATION = Path("prefect.yaml")
POOL = "regraft"  # deployments of other pools are not for this machine
RUNS_AT_ONCE = 8  # processes; most of them wait for the working tree or for a lane of the machine


def read_specifications(path: Path = SPECIFICATION) -> list[dict[str, Any]]:
    """Read the deployments of prefect.yaml that are served on this machine."""
    deployments = YAML(typ="safe").load(path.read_text(encoding="utf-8"))["deployments"]
    return [one for one in deployments if one["work_pool"]["name"] == POOL]


def main() -> None:
    """Serve until stopped. Schedules that were changed in the UI stay as they were changed."""
    speak()
    root = Path.cwd()
    recover(root)
    runner = Runner(limit=RUNS_AT_ONCE, pause_on_shutdown=False)
    made = [_deployment_of(one) for one in read_specifications() if _can_be_served(one)]
    served = [runner.add_deployment(one) for one in made]
    keep_forms_true(root / "params.yaml", [one for one in served if isinstance(one, UUID)])
    offer_automations()
    if READY in os.environ:
        Path(os.environ[READY]).touch()
    asyncio.run(runner.start())


def _can_be_served(specification: dict[str, Any]) -> bool:
    """Tell whether what a deployment needs is installed; say what is not."""
    module = specification["entrypoint"].split(":")[0].removesuffix(".py").replace("/", ".")
    try:
        import_module(module)
    except ModuleNotFoundError as err:
        if not (err.name or "").startswith("prefect_dask"):
            raise
        log.info(
            "%s is not there: pip install -c constraints.txt -e '.[dask]'", specification["name"]
        )
        return False
    return True


def speak() -> None:
    """Let the log of this package reach the terminal; Prefect sets up none but its own."""
    own = logging.getLogger("flows")
    own.addHandler(logging.StreamHandler(sys.stdout))
    own.setLevel(logging.INFO)


def _deployment_of(specification: dict[str, Any]) -> RunnerDeployment:
    flow: Flow[..., Any] = load_flow_from_entrypoint(specification["entrypoint"])
    name = specification["name"]
    known = _schedules_on_server(f"{flow.name}/{name}")
    first = [Schedule(**schedule) for schedule in specification.get("schedules", [])]
    deployment = RunnerDeployment.from_flow(
        flow,
        name=name,
        description=specification.get("description"),
        tags=specification["tags"],
        parameters=specification.get("parameters", {}),
        schedules=first if known is None else known,
        enforce_parameter_schema=True,
    )
    deployment.entrypoint = specification["entrypoint"]  # else named after the function
    return deployment


def _schedules_on_server(name: str) -> list[DeploymentScheduleCreate] | None:
    """Read a deployment's schedules as the server has them; None where it is not known yet."""
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(name)
        except ObjectNotFound:
            return None
    return [
        DeploymentScheduleCreate(
            schedule=known.schedule,
            active=known.active,
            parameters=known.parameters,
            slug=known.slug,
        )
        for known in deployment.schedules
    ]


if __name__ == "__main__":
    main()
