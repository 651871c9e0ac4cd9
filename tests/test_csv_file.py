"""A user's csv file: every way of not being one is told in one line with the way out."""

import csv
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import tells

from tasks.errors import DataError
from tasks.images.listing.csv_file import read_lines

GOOD = "path,label\nimg/ä.png,ö\n"


def read(path: Path) -> list[dict[str, str]]:
    lines = read_lines(path, required=("path", "label"), optional=("split",))
    return [line.cells for line in lines]


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    text = str(caught.value)
    assert len(text.splitlines()) == 1, text
    return text


def workbook() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return held.getvalue()


LONG = b"x" * (csv.field_size_limit() + 1)
REFUSED = {
    "field limit": (b'path,label\na.png,a\n"b.png,b\n' + LONG + b"\n", (":3:", "quote", "close")),
    "unclosed quote": (b'path,label\na.png,a\n"b.png,b\nc.png,c\n', (":3:", "quote", "close")),
    "quote within": (b'path,label\n"a"b.png",a\n', (":2:", "quote", "double")),
    "UTF-16": (GOOD.encode("utf-16"), ("UTF-16", "iconv -f utf-16")),
    "UTF-16 without mark": (GOOD.encode("utf-16-le"), ("UTF-16", "iconv -f utf-16")),
    "cp1252": (GOOD.encode("cp1252"), (":2:", "0xe4", "iconv -f cp1252")),
    "semicolons": (b"path;label\na.png;a\n", (":1:", "semicolons", "convert")),
    "tabs": (b"path\tlabel\na.png\ta\n", (":1:", "tabs", "convert")),
    "sep= comma": (b"sep=,\npath,label\n", (":1:", "'sep='", "remove")),
    "sep= semicolon": (b"sep=;\npath;label\n", (":1:", "'sep='", "remove")),
    "no header": (b"img/1.png,cat\nimg/2.png,dog\n", (":1:", "no header", "path,label")),
    "other header": (b"file,class\n1.png,a\n", ("Unknown: file, class", "Missing: path and label")),
    "typing error": (b"path,lable\n", ("lable (did you mean label?)", "Missing: label")),
    "an index": (b",path,label\n0,a.png,a\n", ("Column 1 has no name", "index=False")),
    "one more": (b"path,label,score\n", ("Unknown: score", "remove")),
    "twice": (b"path,label,label\n", ("Twice: label",)),
    "xlsx": (workbook(), ("Excel", "export")),
    "xls": (b"\xd0\xcf\x11\xe0" + bytes(99), ("Excel", "export")),
    "web page": (b"<!doctype html><html>", ("web page", "fetch")),
    "gzip": (b"\x1f\x8b" + bytes(9), ("gzip", "unpack")),
    "zero bytes": (b"path,label\na.png,a\0\n", (":2:", "zero byte")),
    "empty": (b"", (":1:", "empty")),
    "short row": (b"path,label\n\na.png\n", (":3:", "1 cell, expected 2")),
}


@pytest.mark.parametrize(("content", "facts"), REFUSED.values(), ids=REFUSED)
def test_each_damage_is_named_with_its_remedy(
    tmp_path: Path, content: bytes, facts: tuple[str, ...]
) -> None:
    text = refusal(tmp_path / "t.csv", content)
    assert tells(text, "t.csv", *facts), text


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_the_command_for_other_separators_makes_a_csv(tmp_path: Path, mark: str) -> None:
    text = refusal(tmp_path / "my t.csv", f'path{mark}label\n"a,b.png"{mark}ö\n'.encode())
    command = text[text.index("python3 -c") :].replace("python3", sys.executable, 1)
    subprocess.run(["bash", "-c", command], check=True)
    assert read(tmp_path / "commas.csv") == [{"path": "a,b.png", "label": "ö"}]


def test_many_unknown_columns_are_not_all_listed(tmp_path: Path) -> None:
    names = ",".join(f"feature{number}" for number in range(5000))
    assert len(refusal(tmp_path / "t.csv", f"path,label,{names}\n".encode())) < 900


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffpath,label\r\na.png,x\r\n",
        "Path, LABEL \na.png,x\n",
        'label,path\n"x","a.png"\n\n',
        "path,label\ra.png,x\r",
        "path,label,split\na.png,x,\n",
    ],
    ids=["byte order mark", "case and spaces", "quotes and order", "old line ends", "optional"],
)
def test_sound_tables_are_read(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.csv").write_bytes(content.encode())
    (row,) = read(tmp_path / "t.csv")
    assert (row["path"], row["label"]) == ("a.png", "x")


def test_a_row_tells_its_line_also_after_cells_of_several_lines(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('path,label\n"a\nb.png",x\n\nc.png,y\n')
    lines = read_lines(tmp_path / "t.csv", required=("path", "label"), optional=())
    assert [line.number for line in lines] == [3, 5]


def test_cells_of_other_columns_are_not_kept(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,note\na.png,long\n")
    (line,) = read_lines(tmp_path / "t.csv", required=("path",), optional=(), others=True)
    assert line.cells == {"path": "a.png"}
