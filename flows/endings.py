"""How a flow ends that does not do its work: its state says why, and Prefect adds no traceback.

The process of a served run raises such a state, and would log the exception as unexpected: in the
log of the run, and once more in its own.
"""

import logging
from typing import Any

from prefect.client.schemas.objects import State
from prefect.exceptions import CancelledRun, FailedRun
from prefect.states import Cancelled, Failed

LOGGERS = ("prefect.flow_runs", "prefect.engine")


def fail(message: str) -> State[Any]:
    """End a flow as failed."""
    _leave_out_tracebacks()
    return Failed(message=message)


def cancel(message: str) -> State[Any]:
    """End a flow as cancelled."""
    _leave_out_tracebacks()
    return Cancelled(message=message)


def _leave_out_tracebacks() -> None:
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_is_unexpected)


def _is_unexpected(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, FailedRun | CancelledRun)
