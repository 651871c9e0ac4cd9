"""One stage through DVC's command line: its lines as they come, what DVC did, no child left."""

import os
import re
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flows.errors import GraphError
from flows.stages import guard
from flows.stages.holders import BUSY, CORRUPTED, RWLOCK, holders_in, left_over
from flows.stages.locks import Say

GUARD = Path(guard.__file__)
DVC = ("-m", "dvc", "--wait-for-lock")
BUSY_SECONDS = 2 * 60 * 60.0  # how long a stage waits for a dvc process that holds its files
END_SECONDS = guard.GRACE_SECONDS + 5.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 15.0

UNCHANGED = re.compile(r"^(Stage )?'.*' didn't change, skipping$")
RESTORED = re.compile(r"^Stage '.*' is cached - skipping run, checking out outputs$")
EXITED = re.compile(r"^ERROR: failed to reproduce .*exited with (-?\d+)$")
ERROR = re.compile(r"^ERROR: (?:failed to reproduce '[^']*': )?(.+)$")
# A stage ends so where the machine lacks something for now (tasks.runtime.entry), or was killed
# for memory.
PASSING = re.compile(r"exited with (?:75|-9|137)$|No space left on device")
CHATTER = re.compile(
    r"^(To track the changes with git, run:|\tgit add .*|To enable auto staging, run:"
    r"|\tdvc config core.autostage true|Use `dvc push` to send your updates to remote storage\.)?$"
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What DVC did with one stage. `message` of a failure is the stage's own last word.

    `passing` tells a failure that may be gone in a while: a lock, a full disk, no memory.
    """

    kind: Literal["ran", "unchanged", "restored", "failed", "stopped"]
    message: str
    passing: bool = False


_RUNNERS: weakref.WeakSet["Runner"] = weakref.WeakSet()
_ENDING = threading.Event()  # of this process: no runner starts anything more


def stop_all() -> None:
    """Stop the stages of every runner of this process, which is about to end."""
    _ENDING.set()
    for runner in list(_RUNNERS):
        runner.stop()


class Runner:
    """Runs the stages of one project, several at once if asked; stops them all at once.

    Args:
        root: The project.
        settings: Environment variables of the stages beside those of this process.
        locks: File descriptors of locks that are held until the last stage has ended.
    """

    def __init__(
        self, root: Path, settings: Mapping[str, str] | None = None, locks: Sequence[int] = ()
    ) -> None:
        self.root = root
        self._settings, self._locks = dict(settings or {}), tuple(locks)
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = threading.Event()
        _RUNNERS.add(self)

    def run(
        self,
        name: str,
        say: Say,
        *,
        force: bool = False,
        settings: Mapping[str, str] | None = None,
        locks: Sequence[int] = (),
        busy_seconds: float = BUSY_SECONDS,
    ) -> Outcome:
        """Run `dvc repro --single-item` for one stage and tell `say` every line.

        Waits while another process holds the stage's files, at most `busy_seconds`. Whatever ends
        this call early (a cancelled flow, Ctrl-C) ends the stage and all its children first.

        Args:
            name: The stage.
            say: Takes the lines.
            force: Run it although nothing changed.
            settings: More environment variables.
            locks: More locks to be held until the stage has ended.
            busy_seconds: How long to wait for other processes.
        """
        words = [*DVC, "repro", "--single-item", *(["--force"] if force else []), name]
        give_up = time.monotonic() + busy_seconds
        pause = FIRST_PAUSE_SECONDS
        while not self._is_stopped():
            status, lines = self._stream(words, say, settings or {}, locks)
            if self._is_stopped():
                break
            if any(CORRUPTED.search(line) for line in lines):
                return Outcome("failed", f"{self.root / RWLOCK} was cut off. Delete that file")
            if status == 0 or not any(BUSY.search(line) for line in lines):
                return read_outcome(name, status, lines)
            died = left_over(holders_in(lines))
            if died:
                return Outcome("failed", f"{self.root / RWLOCK} {died}. Delete that file")
            if time.monotonic() + pause > give_up:
                message = f"{_holders(lines)} still at work after {busy_seconds:g} s"
                return Outcome("failed", message, passing=True)
            say(f"waiting {pause:g} s for {_holders(lines)}")
            self._stopped.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        return Outcome("stopped", "the run was stopped")

    def dvc(self, *arguments: str) -> str:
        """Run another dvc command to its end and give what it printed.

        Raises:
            GraphError: dvc refused; the message is its own.
        """
        status, lines = self._stream([*DVC, *arguments], lambda line: None, {}, ())
        if status != 0:
            said = " ".join(lines[-5:])
            raise GraphError(f"dvc {arguments[0]} at {self.root} failed: {said}")
        return "\n".join(lines)

    def call(
        self, module: str, arguments: Sequence[str], say: Say, *, locks: Sequence[int] = ()
    ) -> Outcome:
        """Run what is no stage, `python -m tasks.<module>`, and tell `say` every line.

        Args:
            module: Its name.
            arguments: Of its command line.
            say: Takes the lines.
            locks: More locks to be held until it has ended.
        """
        command = ["-m", f"tasks.{module}", *arguments]
        status, lines = self._stream(command, say, {}, locks)
        if self._is_stopped():
            return Outcome("stopped", "the run was stopped")
        if status != 0:
            return read_outcome(module, status, lines)
        last = next((line for line in reversed(lines) if line.strip()), "done")
        return Outcome("ran", last.removeprefix(f"{module}: "))

    def stop(self) -> None:
        """End all running stages and start no more; returns when nothing of them is left."""
        self._stopped.set()
        running = list(self._running)
        for process in running:
            _let_go(process)
        for process in running:
            _end(process)

    def _is_stopped(self) -> bool:
        return self._stopped.is_set() or _ENDING.is_set()

    def _stream(
        self, words: Sequence[str], say: Say, settings: Mapping[str, str], locks: Sequence[int]
    ) -> tuple[int, list[str]]:
        """Run a Python command; tell every line as it comes; give exit status and all lines."""
        lines: list[str] = []
        with self._guarded([sys.executable, *words], settings, locks) as process:
            assert process.stdout is not None
            for line in process.stdout:  # universal newlines: a progress bar's \r ends a line too
                text = line.rstrip()
                if CHATTER.match(text):
                    continue
                lines.append(text)
                say(text)
            return process.wait(), lines

    @contextmanager
    def _guarded(
        self, command: Sequence[str], settings: Mapping[str, str], locks: Sequence[int]
    ) -> Iterator[subprocess.Popen[str]]:
        """Start a command under the guard; leaving the block ends it and all that it started."""
        process = subprocess.Popen(
            [sys.executable, str(GUARD), *command],
            cwd=self.root,
            env=stage_environment({**self._settings, **settings}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            pass_fds=[*self._locks, *locks],
        )
        self._running.add(process)
        try:
            if self._is_stopped():
                _let_go(process)
            yield process
        finally:
            _end(process)
            self._running.discard(process)
            assert process.stdout is not None
            process.stdout.close()


def read_outcome(name: str, status: int, lines: Sequence[str]) -> Outcome:
    """Tell from DVC's exit status and lines what became of a stage."""
    if status != 0:
        passing = any(PASSING.search(line) for line in lines)
        return Outcome("failed", _last_word(name, status, lines), passing)
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
    return f"{say_ending(int(exited.group(1)))}; its last line: {last.strip()}"


def say_ending(status: int) -> str:
    """Say how a process ended, from its exit status, negative or above 128 for a signal."""
    number = -status if status < 0 else status - 128
    if number == 9:
        return "killed (SIGKILL), most often because memory ran out"
    return f"ended by signal {number}" if 0 < number < 65 else f"exited with {status}"


def _holders(lines: Sequence[str]) -> str:
    named = [f"process {pid} ({command})" for pid, command in holders_in(lines)]
    return ", ".join(named) or "another dvc process"


def _let_go(process: subprocess.Popen[str]) -> None:
    """Close the guard's pipe: it ends the command and all that it started."""
    assert process.stdin is not None
    process.stdin.close()


def _end(process: subprocess.Popen[str]) -> None:
    _let_go(process)
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def stage_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Make a stage's environment: `python` in dvc.yaml is this one, and its lines come at once."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    own = {"PATH": path, "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "true"}
    return {**os.environ, **own, **settings}
