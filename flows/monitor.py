"""The flow `monitor`: a look at what came into a folder, on a schedule, with word of a change."""

# No `from __future__ import annotations`: Prefect could not build the parameters of a served run.

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.states import Completed

from flows.artifacts import publish_look
from flows.predict import run_command, state_of
from flows.recovery import settle_run
from flows.stages.graph import find_root
from flows.stages.runner import Outcome
from tasks.artifacts.files import write_text
from tasks.delivery.inputs import STDIN
from tasks.errors import DataError, RegraftError
from tasks.predict import MODEL
from tasks.watching.looks import LookRecord, read_looks

TOLD = "told.txt"  # in OUT: number of the newest look that was told, so that a kill loses none
CHANGED = "Changed"  # name of the state of a run that alarms, so that a list of runs shows it
EVENT, RESOURCE = "regraft.monitor.changed", "regraft.monitor."


@flow(name="monitor", persist_result=False, on_crashed=[settle_run], on_cancellation=[settle_run])
def monitor_images(source: str, out: str, model: str = str(MODEL)) -> State[Any]:
    """Compare incoming images with what the model knows, as `python -m tasks.monitor` does.

    Each run looks at the images that no look before has seen, by their names. A run that finds the
    world changed ends as Changed; it has worked, so that it has not failed.

    Args:
        source: A folder of images, or a csv with a column path. Paths are relative to the project.
        out: The folder of the looks, kept between runs.
        model: The folder of the exported model.
    """
    untold: list[LookRecord] = []
    try:
        if source == STDIN:
            raise DataError("source is '-', but a flow has no stdin; name a folder or a csv")
        root = find_root(Path.cwd())
        outcome = run_command(root, "monitor", ["--model", model, "--", source, out])
        untold = read_looks(root / out, after=read_told(root / out))
    except RegraftError as err:
        outcome = Outcome("failed", str(err))
    if outcome.kind != "ran" or not untold:
        return state_of(outcome)
    changed = [look for look in untold if look.verdict == "changed"]
    look = changed[-1] if changed else untold[-1]
    publish_look(root / out, look)
    if changed:
        _tell(Path(out).name, look)
    write_text(root / out / TOLD, f"{untold[-1].number}\n")  # after a kill it is told once more
    return Completed(name=CHANGED if changed else None, message=look.words)


def read_told(out: Path) -> int:
    """Give the number of the newest look that was told; 0 before there is one."""
    try:
        return int((out / TOLD).read_text())
    except (OSError, ValueError):
        return 0


def _tell(name: str, look: LookRecord) -> None:
    """Send the event that automations wait for."""
    emit_event(
        event=EVENT,
        resource={"prefect.resource.id": f"{RESOURCE}{name}", "prefect.resource.name": name},
        payload=look.model_dump(mode="json"),
    )
