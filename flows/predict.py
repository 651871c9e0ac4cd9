"""The flow `predict`: the exported model on a folder of images, also on a schedule."""

# No `from __future__ import annotations`: Prefect could not build the parameters of a served run.

import logging
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.artifacts import StageProgress
from flows.endings import cancel, fail
from flows.recovery import settle_run
from flows.stages.graph import find_root
from flows.stages.locks import hold_lane
from flows.stages.runner import Outcome, Runner
from tasks.delivery.inputs import STDIN
from tasks.errors import DataError, RegraftError
from tasks.predict import MODEL, OnBad
from tasks.runtime.machine import read_machine


@flow(name="predict", persist_result=False, on_crashed=[settle_run], on_cancellation=[settle_run])
def predict_images(
    source: str,
    out: str,
    model: str = str(MODEL),
    on_bad: OnBad = "row",
    probabilities: bool = False,
    explain: str = "",
) -> State[Any]:
    """Classify images as `python -m tasks.predict` does; what the table has is not done again.

    That goes by names: a file that was replaced keeps its answer until its row is removed. Rows
    with an error are removed, and their files tried again.

    Args:
        source: A folder of images, or a csv with a column path. Paths are relative to the project.
        out: The table to write: .csv, .jsonl or .parquet; one that is there is gone on with.
        model: The folder of the exported model.
        on_bad: What files that cannot be read mean: only a row with the error (row), or also that
            the run has failed (fail), once all others are done.
        probabilities: Whether the table has a column for each class.
        explain: A folder for a picture of each new answer, with a heatmap; empty for none.
    """
    options = ["--model", model, "--on-bad", on_bad, *["--probabilities"] * probabilities]
    options += ["--explain", explain] if explain else []
    try:
        if source == STDIN:
            raise DataError("source is '-', but a flow has no stdin; name a folder or a csv")
        outcome = run_command(find_root(Path.cwd()), "predict", [*options, "--", source, out])
    except RegraftError as err:
        outcome = Outcome("failed", str(err))
    return state_of(outcome)


def state_of(outcome: Outcome) -> State[Any]:
    """Give the state in which a run ends."""
    if outcome.kind == "stopped":
        return cancel(outcome.message)
    if outcome.kind == "failed":
        return fail(outcome.message)
    return Completed(message=outcome.message)


def run_command(root: Path, module: str, words: list[str]) -> Outcome:
    """Run `python -m tasks.<module>` on a lane, with its progress on the run's page."""
    log, progress, runner = get_run_logger(), StageProgress(module), Runner(root)

    def say(line: str) -> None:
        log.log(logging.ERROR if " stopped: " in line else logging.INFO, "%s", line)
        progress.read(line)

    def wait(holder: str) -> None:
        say(f"waiting: the machine is busy with {holder}")

    try:
        with hold_lane(root, f"{flow_run.name}, {module}", read_machine(), wait) as lane:
            outcome = runner.call(module, words, say, locks=[lane.descriptor])
    except BaseException:
        runner.stop()
        raise
    if outcome.kind == "ran":
        progress.finish()
    return outcome
