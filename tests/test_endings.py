"""A flow that ends as failed or cancelled has said why; Prefect adds no traceback about it."""

import logging

import pytest
from prefect.exceptions import CancelledRun, FailedRun

from flows.endings import LOGGERS, cancel, fail


@pytest.mark.parametrize(
    ("error", "logging_it"),
    [(FailedRun("no bins"), ()), (CancelledRun("stopped"), ()), (ValueError("a defect"), LOGGERS)],
)
def test_what_a_state_says_is_no_traceback_too(
    error: Exception, logging_it: tuple[str, ...]
) -> None:
    assert fail("no bins").message == "no bins"
    assert cancel("stopped").is_cancelled()
    words = "Engine execution exited with unexpected exception"
    raised = (type(error), error, None)
    record = logging.LogRecord("prefect", logging.ERROR, __file__, 1, words, (), raised)
    assert [name for name in LOGGERS if logging.getLogger(name).filter(record)] == [*logging_it]
