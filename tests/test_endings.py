"""A flow that ends as failed or cancelled has said why; Prefect's engine adds no traceback."""

import logging

import pytest
from prefect.engine import handle_engine_signals
from prefect.exceptions import CancelledRun, FailedRun
from prefect.logging.loggers import get_logger

from flows.endings import LOGGERS, cancel, fail


def run_flow(error: Exception) -> None:
    """Log and raise as Prefect's function of that name does."""
    try:
        raise error
    except Exception:
        get_logger("flow_runs").error("Engine execution exited", exc_info=True)
        raise


def logged(error: Exception) -> list[str]:
    """What is logged where the process of a run ends with an exception."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    for name in LOGGERS:
        logging.getLogger(name).addHandler(handler)
    try:
        with pytest.raises(SystemExit), handle_engine_signals():
            run_flow(error)
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(handler)
    return [record.name for record in records]


def test_what_a_state_says_is_no_traceback_too() -> None:
    assert fail("no bins").message == "no bins"
    assert cancel("stopped").is_cancelled()
    assert logged(FailedRun("no bins")) == []
    assert logged(CancelledRun("stopped")) == []
    assert logged(ValueError("a defect")) == [*LOGGERS]
