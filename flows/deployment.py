"""Serves the deployment of prefect.yaml from this process, on the server of PREFECT_API_URL."""

from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
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
    """Serve until stopped. A schedule that was changed in the UI stays as it was changed."""
    specification = read_specification()
    name = specification["name"]
    schedules = [Schedule(**schedule) for schedule in specification["schedules"]]
    pipeline.serve(
        name=name,
        description=specification["description"],
        tags=specification["tags"],
        parameters=specification["parameters"],
        schedules=None if _is_known(name) else schedules,
        global_limit=ConcurrencyLimitConfig(**specification["concurrency_limit"]),
        enforce_parameter_schema=specification["enforce_parameter_schema"],
        pause_on_shutdown=False,
        print_starting_message=False,
    )


def _is_known(name: str) -> bool:
    with get_client(sync_client=True) as client:
        try:
            client.read_deployment_by_name(f"{pipeline.name}/{name}")
        except ObjectNotFound:
            return False
    return True


if __name__ == "__main__":
    main()
