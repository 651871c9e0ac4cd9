"""What a kill or a power cut left behind: told as it is, and nothing waits for it any more.

A run is killed as a process, so that nobody is left to say what became of it: its task runs, and
after a power cut the run itself, would stand as Running for ever.
"""

import logging
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.logging.loggers import flow_run_logger
from prefect.states import Cancelled, Cancelling, Crashed

from flows.stages.isolation import kept_clones, remove_dead_clones

log = logging.getLogger(__name__)

# Paused runs too: their process waits for the answer.
AT_WORK = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING, StateType.PAUSED]
PAGE = 200
GO_ON = (
    "what its stages finished is kept, and training goes on from its last checkpoint: run it again"
)


def recover(root: Path) -> None:
    """Settle what an earlier server of this project left running, and tidy up.

    Only for a server whose runs can all be known to be dead, as that of `make ui` when it starts.
    """
    with get_client(sync_client=True) as client:
        for run in _own_runs_at_work(client):
            cancelling = run.state is not None and run.state.is_cancelling()
            state: State[Any] = (
                Cancelled(message="the server stopped while it was being cancelled")
                if cancelling
                else Crashed(message=f"the machine or the server stopped while it ran; {GO_ON}")
            )
            client.set_flow_run_state(run.id, state, force=True)
            settle(client, run.id, state)
            log.info("Run %s was at work when the server stopped: %s", run.name, state.message)
    for name in remove_dead_clones(root):
        log.info("Removed the working copy of run %s, which was killed.", name)
    for clone, why in kept_clones(root).items():
        log.info("Kept working copy %s (%s); delete it when done.", clone, why.splitlines()[0])


def _own_runs_at_work(client: SyncPrefectClient) -> list[FlowRun]:
    """Runs that stand as at work, but for those of work pools, whose workers may live."""
    chosen = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=AT_WORK)))
    found: list[FlowRun] = []
    while runs := client.read_flow_runs(flow_run_filter=chosen, limit=PAGE, offset=len(found)):
        found += runs
    return [run for run in found if run.work_pool_name is None]


def settle(client: SyncPrefectClient, run: UUID, state: State[Any]) -> None:
    """Give the task runs and the child runs that a dead run left unfinished its own final state."""
    unfinished = TaskRunFilterState(
        type=TaskRunFilterStateType(any_=[*AT_WORK, StateType.SCHEDULED])
    )
    tasks = TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[run]), state=unfinished)
    for task in client.read_task_runs(task_run_filter=tasks, limit=PAGE):
        client.set_task_run_state(task.id, state, force=True)
    children = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run]))
    for child in client.read_flow_runs(flow_run_filter=children, limit=PAGE):
        if child.state is not None and child.state.is_final():
            continue
        if child.work_pool_name is not None:  # its worker stops it
            client.set_flow_run_state(child.id, Cancelling(), force=True)
        else:
            client.set_flow_run_state(child.id, state, force=True)
            settle(client, child.id, state)


def settle_run(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Settle a run whose process was killed: a hook for `on_crashed` and `on_cancellation`."""
    final: State[Any] = (
        Cancelled(message="the run was cancelled") if state.is_cancelling() else state
    )
    with get_client(sync_client=True) as client:
        settle(client, flow_run.id, final)
    if state.is_crashed():  # another state would be told to whom waits for crashes, once more
        flow_run_logger(flow_run, flow).error("the run was interrupted; %s", GO_ON)
