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


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the loggers, for each record that reaches their handlers."""
    names: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: names.append(record.name)  # type: ignore[method-assign]
    for name in LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "handlers", [handler])
        monkeypatch.setattr(logging.getLogger(name), "propagate", False)
    return names


@pytest.mark.parametrize(
    ("error", "expected"),
    [(FailedRun("no bins"), ()), (CancelledRun("stopped"), ()), (ValueError("a defect"), LOGGERS)],
)
def test_what_a_state_says_is_no_traceback_too(
    logged: list[str], error: Exception, expected: tuple[str, ...]
) -> None:
    assert fail("no bins").message == "no bins"
    assert cancel("stopped").is_cancelled()
    with pytest.raises(SystemExit), handle_engine_signals():
        run_flow(error)
    assert logged == [*expected]
