"""How a stage starts: its arguments, its log, and one clear message when it cannot go on."""

import argparse
import errno
import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Annotated, TypeVar, get_type_hints

from rich.console import Console
from rich.logging import RichHandler

from tasks.artifacts.records import write_json
from tasks.errors import ArtifactError, RegraftError
from tasks.params import Params
from tasks.params_file import load_params
from tasks.runtime.machine import Machine, prepare_memory, read_machine, read_place

log = logging.getLogger(__name__)

P = TypeVar("P", bound="StagePaths")

READ, WRITTEN = "read", "written"
Read = Annotated[Path, READ]
Write = Annotated[Path, WRITTEN]

FAILED, TERMINATED, INTERRUPTED = 1, 143, 130
PASSING = 75  # EX_TEMPFAIL of sysexits.h: the same may succeed later
LACKING = {  # what an OSError of a machine at its limits says
    *(errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE),
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT),
}


@dataclass(frozen=True, kw_only=True)
class StagePaths:
    """Base of the paths of a stage, each of them a field that is `Read` or `Write`."""

    params: Annotated[Path, "the parameters"] = Path("params.yaml")

    @property
    def read(self) -> list[Path]:
        """What the stage reads beside the parameters, in the order of the fields."""
        return [getattr(self, name) for name, use in _uses(type(self)).items() if use == READ]


def _uses(kind: type[StagePaths]) -> dict[str, str]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name].__metadata__[0] for field in fields(kind)}


def read_paths(kind: type[P], stage: str, description: str, argv: Sequence[str] | None) -> P:
    """Parse a stage's arguments: one path for each field, `--val-logits` for `val_logits`."""
    parser = argparse.ArgumentParser(prog=f"python -m tasks.{stage}", description=description)
    for name, use in _uses(kind).items():
        default = getattr(kind, name, None)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=Path,
            required=default is None,
            default=default,
            help=use,
        )
    return kind(**vars(parser.parse_args(argv)))


def read_arguments(
    kind: type[P], stage: str, description: str, argv: Sequence[str] | None
) -> tuple[P, Params]:
    """Parse a stage's arguments as `read_paths` and read the parameters.

    Raises:
        ParamsError: params.yaml is missing or at fault.
    """
    paths = read_paths(kind, stage, description, argv)
    return paths, load_params(paths.params)


def run_stage(
    stage: str, main: Callable[[Sequence[str] | None], None], *, timed: bool = True
) -> int:
    """Run a stage's main and return its exit status.

    0 when it finished; 1 with the message on stderr when a RegraftError stopped it, 75 where that
    came of a disk or a memory that is full or fails; 130 and 143 after SIGINT and SIGTERM. Any
    other exception is a defect of Regraft and keeps its traceback. How long it took goes to
    timings/<stage>.json in the scratch folder, outside DVC, unless it is no stage of the graph (not
    `timed`), which may run in anybody's folder. Of several processes of one stage, the first tells
    what goes on.
    """
    signal.signal(signal.SIGTERM, _terminate)
    started = time.monotonic()
    try:
        rank = read_place().rank
        _start_log(stage, rank)
        machine = read_machine()
        prepare_memory()
        main(None)
    except RegraftError as err:
        print(f"{stage} stopped: {err}", file=sys.stderr, flush=True)  # noqa: T201
        return PASSING if _is_passing(err) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    if timed and rank == 0:
        _write_timing(stage, time.monotonic() - started, machine)
    return 0


def _write_timing(stage: str, seconds: float, machine: Machine) -> None:
    path = machine.scratch / "timings" / f"{stage}.json"
    try:
        write_json(path, {"stage": stage, "seconds": round(seconds, 3)})
    except ArtifactError as err:  # the results are written; only how long it took is lost
        log.warning("%s", err)


def _is_passing(err: BaseException | None) -> bool:
    """Tell whether an error, or one that caused it, is the machine's and may be gone in a while."""
    while err is not None:
        if isinstance(err, MemoryError) or (isinstance(err, OSError) and err.errno in LACKING):
            return True
        err = err.__cause__
    return False


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(TERMINATED)


def _start_log(stage: str, rank: int) -> None:
    """Log to stderr: styled on a terminal, plain lines `stage: message` elsewhere.

    Of several processes, all but the first give warnings only, under their number.
    """
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(
            console=Console(stderr=True),
            show_path=False,
            show_level=False,
            show_time=False,
            markup=False,
        )
    else:
        handler = logging.StreamHandler(sys.stderr)
    name = f"{stage} (process {rank})" if rank else stage
    handler.setFormatter(logging.Formatter(f"{name}: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("tasks", "__main__"):  # a module run by python -m is called __main__
        logging.getLogger(name).setLevel(logging.WARNING if rank else logging.INFO)
