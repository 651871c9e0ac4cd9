"""Automations that are ready and switched off.

Word of runs that fail, of schedules missed and of images that changed, and a run of the pipeline
on that change. Word goes to the block `regraft-notify`, a webhook whose address the user fills in;
its message is what Slack, Mattermost and their like take. What the user changes in the UI stays.
"""

from contextlib import suppress
from typing import Any
from uuid import UUID

from prefect.automations import Automation
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.events.actions import RunDeployment, SendNotification
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

from flows.monitor import CHANGED, EVENT, RESOURCE

BLOCK = "regraft-notify"
NO_ADDRESS = "http://127.0.0.1:9/put-the-address-of-your-webhook-here"
FAILED, MISSED, TOLD, RERUN = (
    "Regraft: a run failed or crashed",
    "Regraft: a scheduled run did not start in time",
    "Regraft: incoming images have changed",
    "Regraft: run the pipeline once incoming images have changed",
)
EVENTS = {
    FAILED: {"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
    MISSED: {"prefect.flow-run.Late"},
    TOLD: {f"prefect.flow-run.{CHANGED}"},
}
PIPELINE = "pipeline/regraft-pipeline"


def offer_automations() -> None:
    """Make the block and the automations where they are not there yet."""
    block = _block()
    with get_client(sync_client=True) as client:
        missing = [name for name in (*EVENTS, RERUN) if not client.read_automations_by_name(name)]
        with suppress(ObjectNotFound):  # a project that does not serve it has nothing to start
            pipeline = client.read_deployment_by_name(PIPELINE).id
            if RERUN in missing:
                _rerun(pipeline).create()
    for name in missing:
        if name != RERUN:
            _automation(name, block).create()


def _block() -> UUID:
    block: Any
    try:
        block = CustomWebhookNotificationBlock.load(BLOCK)
    except ValueError:  # there is none yet
        text = {"text": "{{subject}}\n{{body}}"}
        block = CustomWebhookNotificationBlock(name="Regraft", url=NO_ADDRESS, json_data=text)
        block.save(BLOCK)
    document: UUID = block._block_document_id
    return document


def _automation(name: str, block: UUID) -> Automation:
    return Automation(
        name=name,
        description=f"Sends to the block {BLOCK}: put the address of your webhook there first.",
        enabled=False,
        trigger=_once(EVENTS[name], "prefect.flow-run.*"),
        actions=[
            SendNotification(
                block_document_id=block,
                subject="Regraft: {{ flow.name }} {{ flow_run.name }}, {{ flow_run.state.name }}",
                body="{{ flow_run.state.message }}\n{{ flow_run | ui_url }}",
            )
        ],
    )


def _rerun(pipeline: UUID) -> Automation:
    return Automation(
        name=RERUN,
        description="Trains again where images were added to the source; else nothing is stale.",
        enabled=False,
        trigger=_once({EVENT}, f"{RESOURCE}*"),
        actions=[RunDeployment(source="selected", deployment_id=pipeline)],
    )


def _once(events: set[str], resources: str) -> EventTrigger:
    """Trigger on each of some events of some resources."""
    return EventTrigger(
        expect=events,
        match=ResourceSpecification({"prefect.resource.id": resources}),
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
    )
