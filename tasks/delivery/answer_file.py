"""The table of answers, which grows while images are read: whole at any moment, and gone on with.

New rows wait in memory for some seconds. Then the table is copied with them and renamed, so that a
kill leaves it as it was; the copy takes little of the time, because it waits for longer the longer
it takes.
"""

import csv
import fcntl
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from tasks.artifacts.files import replacing_file
from tasks.artifacts.tables import AnswerRow
from tasks.delivery.answer_formats import choose_format
from tasks.errors import ArtifactError

SECONDS_BETWEEN_WRITES = 5.0
SHARE_OF_TIME = 0.05  # that writing may take


class AnswerFile:
    """Takes answers; use as a context manager, which writes what waits when it is left.

    Only one process at a time can be in it.

    Args:
        path: The table, .csv, .jsonl or .parquet; one that is there is gone on with, without its
            rows that have an error.
        classes: Whose probabilities the rows have; may be none.
        model: Name of the model.

    Attributes:
        classes: As given.
        done: How often the table has an answer for each path.
        errors: Rows with an error that were taken.
        strange: Rows of images unlike those of training that were taken.

    Raises:
        ArtifactError: The suffix is another one, pyarrow is not installed and has to be, the folder
            cannot be written, another process is at it, or the file that is there has other columns
            or answers of another model.
    """

    def __init__(self, path: Path, classes: Sequence[str], model: str) -> None:
        self.path, self.errors, self.strange, self.done = path, 0, 0, Counter[str]()
        self._model, self._held = model, ExitStack()
        self.classes, self._format = classes, choose_format(path, classes)
        self._file = Path(os.path.realpath(path))  # a link stays one
        self._waiting: list[AnswerRow] = []
        self._next_write = time.monotonic() + SECONDS_BETWEEN_WRITES

    def __enter__(self) -> Self:
        with ExitStack() as held:
            held.enter_context(holding(self.path, self._file))
            if self._file.exists():
                self._read()
            else:
                with replacing_file(self._file) as temporary:
                    self._format.begin(temporary)
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._held:
            if self._waiting:
                self._write()

    def append(self, rows: Sequence[AnswerRow]) -> None:
        """Take rows; they are on the disk some seconds later."""
        taken = [self._format.accept(row) for row in rows]
        self.errors += sum(bool(row.error) for row in taken)
        self.strange += sum(row.in_domain is False for row in taken)
        self._waiting += taken
        if time.monotonic() >= self._next_write:
            self._write()

    def _write(self) -> None:
        started = time.monotonic()
        with self._replacing() as temporary:
            self._format.extend(self._file, temporary, self._waiting)
            self._waiting.clear()  # an interrupt may come once they are in place
        now = time.monotonic()
        pause = max(SECONDS_BETWEEN_WRITES, (now - started) / SHARE_OF_TIME)
        self._next_write = now + pause

    @contextmanager
    def _replacing(self) -> Iterator[Path]:
        """Replace the table that is there and leave it its rights."""
        with replacing_file(self._file) as temporary:
            yield temporary
            shutil.copymode(self._file, temporary)

    def _read(self) -> None:
        """Find out what is there; raises ArtifactError where it is of something else."""
        same, errors = True, False
        try:
            for columns, row in self._format.read(self._file):
                if row.get("model", self._model) != self._model:
                    raise ArtifactError(
                        f"{self.path}: holds answers of model {row['model']}, this one is "
                        f"{self._model}; name another file, or remove that one"
                    )
                same = columns == self._format.columns
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
        if errors or not self._format.is_whole(self._file):
            with self._replacing() as temporary:
                self._format.drop_errors(self._file, temporary)


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
