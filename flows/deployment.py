"""Serves the deployment of prefect.yaml from this process, on the server of PREFECT_API_URL."""

from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.exceptions import ObjectNotFound
from prefect.schedules import Schedule
from ruamel.yaml import YAML

from flows.pipeline import pipeline

SPECIFICATION = Path("prefect.yaml")


def read_specification(path: Path = SPECIFICATION) -> dict[str, Any]:
    """Read the deployment of the pipeline from prefect.yaml."""
    deployments = YAML(typ="safe").load(path.read_text(encoding="utf-8"))["deployments"]
    specification: dict[str, Any] = deployments[0]
    return specification


def main() -> None:
    """Serve until stopped. Schedules that were changed in the UI stay as they were changed."""
    specification = read_specification()
    name = specification["name"]
    known = _schedules_on_server(name)
    first = [Schedule(**schedule) for schedule in specification["schedules"]]
    pipeline.serve(
        name=name,
        description=specification["description"],
        tags=specification["tags"],
        parameters=specification["parameters"],
        schedules=first if known is None else known,
        global_limit=ConcurrencyLimitConfig(**specification["concurrency_limit"]),
        enforce_parameter_schema=specification["enforce_parameter_schema"],
        pause_on_shutdown=False,
        print_starting_message=False,
    )


def _schedules_on_server(name: str) -> list[DeploymentScheduleCreate] | None:
    """Read the deployment's schedules as the server has them; None where it is not known yet."""
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(f"{pipeline.name}/{name}")
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
