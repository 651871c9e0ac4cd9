"""One stage through DVC's command line: its lines as they come, what DVC did, no child left."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flows.errors import GraphError
from flows.stages import guard

GUARD = Path(guard.__file__)
END_SECONDS = guard.GRACE_SECONDS + 5.0
BUSY_SECONDS = 2 * 60 * 60.0  # how long a stage waits for another process that holds its files
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 15.0

UNCHANGED = re.compile(r"^(Stage )?'.*' didn't change, skipping$")
RESTORED = re.compile(r"^Stage '.*' is cached - skipping run, checking out outputs$")
BUSY = re.compile(r"is busy, it is being blocked by|Unable to acquire lock")
HOLDER = re.compile(r"^\s*\(PID (\d+)\): (.+)$")
EXITED = re.compile(r"^ERROR: failed to reproduce .*exited with (-?\d+)$")
ERROR = re.compile(r"^ERROR: (?:failed to reproduce '[^']*': )?(.+)$")
CHATTER = re.compile(
    r"^(To track the changes with git, run:|\tgit add .*|To enable auto staging, run:"
    r"|\tdvc config core.autostage true|Use `dvc push` to send your updates to remote storage\.)?$"
)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What DVC did with one stage. `message` of a failure is the stage's own last word."""

    kind: Literal["ran", "unchanged", "restored", "failed"]
    message: str


def run_stage(root: Path, name: str, say: Say, *, busy_seconds: float = BUSY_SECONDS) -> Outcome:
    """Run `dvc repro --single-item` for one stage at `root` and tell `say` every line.

    Waits while another process holds the stage's files, at most `busy_seconds`. Whatever ends this
    call early (a cancelled flow, Ctrl-C) ends the stage and all its children first.
    """
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", name]
    give_up = time.monotonic() + busy_seconds
    pause = FIRST_PAUSE_SECONDS
    while True:
        status, lines = _stream(command, root, say)
        if status == 0 or not any(BUSY.search(line) for line in lines):
            return read_outcome(name, status, lines)
        if time.monotonic() + pause > give_up:
            return Outcome("failed", f"{_holders(lines)} still at work after {busy_seconds:g} s")
        say(f"waiting {pause:g} s for {_holders(lines)}")
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def run_dvc(root: Path, *arguments: str) -> str:
    """Run another dvc command at `root` to its end and give what it printed.

    Raises:
        GraphError: dvc refused; the message is its own.
    """
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments]
    status, lines = _stream(command, root, say=lambda line: None)
    if status != 0:
        raise GraphError(f"dvc {arguments[0]} at {root} failed: {' '.join(lines[-5:])}")
    return "\n".join(lines)


def read_outcome(name: str, status: int, lines: Sequence[str]) -> Outcome:
    """Tell from DVC's exit status and lines what became of a stage."""
    if status != 0:
        return Outcome("failed", _last_word(name, status, lines))
    if any(RESTORED.match(line) for line in lines):
        return Outcome("restored", "restored from run-cache")
    if any(UNCHANGED.match(line) for line in lines):
        return Outcome("unchanged", "unchanged")
    return Outcome("ran", "ran")


def _last_word(name: str, status: int, lines: Sequence[str]) -> str:
    """Find why a stage failed: its `<stage> stopped: ...`, else DVC's error and its last line."""
    errors = [number for number, line in enumerate(lines) if line.startswith("ERROR: ")]
    spoken = list(lines[: errors[0]] if errors else lines)
    stopped = f"{name} stopped: "
    for number, line in enumerate(spoken):
        if line.startswith(stopped):
            return "\n".join([line.removeprefix(stopped), *spoken[number + 1 :]]).strip()
    error = lines[errors[-1]] if errors else f"dvc exited with {status}"
    exited = EXITED.match(error)
    if exited is None:
        found = ERROR.match(error)
        return found.group(1) if found else error
    last = next((line for line in reversed(spoken) if line.strip()), "nothing was printed")
    return f"{_ending(int(exited.group(1)))}; its last line: {last.strip()}"


def _ending(status: int) -> str:
    number = -status if status < 0 else status - 128
    if number == 9:
        return "killed (SIGKILL), most often because memory ran out"
    return f"ended by signal {number}" if 0 < number < 65 else f"exited with {status}"


def _holders(lines: Sequence[str]) -> str:
    found = [match for match in map(HOLDER.match, lines) if match]
    named = [f"process {match.group(1)} ({match.group(2)})" for match in found]
    return ", ".join(dict.fromkeys(named)) or "another dvc process"


def _stream(command: Sequence[str], root: Path, say: Say) -> tuple[int, list[str]]:
    """Run a command at `root`; tell every line as it comes; give exit status and all lines."""
    lines: list[str] = []
    with _guarded(command, root) as process:
        assert process.stdout is not None
        for line in process.stdout:  # universal newlines: a progress bar's \r ends a line too
            text = line.rstrip()
            if CHATTER.match(text):
                continue
            lines.append(text)
            say(text)
        return process.wait(), lines


@contextmanager
def _guarded(command: Sequence[str], root: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a command under the guard; leaving the block ends it and everything it started."""
    process = subprocess.Popen(
        [sys.executable, str(GUARD), *command],
        cwd=root,
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()  # the guard ends the group
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def _environment() -> dict[str, str]:
    """Environment of a stage: the `python` of dvc.yaml is this one, and its lines come at once."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "true"}
