"""A user's csv file as rows with line numbers, or one sentence that says why it is none."""

import csv
import io
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.artifacts.words import listed, plural, printable, shortened
from tasks.errors import DataError
from tasks.images.listing.names import nearest_name

_OTHER_FILES = (
    (b"PK\x03\x04", "an Excel workbook or another zip; export its sheet as csv (UTF-8)"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook; export its sheet as csv (UTF-8)"),
    (b"%PDF", "a PDF file; write its table as csv (UTF-8)"),
    (b"\x1f\x8b", "compressed by gzip; unpack it"),
    (b"PAR1", "a Parquet file; write it as csv (UTF-8)"),
    (b"<!DOCTYPE", "a web page; fetch the file that it shows"),
    (b"<html", "a web page; fetch the file that it shows"),
    (b"version https://git-lfs", "a pointer of Git LFS; git lfs pull fetches the file"),
)
_NAMES_A_FILE = re.compile(r"[/\\]|\.\w{2,5}$")


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a user's table: its line in the file, and its cells by column name."""

    number: int
    cells: dict[str, str]


def read_lines(
    path: Path, *, required: Sequence[str], optional: Sequence[str], others: bool = False
) -> list[Line]:
    """Read a csv file with a header; blank lines are skipped, a byte order mark too.

    Names of columns are taken in any case and without the spaces around them; cells stand as they
    are. Where `others` is true, columns beside these are passed over.

    Raises:
        DataError: The file cannot be read, or its columns or a row are not as they must be.
    """
    text = _decode(path, _read(path))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    try:
        header = next(reader, [])
        names = [name.strip().lower() for name in header]
        known = others and all(names.count(name) == 1 for name in required)
        beside = [name for name in names if others and re.fullmatch(r"[\w ]+", name)]
        allowed = dict.fromkeys([*optional, *(name for name in beside if name not in required)])
        wrong = "" if known else _why_not_header(path, header, names, required, list(allowed))
        if wrong:
            raise DataError(f"{path}:1: {wrong}")
        return list(_lines(path, reader, names, {*required, *optional}))
    except csv.Error as err:
        raise DataError(f"{path}:{_explain(err, text, reader.line_num)}") from err


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise DataError(f"{path}: cannot be read ({err.strerror})") from err


def _decode(path: Path, content: bytes) -> str:
    """Give the text of a file; raises DataError where it is no UTF-8 text."""
    start = content[:512].lstrip()
    for signature, what in _OTHER_FILES:
        if start.lower().startswith(signature.lower()):
            raise DataError(f"{path}: is no csv but {what}")
    if content[:2] in {b"\xff\xfe", b"\xfe\xff"} or b"\0" in content[:4]:
        raise DataError(f"{path}: is UTF-16 text, expected UTF-8; {_convert(path, 'utf-16')}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = content.count(b"\n", 0, err.start) + 1
        raise DataError(
            f"{path}:{line}: byte 0x{content[err.start]:02x} is no UTF-8; the file is probably "
            f"Windows-1252 (cp1252): {_convert(path, 'cp1252')}"
        ) from err
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path}:{line}: holds a zero byte and is no text; export it as csv again")
    return text


def _convert(path: Path, encoding: str) -> str:
    return (
        f"save it as csv in UTF-8, or convert it: iconv -f {encoding} -t utf-8 "
        f"{_beside(path, 'utf8.csv')}"
    )


def _beside(path: Path, name: str) -> str:
    """Give `path > new`, for a shell, the new file in the same folder: paths are relative to it."""
    return f"{shlex.quote(str(path))} > {shlex.quote(str(path.with_name(name)))}"


def _why_not_header(
    path: Path,
    header: Sequence[str],
    names: Sequence[str],
    required: Sequence[str],
    optional: Sequence[str],
) -> str:
    """Say what is wrong with the first row; empty where nothing is."""
    allowed = [*required, *optional]
    if set(required) <= set(names) <= set(allowed) and len(set(names)) == len(names):
        return ""
    found = shortened(",".join(header), 100)
    columns = ",".join(required) + "".join(f"[,{name}]" for name in optional)
    said = f"columns are {found!r}; allowed: {columns}"
    return f"{said}. {_explain_header(path, header, names, allowed, required)}".rstrip(". ")


def _explain_header(
    path: Path,
    header: Sequence[str],
    names: Sequence[str],
    allowed: Sequence[str],
    required: Sequence[str],
) -> str:
    if not any(names):
        return "The file is empty" if not header else "The first row is empty; remove it"
    if re.fullmatch(r"sep=.", ",".join(names)) or names[0].startswith("sep="):
        return "The line 'sep=' is Excel's own; remove it, and separate the columns by commas"
    for mark, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if mark in ",".join(header) and not set(names) & set(allowed):
            command = (
                "python3 -c 'import csv, sys; csv.writer(sys.stdout).writerows("
                f"csv.reader(sys.stdin, delimiter={ascii(mark).replace(chr(39), chr(34))}))' "
                f"< {_beside(path, 'commas.csv')}"
            )
            return f"The columns are separated by {name}, not by commas; convert: {command}"
    if not set(names) & set(allowed) and any(map(_NAMES_A_FILE.search, names)):
        return f"There is no header; put the line {','.join(allowed[: len(header)])} above the rows"
    return " ".join(_explain_columns(names, allowed, required))


def _explain_columns(
    names: Sequence[str], allowed: Sequence[str], required: Sequence[str]
) -> Iterator[str]:
    if "" in names:
        yield f"Column {names.index('') + 1} has no name, like an index (pandas: index=False)."
    unknown = [name for name in names if name and name not in allowed]
    if unknown:
        near = [f"{printable(name)}{nearest_name(name, allowed)}" for name in unknown[:6]]
        more = f" and {len(unknown) - 6:,} more" if len(unknown) > 6 else ""
        yield f"Unknown: {', '.join(near)}{more}; remove or rename."
    missing = [name for name in required if name not in names]
    if missing:
        yield f"Missing: {listed(missing)}."
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        yield f"Twice: {listed(twice)}."


def _lines(
    path: Path, reader: Iterator[list[str]], header: Sequence[str], wanted: Collection[str]
) -> Iterator[Line]:
    number = 1
    for row in reader:
        number += 1 + sum(cell.count("\n") for cell in row)
        if not row:
            continue
        if len(row) != len(header):
            raise DataError(
                f"{path}:{number}: {plural(len(row), 'cell')}, expected {len(header)} "
                f"({','.join(header)}); "
                'a cell that holds a comma stands in quotes ("a,b")'
            )
        cells = zip(header, row, strict=True)
        yield Line(number, {name: cell for name, cell in cells if name in wanted})


def _explain(err: csv.Error, text: str, line: int) -> str:
    """Say in which line a csv is damaged, and how."""
    lines = text.splitlines()
    opened = next((n for n, row in enumerate(lines, start=1) if row.count('"') % 2), line)
    if "unexpected end" in str(err) or "field larger" in str(err):
        return (
            f'{opened}: a quote (") opened in this line is not closed, or a cell is longer than '
            f"{csv.field_size_limit():,} characters; close it, and double a quote within a cell"
        )
    if "expected after" in str(err):
        return (
            f'{line}: text follows a closing quote ("); a quote within a cell is doubled (""), '
            f"and the cell stands in quotes. The first odd one is in line {opened}"
        )
    return f"{line}: is no csv ({err})"
