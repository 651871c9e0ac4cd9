"""Starts a stage in several processes of this host, as REGRAFT_PROCESSES says.

`python -m tasks.finetune` then does what `torchrun --standalone --nproc-per-node=N -m
tasks.finetune` does, so that dvc.yaml needs one command for any number of processes.
"""

import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tasks.errors import EngineError, PeerError, RegraftError
from tasks.runtime.entry import FAILED, run_stage
from tasks.runtime.machine import read_machine, read_place
from tasks.runtime.processes import speak_first

Main = Callable[[Sequence[str] | None], None]

END_SECONDS = 10.0  # within which torchrun ends all processes when one has ended


def run_in_processes(stage: str, main: Main) -> int:
    """Run a stage's main, in one process or several, and return its exit status as `run_stage`.

    A process that torchrun has started is one of several already, whatever REGRAFT_PROCESSES says.
    """
    return run_stage(stage, partial(_start, stage, main))


def _start(stage: str, main: Main, argv: Sequence[str] | None) -> None:
    processes = read_machine().processes
    if read_place().world_size > 1:
        _run_one_of_several(main, argv)
    elif processes == 1 or read_place().launched:
        main(argv)
    else:
        _launch(stage, sys.argv[1:] if argv is None else argv, processes)


def _run_one_of_several(main: Main, argv: Sequence[str] | None) -> None:
    """Run main; of the errors of several processes let one be shown, and not one that follows it.

    Raises:
        RegraftError: As main raised it.
        SystemExit: Another process shows its error.
    """
    try:
        main(argv)
    except RegraftError as err:
        if isinstance(err, PeerError):
            time.sleep(END_SECONDS)
        if speak_first():
            raise
        time.sleep(END_SECONDS)  # the other one needs a moment to speak
        sys.exit(FAILED)


def _launch(stage: str, argv: Sequence[str], processes: int) -> None:
    """Start the processes and wait for them.

    Raises:
        EngineError: The system killed one of them.
        SystemExit: One failed, and has said why; or this one was told to end.
    """
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the stage speaks itself
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=stage,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", f"tasks.{stage}", *argv)
    except ChildFailedError as err:
        _, failure = err.get_first_failure()
        _explain(failure)
        sys.exit(failure.exitcode)
    except SignalException as err:
        sys.exit(128 + err.sigval)


def _explain(failure: ProcessFailure) -> None:
    """Say what a process that was killed could not say itself."""
    if failure.exitcode < 0:
        raise EngineError(
            f"process {failure.local_rank} was killed by {signal.Signals(-failure.exitcode).name}; "
            "if memory ran out, lower REGRAFT_PROCESSES or the stage's batch_size"
        )
