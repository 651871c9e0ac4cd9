"""Automations that are ready and switched off: word of runs that fail and of schedules missed.

They send to the block `regraft-notify`, a webhook whose address the user fills in; its message is
what Slack, Mattermost and their like take. What the user changes in the UI stays.
"""

from typing import Any
from uuid import UUID

from prefect.automations import Automation
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

BLOCK = "regraft-notify"
NO_ADDRESS = "http://127.0.0.1:9/put-the-address-of-your-webhook-here"
FAILED, MISSED = (
    "Regraft: a run failed or crashed",
    "Regraft: a scheduled run did not start in time",
)
EVENTS = {
    FAILED: {"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
    MISSED: {"prefect.flow-run.Late"},
}


def offer_automations() -> None:
    """Make the block and the automations where they are not there yet."""
    block = _block()
    with get_client(sync_client=True) as client:
        missing = [name for name in EVENTS if not client.read_automations_by_name(name)]
    for name in missing:
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
        trigger=EventTrigger(
            expect=EVENTS[name],
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            SendNotification(
                block_document_id=block,
                subject="Regraft: {{ flow.name }} {{ flow_run.name }}, {{ flow_run.state.name }}",
                body="{{ flow_run.state.message }}\n{{ flow_run | ui_url }}",
            )
        ],
    )
