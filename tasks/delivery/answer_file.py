"""The table of answers, which grows while images are read: whole at any moment, and gone on with.

New rows wait in memory for some seconds. Then the table is copied with them and renamed, so that a
kill leaves it as it was; the copy takes little of the time, because it waits for longer the longer
it takes.
"""

import csv
import fcntl
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from tasks.artifacts.files import replacing_file
from tasks.artifacts.tables import AnswerRow, cells_of, columns_of, table_text
from tasks.errors import ArtifactError

SUFFIXES = (".csv", ".jsonl")
SECONDS_BETWEEN_WRITES = 5.0
SHARE_OF_TIME = 0.05  # that writing may take


class AnswerFile:
    """Takes answers; use as a context manager, which writes what waits when it is left.

    Only one process at a time can be in it.

    Args:
        path: The table, .csv or .jsonl; one that is there is gone on with.
        classes: Whose probabilities the rows have; may be none.
        model: Name of the model.

    Attributes:
        classes: As given.
        done: How often the table has an answer for each path.
        errors: Rows with an error.

    Raises:
        ArtifactError: The suffix is another one, the folder cannot be written, another process is
            at it, or the file that is there has other columns or answers of another model.
    """

    def __init__(self, path: Path, classes: Sequence[str], model: str) -> None:
        if path.suffix.lower() not in SUFFIXES:
            raise ArtifactError(f"{path}: answers are written as {' or '.join(SUFFIXES)}")
        self.path, self.errors, self.done = path, 0, Counter[str]()
        self._model, self._held = model, ExitStack()
        self.classes, self._columns = classes, columns_of(AnswerRow, classes)
        self._is_csv = path.suffix.lower() == ".csv"
        self._waiting: list[str] = []
        self._next_write = time.monotonic() + SECONDS_BETWEEN_WRITES

    def __enter__(self) -> Self:
        with ExitStack() as held:
            held.enter_context(_holding(self.path))
            if self.path.exists():
                self._read()
            else:
                self._waiting = [table_text(AnswerRow, [], self.classes)] if self._is_csv else []
                self._write()
            self._held = held.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._held:
            if self._waiting:
                self._write()

    def append(self, rows: Sequence[AnswerRow]) -> None:
        """Take rows; they are on the disk some seconds later."""
        self.errors += sum(bool(row.error) for row in rows)
        self._waiting.append(self._render(rows))
        if time.monotonic() >= self._next_write:
            self._write()

    def _render(self, rows: Sequence[AnswerRow]) -> str:
        if self._is_csv:
            return table_text(AnswerRow, rows, self.classes, header=False)
        cells = (zip(self._columns, cells_of(row, self.classes), strict=True) for row in rows)
        return "".join(f"{json.dumps(dict(pairs))}\n" for pairs in cells)

    def _write(self) -> None:
        started = time.monotonic()
        with replacing_file(self.path) as temporary:
            if self.path.exists():
                shutil.copyfile(self.path, temporary)
            with temporary.open("ab") as file:
                file.write("".join(self._waiting).encode("utf-8", "surrogateescape"))
        self._waiting.clear()
        now = time.monotonic()
        pause = max(SECONDS_BETWEEN_WRITES, (now - started) / SHARE_OF_TIME)
        self._next_write = now + pause

    def _read(self) -> None:
        """Find out what is there; raises ArtifactError where it is of something else."""
        try:
            for path, error, name in self._rows():
                if name != self._model:
                    raise ArtifactError(
                        f"{self.path}: holds answers of model {name}, this one is {self._model}; "
                        "name another file, or remove that one"
                    )
                self.done[path] += 1
                self.errors += bool(error)
        except (OSError, ValueError, csv.Error) as err:
            raise ArtifactError(
                f"{self.path}: is there and no table of such answers ({err}); name another file, "
                "or remove that one"
            ) from err

    def _rows(self) -> Iterator[tuple[str, str, str]]:
        """Path, error and model of every row."""
        with self.path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            if self._is_csv:
                reader = csv.reader(file, strict=True)
                self._check(next(reader, []))
                rows: Iterator[dict[str, str]] = (
                    dict(zip(self._columns, row, strict=True)) for row in reader
                )
            else:
                rows = map(self._read_json, file)
            for row in rows:
                yield row["path"], row["error"], row["model"]

    def _read_json(self, line: str) -> dict[str, str]:
        row = json.loads(line)
        self._check(list(row) if isinstance(row, dict) else [])
        assert isinstance(row, dict)
        return row

    def _check(self, columns: Sequence[str]) -> None:
        if list(columns) != self._columns:
            raise ValueError(
                f"its columns are {','.join(columns[:8])}, not {','.join(self._columns[:8])}"
            )


@contextmanager
def _holding(path: Path) -> Iterator[None]:
    """Keep other processes from a table while the block runs; a kill frees it too."""
    lock = path.parent / f".{path.name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("wb")
    except OSError as err:
        raise ArtifactError(f"{path}: cannot be written ({err.strerror})") from err
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise ArtifactError(
                f"{path}: another command is writing it; wait for its end or name another file"
            ) from err
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
