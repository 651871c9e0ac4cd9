"""The table of answers, which grows while images are read: whole at any moment, and gone on with.

New rows wait in memory for some seconds. Then the table is copied with them and renamed, so that a
kill leaves it as it was; the copy takes little of the time, because it waits for longer the longer
it takes.
"""

import csv
import fcntl
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tasks.artifacts.files import replacing_file
from tasks.artifacts.tables import AnswerRow, cells_of, columns_of, table_text
from tasks.errors import ArtifactError

SUFFIXES = (".csv", ".jsonl")
SECONDS_BETWEEN_WRITES = 5.0
SHARE_OF_TIME = 0.05  # that writing may take
FIXED = columns_of(AnswerRow)  # columns of any table


class AnswerFile:
    """Takes answers; use as a context manager, which writes what waits when it is left.

    Only one process at a time can be in it.

    Args:
        path: The table, .csv or .jsonl; one that is there is gone on with, without its rows that
            have an error.
        classes: Whose probabilities the rows have; may be none.
        model: Name of the model.

    Attributes:
        classes: As given.
        done: How often the table has an answer for each path.
        errors: Rows with an error that were taken.
        strange: Rows of images unlike those of training that were taken.

    Raises:
        ArtifactError: The suffix is another one, the folder cannot be written, another process is
            at it, or the file that is there has other columns or answers of another model.
    """

    def __init__(self, path: Path, classes: Sequence[str], model: str) -> None:
        if path.suffix.lower() not in SUFFIXES:
            raise ArtifactError(f"{path}: answers are written as {' or '.join(SUFFIXES)}")
        self.path, self.errors, self.strange, self.done = path, 0, 0, Counter[str]()
        self._model, self._held = model, ExitStack()
        self.classes, self._columns = classes, columns_of(AnswerRow, classes)
        self._is_csv = path.suffix.lower() == ".csv"
        self._file = Path(os.path.realpath(path))  # a link stays one
        self._waiting: list[str] = []
        self._next_write = time.monotonic() + SECONDS_BETWEEN_WRITES

    def __enter__(self) -> Self:
        with ExitStack() as held:
            held.enter_context(holding(self.path, self._file))
            if self._file.exists():
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
        self.strange += sum(row.in_domain is False for row in rows)
        self._waiting.append(self._render(rows))
        if time.monotonic() >= self._next_write:
            self._write()

    def _render(self, rows: Sequence[AnswerRow]) -> str:
        if self._is_csv:
            return table_text(AnswerRow, rows, self.classes, header=False)
        return "".join(f"{json.dumps(self._as_json(row))}\n" for row in rows)

    def _as_json(self, row: AnswerRow) -> dict[str, Any]:
        cells = dict(zip(self._columns, cells_of(row, self.classes), strict=True))
        return {**cells, "label_set": json.loads(row.label_set or "[]")}

    def _write(self) -> None:
        started = time.monotonic()
        with replacing_file(self._file) as temporary:
            if self._file.exists():
                shutil.copy(self._file, temporary)  # with its rights
            with temporary.open("ab") as file:
                file.write("".join(self._waiting).encode("utf-8", "surrogateescape"))
            self._waiting.clear()  # an interrupt may come once they are in place
        now = time.monotonic()
        pause = max(SECONDS_BETWEEN_WRITES, (now - started) / SHARE_OF_TIME)
        self._next_write = now + pause

    def _read(self) -> None:
        """Find out what is there; raises ArtifactError where it is of something else."""
        ended, same, errors = False, True, False
        try:
            for text, columns, row in self._rows():
                if row.get("model", self._model) != self._model:
                    raise ArtifactError(
                        f"{self.path}: holds answers of model {row['model']}, this one is "
                        f"{self._model}; name another file, or remove that one"
                    )
                ended, same = text.endswith("\n"), columns == self._columns
                errors |= bool(row.get("error"))
                if row and not row["error"]:
                    self.done[row["path"]] += 1
        except (OSError, ValueError, csv.Error) as err:
            raise ArtifactError(
                f"{self.path}: is there and no table of such answers ({err}); name another file, "
                "or remove that one"
            ) from err
        if not same:
            raise ArtifactError(
                f"{self.path}: its columns of probabilities are others, ask "
                f"{'without' if self.classes else 'with'} --probabilities; or name another file"
            )
        if errors or not ended:
            self._keep_answers()

    def _keep_answers(self) -> None:
        """Remove rows with an error, which may be gone, and end the last line."""
        with replacing_file(self._file) as temporary:
            shutil.copy(self._file, temporary)  # with its rights
            with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as new:
                rows = (text for text, _, row in self._rows() if not row.get("error"))
                new.writelines(f"{text.removesuffix(chr(10))}\n" for text in rows)

    def _rows(self) -> Iterator[tuple[str, list[str], dict[str, str]]]:
        """Text, columns and cells of every row; also of the header of a csv, which has no cells."""
        with self._file.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            if not self._is_csv:
                for line in file:
                    yield line, *_read_json(line)
                return
            lines: list[str] = []  # of one row

            def keep() -> Iterator[str]:
                for line in file:
                    lines.append(line)
                    yield line

            reader = csv.reader(keep(), strict=True)
            columns = _check(next(reader, []))
            yield "".join(lines), columns, {}
            lines.clear()
            for cells in reader:
                yield "".join(lines), columns, dict(zip(columns, cells, strict=True))
                lines.clear()


def _read_json(line: str) -> tuple[list[str], dict[str, str]]:
    row = json.loads(line)
    columns = _check(list(row) if isinstance(row, dict) else [])
    if not all(isinstance(row[name], str) for name in ("path", "error", "model")):
        raise ValueError(f"a path, an error or a model is no text: {line[:80]!r}")
    return columns, row


def _check(columns: list[str]) -> list[str]:
    if columns[: len(FIXED)] != FIXED:
        raise ValueError(f"its columns are {','.join(columns[:8])}, not {','.join(FIXED)}")
    return columns


@contextmanager
def holding(path: Path, real: Path) -> Iterator[None]:
    """Keep other processes from a table while the block runs; a kill frees it too.

    Args:
        path: As the user named it.
        real: The same without links.

    Raises:
        ArtifactError: Another process holds it, or its folder cannot be written.
    """
    lock = real.with_name(f".{real.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("wb")
    except OSError as err:
        raise ArtifactError(f"{path}: cannot be written ({err.strerror})") from err
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_nlink == 0:  # its holder removed it meanwhile
                raise BlockingIOError
        except BlockingIOError as err:
            raise ArtifactError(
                f"{path}: another command is writing it; wait for its end or name another file"
            ) from err
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
