"""How a table of answers lies on the disk: csv, lines of json or parquet, by its suffix.

Every format writes a new file from an old one, so that the caller can replace the old one whole.
"""

import csv
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from tasks.artifacts.tables import AnswerRow, cells_of, columns_of, table_text
from tasks.errors import ArtifactError

FIXED = columns_of(AnswerRow)  # columns of any table
CELLS_IN_MEMORY = 2**20  # of a parquet file that is copied
NO_UNICODE = "its name is no UTF-8, which parquet cannot hold; .csv and .jsonl can"


class AnswerFormat(Protocol):
    """Reads and writes tables of answers whose rows have the probabilities of some classes."""

    columns: list[str]

    def accept(self, row: AnswerRow) -> AnswerRow:
        """Give the row as the table can hold it."""
        ...

    def begin(self, new: Path) -> None:
        """Write a table without rows."""
        ...

    def extend(self, old: Path, new: Path, rows: Sequence[AnswerRow]) -> None:
        """Write the rows of an old table and then others."""
        ...

    def is_whole(self, file: Path) -> bool:
        """Say whether rows can be added: the last one has its end."""
        ...

    def read(self, file: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
        """Give columns and cells of every row, at least path, error and model as text.

        The columns come also without a row, with no cells, where the file names them.

        Raises:
            ValueError: The file is no such table; csv.Error is another way to say so.
        """
        ...

    def drop_errors(self, old: Path, new: Path) -> None:
        """Write the rows of an old table that have no error."""
        ...


def refuse(path: str, error: str, model: str, classes: Sequence[str]) -> AnswerRow:
    """Give the row of a file that has no answer, only an error."""
    return AnswerRow(
        path=path,
        predicted="",
        probability=None,
        label_set="",
        strangeness=None,
        in_domain=None,
        error=error,
        model=model,
        probabilities=dict.fromkeys(classes),
    )


def choose_format(path: Path, classes: Sequence[str]) -> AnswerFormat:
    """Choose by the suffix of a table.

    Raises:
        ArtifactError: The suffix is another one, or parquet's library is not installed.
    """
    formats: dict[str, Callable[[Sequence[str]], AnswerFormat]]
    formats = {".csv": CsvFormat, ".jsonl": JsonFormat, ".parquet": ParquetFormat}
    chosen = formats.get(path.suffix.lower())
    if chosen is None:
        *others, last = formats
        raise ArtifactError(f"{path}: answers are written as {', '.join(others)} or {last}")
    try:
        return chosen(classes)
    except ImportError as err:
        raise ArtifactError(
            f"{path}: parquet needs pyarrow: pip install pyarrow; or name a .csv or .jsonl"
        ) from err


class _TextFormat(ABC):
    """Rows are lines of text; names that are no UTF-8 keep their bytes or stand escaped."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes, self.columns = classes, columns_of(AnswerRow, classes)

    def accept(self, row: AnswerRow) -> AnswerRow:
        return row

    def begin(self, new: Path) -> None:
        new.write_text(self.header(), "utf-8")

    def extend(self, old: Path, new: Path, rows: Sequence[AnswerRow]) -> None:
        shutil.copyfile(old, new)
        with new.open("ab") as file:
            file.write(self.render(rows).encode("utf-8", "surrogateescape"))

    def is_whole(self, file: Path) -> bool:
        with file.open("rb") as text:
            text.seek(-min(1, text.seek(0, os.SEEK_END)), os.SEEK_END)
            return text.read() == b"\n" or text.tell() == 0

    def read(self, file: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
        return ((columns, row) for _, columns, row in self.lines(file))

    def drop_errors(self, old: Path, new: Path) -> None:
        with new.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            kept = (text for text, _, row in self.lines(old) if not row.get("error"))
            file.writelines(f"{text.removesuffix(chr(10))}\n" for text in kept)

    @abstractmethod
    def header(self) -> str:
        """Give the text before all rows."""

    @abstractmethod
    def render(self, rows: Sequence[AnswerRow]) -> str:
        """Give the text of rows."""

    @abstractmethod
    def lines(self, file: Path) -> Iterator[tuple[str, list[str], dict[str, str]]]:
        """Give text, columns and cells of the header, if there is one, and of every row."""


class CsvFormat(_TextFormat):
    """RFC 4180, with a header."""

    def header(self) -> str:
        """Give the line of column names."""
        return table_text(AnswerRow, [], self.classes)

    def render(self, rows: Sequence[AnswerRow]) -> str:
        """Give a line a row; more where a cell has line ends."""
        return table_text(AnswerRow, rows, self.classes, header=False)

    def lines(self, file: Path) -> Iterator[tuple[str, list[str], dict[str, str]]]:
        """Give the rows as the csv module parts them."""
        with file.open(encoding="utf-8", errors="surrogateescape", newline="") as opened:
            taken: list[str] = []  # lines of one row

            def keep() -> Iterator[str]:
                for line in opened:
                    taken.append(line)
                    yield line

            reader = csv.reader(keep(), strict=True)
            columns = _check(next(reader, []))
            yield "".join(taken), columns, {}
            taken.clear()
            for cells in reader:
                yield "".join(taken), columns, dict(zip(columns, cells, strict=True))
                taken.clear()


class JsonFormat(_TextFormat):
    """An object a line."""

    def header(self) -> str:
        """Give nothing."""
        return ""

    def render(self, rows: Sequence[AnswerRow]) -> str:
        """Give an object a line, in ASCII."""
        return "".join(f"{json.dumps(self._as_object(row))}\n" for row in rows)

    def _as_object(self, row: AnswerRow) -> dict[str, Any]:
        cells = dict(zip(self.columns, cells_of(row, self.classes), strict=True))
        return {**cells, "label_set": json.loads(row.label_set or "[]")}

    def lines(self, file: Path) -> Iterator[tuple[str, list[str], dict[str, str]]]:
        """Give the objects; each names its columns."""
        with file.open(encoding="utf-8", errors="surrogateescape", newline="") as opened:
            for line in opened:
                row = json.loads(line)
                columns = _check(list(row) if isinstance(row, dict) else [])
                if not all(isinstance(row[name], str) for name in ("path", "error", "model")):
                    raise ValueError(f"a path, an error or a model is no text: {line[:80]!r}")
                yield line, columns, row


class ParquetFormat:
    """Typed columns; `label_set` is a list of strings. Needs pyarrow."""

    def __init__(self, classes: Sequence[str]) -> None:
        import pyarrow  # noqa: PLC0415 - an extra
        from pyarrow import compute, parquet  # noqa: PLC0415

        self._arrow, self._compute, self._parquet = pyarrow, compute, parquet
        self._classes, self.columns = classes, columns_of(AnswerRow, classes)
        kinds = {
            "label_set": pyarrow.list_(pyarrow.string()),
            "in_domain": pyarrow.bool_(),
            **dict.fromkeys(("path", "predicted", "error", "model"), pyarrow.string()),
        }
        number = pyarrow.float64()
        self._schema = pyarrow.schema([(name, kinds.get(name, number)) for name in self.columns])

    def accept(self, row: AnswerRow) -> AnswerRow:
        """Make an error of a row whose name is no UTF-8."""
        if _is_unicode(row.path):
            return row
        name = os.fsencode(row.path).decode("utf-8", "backslashreplace")
        return refuse(name, row.error or NO_UNICODE, row.model, self._classes)

    def begin(self, new: Path) -> None:
        """Write the columns."""
        self._write(new, [])

    def extend(self, old: Path, new: Path, rows: Sequence[AnswerRow]) -> None:
        """Write all rows into few parts."""
        self._write(new, chain(self._parts(old), [self._table(rows)]))

    def is_whole(self, file: Path) -> bool:
        """Say yes: a file without its end cannot be read."""
        return True

    def read(self, file: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
        """Give path, error and model of every row."""
        with self._parquet.ParquetFile(file) as opened:
            columns = _check(opened.schema_arrow.names)
        yield columns, {}
        for part in self._parts(file, ["path", "error", "model"]):
            for row in part.to_pylist():
                if not all(isinstance(cell, str) for cell in row.values()):
                    raise ValueError(f"a path, an error or a model is no text: {row}")
                yield columns, row

    def drop_errors(self, old: Path, new: Path) -> None:
        """Write the rows without an error."""
        kept = (part.filter(self._compute.equal(part["error"], "")) for part in self._parts(old))
        self._write(new, kept)

    def _table(self, rows: Sequence[AnswerRow]) -> Any:
        plain = [
            {
                **dict(zip(self.columns, cells_of(row, self._classes), strict=True)),
                "label_set": json.loads(row.label_set or "[]"),
                "in_domain": row.in_domain,
            }
            for row in rows
        ]
        return self._arrow.Table.from_pylist(plain, schema=self._schema)

    def _parts(self, file: Path, columns: list[str] | None = None) -> Iterator[Any]:
        size = max(1, CELLS_IN_MEMORY // len(self.columns))
        with self._parquet.ParquetFile(file) as opened:
            for batch in opened.iter_batches(size, columns=columns, use_threads=False):
                yield self._arrow.Table.from_batches([batch])

    def _write(self, new: Path, parts: Iterable[Any]) -> None:
        with self._parquet.ParquetWriter(new, self._schema, compression="zstd") as writer:
            for part in parts:
                writer.write_table(part)


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check(columns: list[str]) -> list[str]:
    if columns[: len(FIXED)] != FIXED:
        raise ValueError(f"its columns are {','.join(columns[:8])}, not {','.join(FIXED)}")
    return columns
