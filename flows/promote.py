"""The flow `promote`: a candidate into use; where test leaves doubt, a person is asked."""

# No `from __future__ import annotations`: Prefect could not build the parameters of a served run.

import re
from pathlib import Path
from typing import Any, Literal

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed
from pydantic import Field

from flows.artifacts import publish_promotion
from flows.commands.promote import (
    REFUSED,
    SAID,
    CandidateVerdict,
    go_back,
    judge_candidate,
    put_into_use,
)
from flows.endings import cancel, fail
from flows.errors import PromotionError
from flows.recovery import settle_run
from flows.stages.graph import find_root
from tasks.errors import RegraftError

HOURS = 24  # a person has to answer within
POLL_SECONDS = 5
HOUR_SECONDS = 3600
MARKUP = re.compile(r"[\\`*_\[\]<#!|@]")  # names of users stay names in markdown


class Approval(RunInput):
    """What a person answers."""

    approve: Literal["no", "yes"] = Field(description="Whether it comes into use.")
    by: str = Field(min_length=1, description="Who decides.")
    why: str = Field(min_length=1, description="Why; kept in the tag of the model.")


@flow(name="promote", persist_result=False, on_crashed=[settle_run], on_cancellation=[settle_run])
def promote_model(candidate: str = "", back: bool = False) -> State[Any]:
    """Put a candidate into use in place of the model in use, as `regraft promote` does.

    It is judged on the same test images. Better beyond doubt, it comes into use by itself; worse
    beyond doubt, it is refused; otherwise the run pauses and asks. Nothing changes where nobody
    answers within a day.

    Args:
        candidate: A commit, branch, tag or experiment.
        back: Instead of a candidate: the model before the one in use comes into use again.
    """
    log = get_run_logger()
    try:
        root = find_root(Path.cwd())
        if back == bool(candidate):
            raise PromotionError("give either a candidate or back")
        if back:
            return Completed(message=go_back(root, f"run {flow_run.name}", log.info))
        return _promote(root, judge_candidate(root, candidate, log.info))
    except RegraftError as err:
        log.error("%s", err)
        return fail(str(err))


def _promote(root: Path, verdict: CandidateVerdict) -> State[Any]:
    log = get_run_logger()
    for line in verdict.lines:
        log.info("%s", line)
    words = "\n\n".join(MARKUP.sub(r"\\\g<0>", line) for line in verdict.lines)
    publish_promotion(words)
    if verdict.finding == "in use":
        return Completed(message=verdict.lines[0])
    if verdict.by_itself:
        by = f"run {flow_run.name}"
        return Completed(message=put_into_use(root, verdict, verdict.by_itself, by, "", log.info))
    if verdict.finding == "worse":
        return Completed(name="Refused", message=REFUSED)
    answer = _ask(verdict, words)
    if answer is None:
        return _end(f"nobody answered within {HOURS} hours; nothing changed")
    if answer.approve == "no":
        return _end(f"{answer.by} said no ({answer.why}); nothing changed")
    return Completed(
        message=put_into_use(root, verdict, "approved", answer.by, answer.why, log.info)
    )


def _ask(verdict: CandidateVerdict, words: str) -> Approval | None:
    """Ask a person; None where nobody answers."""
    question = (
        f"Is it to come into use? **{SAID[verdict.finding].capitalize()}.**\n\n{words}\n\n"
        f"Without an answer within {HOURS} hours nothing changes."
    )
    form = Approval.with_initial_data(description=question)
    try:
        return pause_flow_run(form, timeout=HOURS * HOUR_SECONDS, poll_interval=POLL_SECONDS)
    except FlowPauseTimeout:
        return None


def _end(why: str) -> State[Any]:
    """End as cancelled; after its time the server would call a run that paused failed."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run.id, Cancelled(message=why), force=True)
    return cancel(why)
