"""What a stage made, as a Prefect asset: an event that automations can act on.

A stage that ran materializes `dvc://<project>/data/<stage>`, one that is cached references it. The
events are sent from here because Prefect sends none for task runs in a state named Cached.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from prefect.events import emit_event

from flows.stages.graph import locked_outs
from tasks.artifacts.records import Baseline, Decision, Finetuned, Health, Metrics, read_record
from tasks.errors import ArtifactError

MATERIALIZED = "prefect.asset.materialization.succeeded"
REFERENCED = "prefect.asset.referenced"


def asset_key(project: Path, stage: str, experiment: str | None = None) -> str:
    """Name what a stage makes in a project, or in an experiment of it."""
    where = f"/experiments/{quote(experiment)}" if experiment else ""
    return f"dvc://{quote(project.name)}{where}/data/{stage}"


def emit_asset(
    root: Path,
    stage: str,
    key: str,
    upstream: Sequence[str],
    *,
    ran: bool,
    with_metric: bool = True,
) -> None:
    """Tell that a stage made its outs, or that they are there as they were.

    Args:
        root: Where it ran.
        stage: Its name.
        key: Of the asset.
        upstream: Keys of what it stands on.
        ran: Whether it made them now.
        with_metric: Whether the event tells the number by which people know what it made.
    """
    outs = locked_outs(root, stage)
    payload: dict[str, Any] = {
        "outs": [
            {"path": path, "md5": out["md5"], "bytes": out["size"], "files": out.get("nfiles", 1)}
            for path, out in outs.items()
        ],
        "bytes": sum(out["size"] for out in outs.values()),
    }
    metric = headline_metric(root, stage) if with_metric else None
    if metric is not None:
        payload["metric"] = {"name": metric[0], "value": metric[1]}
    emit_event(
        event=MATERIALIZED if ran else REFERENCED,
        resource={"prefect.resource.id": key, "prefect.resource.name": f"data/{stage}"},
        related=[
            {"prefect.resource.id": one, "prefect.resource.role": "asset"} for one in upstream
        ],
        payload=payload,
    )


def headline_metric(root: Path, stage: str) -> tuple[str, str | float] | None:
    """Give the one number or word by which people know what a stage made; None without one."""
    folder = root / "data" / stage
    try:
        if stage == "ingest":
            return "images", read_record(folder / "health.json", Health).images
        if stage == "decide":
            return "arm", read_record(folder / "decision.json", Decision).arm
        if stage == "baseline":
            found = read_record(folder / "baseline.json", Baseline).val_accuracy
            return "val accuracy", found.value
        if stage == "finetune":
            return "val accuracy", read_record(
                folder / "finetune.json", Finetuned
            ).val_accuracy.value
        if stage == "evaluate":
            metrics = read_record(folder / "metrics.json", Metrics)
            shipped = metrics.finetuned if metrics.shipped == "finetuned" else metrics.baseline
            return "test accuracy", (shipped or metrics.baseline).accuracy.value
    except ArtifactError:  # a graph of the user's own
        pass
    return None
