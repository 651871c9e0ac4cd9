import errno
import json
import os
import subprocess
import sys

import numpy as np
import psutil
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.artifacts import files
from tasks.artifacts.arrays import (
    read_array,
    read_tensors,
    read_tensors_note,
    release_pages,
    write_array,
    write_tensors,
)
from tasks.artifacts.files import replacing_file, replacing_folder, write_bytes, write_text
from tasks.artifacts.records import (
    Estimate,
    ImageSource,
    read_json,
    read_record,
    write_json,
    write_record,
)
from tasks.artifacts.tables import (
    ClassRow,
    HistoryRow,
    Manifest,
    ManifestRow,
    PlaneRow,
    Rejected,
    ReliabilityRow,
    columns_of,
    read_manifest,
    read_rows,
    write_manifest,
    write_rows,
)
from tasks.errors import ArtifactError

STRANGE_NAMES = [
    "plain.png",
    'with,comma and "quotes".png',
    "line\nbreak.png",
    "carriage\rreturn.png",
    "both\r\n.png",
    "\u00e9\U0001f600.png",
    " space ",
    os.fsdecode(b"\xff\xfe.png"),
]


def names_in(folder):
    return sorted(entry.name for entry in folder.iterdir())


def stop_after(path):
    path.write_bytes(b"half")
    raise RuntimeError("stop")


def row(path="a/1.png", label="a", split="train", group="g"):
    return ManifestRow(path, label, split, group, "0" * 64, 40, 32, "RGB")


# whole files and folders -------------------------------------------------------------------------


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "new" / "file.bin"
    write_bytes(path, b"old")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert names_in(path.parent) == ["file.bin"]


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.bin"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError, match="stop"), replacing_file(path) as temporary:
        stop_after(temporary)
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path, monkeypatch, call):
    path = tmp_path / "file.bin"
    write_bytes(path, b"old")

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(ArtifactError, match=r"file\.bin: cannot be written \(No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["file.bin"]


def test_the_file_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda fd: (events.append("sync"), fsync(fd)))
    monkeypatch.setattr(files.os, "replace", lambda *a: (events.append("name"), replace(*a)))
    write_bytes(tmp_path / "file.bin", b"new")
    assert events == ["sync", "name", "sync"]


def test_a_path_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArtifactError, match="cannot be written"):
        write_bytes(tmp_path / "file" / "below", b"new")


KILLED = """
import os, signal, sys
from pathlib import Path
from tasks.artifacts.files import replacing_file, replacing_folder
path = Path(sys.argv[1])
with {writer}(path) as temporary:
    (temporary / "half" if temporary.is_dir() else temporary).write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_while_writing(writer, path):
    code = KILLED.format(writer=writer)
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode < 0


def test_a_killed_writer_leaves_the_old_file_and_the_next_one_tidies_up(tmp_path):
    path = tmp_path / "file.bin"
    write_bytes(path, b"old")
    killed_while_writing("replacing_file", path)
    assert path.read_bytes() == b"old"
    assert len(names_in(tmp_path)) == 2
    write_bytes(path, b"new")
    assert names_in(tmp_path) == ["file.bin"]


def test_a_killed_writer_leaves_the_old_folder_and_the_next_one_tidies_up(tmp_path):
    path = tmp_path / "folder"
    with replacing_folder(path) as temporary:
        (temporary / "old").write_bytes(b"old")
    killed_while_writing("replacing_folder", path)
    assert names_in(path) == ["old"]
    with replacing_folder(path) as temporary:
        (temporary / "new").write_bytes(b"new")
    assert names_in(tmp_path) == ["folder"]
    assert names_in(path) == ["new"]


def test_the_unfinished_file_of_a_living_process_stays(tmp_path):
    other = tmp_path / f".file.bin.{os.getppid()}.tmp"
    other.write_bytes(b"half")
    write_bytes(tmp_path / "file.bin", b"new")
    assert other.exists()


def test_a_folder_is_replaced_whole(tmp_path):
    path = tmp_path / "folder"
    for name in ("one", "two"):
        with replacing_folder(path) as temporary:
            (temporary / "below").mkdir()
            (temporary / "below" / name).write_bytes(b"")
    assert names_in(path / "below") == ["two"]
    assert names_in(tmp_path) == ["folder"]


def test_an_error_while_filling_leaves_the_old_folder(tmp_path):
    path = tmp_path / "folder"
    with replacing_folder(path) as temporary:
        (temporary / "old").write_bytes(b"")
    with pytest.raises(RuntimeError, match="stop"), replacing_folder(path) as temporary:
        stop_after(temporary / "new")
    assert names_in(path) == ["old"]
    assert names_in(tmp_path) == ["folder"]


def test_a_folder_that_cannot_get_its_name_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    with replacing_folder(path) as temporary:
        (temporary / "old").write_bytes(b"")
    replace, calls = os.replace, []

    def fail_once(source, target):
        calls.append(target)
        if len(calls) == 2:  # the old one is already aside
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", fail_once)
    with (
        pytest.raises(ArtifactError, match=r"No space left.*nothing was changed"),
        replacing_folder(path) as temporary,
    ):
        (temporary / "new").write_bytes(b"")
    assert names_in(path) == ["old"]
    assert names_in(tmp_path) == ["folder"]


# json --------------------------------------------------------------------------------------------


def test_a_record_comes_back_with_full_precision(tmp_path):
    record = Estimate(value=0.1 + 0.2, low=None, high=1 / 3, n=7)
    write_record(tmp_path / "e.json", record)
    assert read_record(tmp_path / "e.json", Estimate) == record


def test_the_same_record_is_written_as_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_record(tmp_path / name, Estimate(value=0.5, low=0.0, high=1.0, n=7))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_json_does_not_know_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_record(tmp_path / "e.json", Estimate(value=value, low=None, high=None, n=1))
    assert names_in(tmp_path) == []


def test_a_name_that_is_not_utf8_comes_back_from_valid_json(tmp_path):
    name = os.fsdecode(b"\xff.png")
    source = ImageSource(
        kind="folder",
        name=name,
        root="r",
        package=None,
        license=None,
        citation=None,
        label_rule=None,
    )
    write_record(tmp_path / "s.json", source)
    (tmp_path / "s.json").read_bytes().decode("utf-8")
    assert read_record(tmp_path / "s.json", ImageSource).name == name


def test_readable_text_stays_readable(tmp_path):
    write_json(tmp_path / "a.json", ["\u00e9"])
    assert "\u00e9" in (tmp_path / "a.json").read_text(encoding="utf-8")
    write_text(tmp_path / "a.md", "one\ntwo\n")
    assert (tmp_path / "a.md").read_bytes() == b"one\ntwo\n"


DAMAGED_JSON = {
    "missing": (None, "cannot be read"),
    "empty": ("", "is no json"),
    "cut off": ('{"value": 1', "is no json"),
    "other record": ('{"value": 1}', r"is no Estimate \(low: Field required\)"),
    "unknown key": (
        '{"value": 1, "low": 0, "high": 1, "n": 1, "more": 1}',
        r"is no Estimate \(more: Extra inputs",
    ),
    "list": ("[]", r"is no Estimate \(the file: "),
}


@pytest.mark.parametrize(("text", "message"), DAMAGED_JSON.values(), ids=DAMAGED_JSON.keys())
def test_a_damaged_record_says_which_file_and_why(tmp_path, text, message):
    if text is not None:
        (tmp_path / "e.json").write_text(text)
    with pytest.raises(ArtifactError, match=rf"e\.json: {message}.*run the stage that writes it"):
        read_record(tmp_path / "e.json", Estimate)


def test_plain_json_comes_back(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None, "x"]})
    assert read_json(tmp_path / "a.json") == {"b": [1, 2.5, None, "x"]}


# tables ------------------------------------------------------------------------------------------


def test_strange_names_come_back_from_a_table(tmp_path):
    rows = [Rejected(name, "empty file") for name in STRANGE_NAMES]
    for written in (rows, []):
        write_rows(tmp_path / "q.csv", Rejected, written)
        assert read_rows(tmp_path / "q.csv", Rejected) == written


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    max_examples=40,
    deadline=None,
    derandomize=True,
)
@given(st.lists(st.builds(Rejected, *[st.text(st.characters(codec="utf-8"), max_size=5)] * 2)))
def test_every_text_comes_back_from_a_table(tmp_path, rows):
    write_rows(tmp_path / "t.csv", Rejected, rows)
    assert read_rows(tmp_path / "t.csv", Rejected) == rows


def test_numbers_keep_full_precision_in_a_table(tmp_path):
    values = [0.1 + 0.2, 1e-300, np.float64(1 / 3), 7]
    rows = [PlaneRow(value, -value, "target", "a") for value in values]
    write_rows(tmp_path / "t.csv", PlaneRow, rows)
    assert read_rows(tmp_path / "t.csv", PlaneRow) == rows


def test_a_boolean_is_a_digit_and_a_missing_ratio_an_empty_cell(tmp_path):
    row = ReliabilityRow("baseline", True, 0, 0.5, 0.25, 0.125, 0.75, 4)
    write_rows(tmp_path / "r.csv", ReliabilityRow, [row])
    assert (tmp_path / "r.csv").read_text().splitlines()[1] == "baseline,1,0,0.5,0.25,0.125,0.75,4"
    assert read_rows(tmp_path / "r.csv", ReliabilityRow) == [row]
    unseen = ClassRow("cat", 0, 0, None, 0.0, 1.0, None, 0.0, 1.0, None)
    write_rows(tmp_path / "c.csv", ClassRow, [unseen])
    assert (tmp_path / "c.csv").read_text().splitlines() == [
        "class,n,predicted,recall,recall_low,recall_high,precision,precision_low,precision_high,f1",
        "cat,0,0,,0.0,1.0,,0.0,1.0,",
    ]
    assert read_rows(tmp_path / "c.csv", ClassRow) == [unseen]


def test_a_mapping_has_a_column_a_key(tmp_path):
    row = HistoryRow(1, 1, {"head": 1e-3, "stem": 0.0}, 0.5, 0.8, 0.6, 0.7)
    write_rows(tmp_path / "h.csv", HistoryRow, [row], ["head", "stem"])
    assert (tmp_path / "h.csv").read_text() == (
        "phase,epoch,lr_head,lr_stem,train_loss,train_accuracy,val_loss,val_accuracy\n"
        "1,1,0.001,0.0,0.5,0.8,0.6,0.7\n"
    )
    assert read_rows(tmp_path / "h.csv", HistoryRow) == [row]


DAMAGED_TABLES = {
    "missing": (None, " cannot be read"),
    "empty": (b"", r"1: has the columns \(none\), expected path,reason"),
    "other columns": (b"path,c\n1,2\n", "1: has the columns path,c, expected path,reason"),
    "other order": (b"reason,path\n", "1: has the columns reason,path, expected path,reason"),
    "cell missing": (b"path,reason\n1,2\n3\n", r"3: has 1 cells, expected 2 \(path,reason\)"),
    "cell too many": (b"path,reason\n1,2,3\n", "2: has 3 cells, expected 2"),
    "quote left open": (b'path,reason\n1,"2\n', "2: unexpected end of data"),
    "endless cell": (b"path,reason\n1," + b"x" * 200_000, "2: field larger than field limit"),
}


@pytest.mark.parametrize(("raw", "message"), DAMAGED_TABLES.values(), ids=DAMAGED_TABLES.keys())
def test_a_damaged_table_says_which_file_and_why(tmp_path, raw, message):
    if raw is not None:
        (tmp_path / "t.csv").write_bytes(raw)
    with pytest.raises(ArtifactError, match=rf"t\.csv:{message}.*run the stage that writes it"):
        read_rows(tmp_path / "t.csv", Rejected)


def test_a_manifest_comes_back_in_its_order(tmp_path):
    rows = [row(path=name, split="test") for name in STRANGE_NAMES] + [row()]
    write_manifest(tmp_path / "m.csv", Manifest(rows))
    assert read_manifest(tmp_path / "m.csv").rows == tuple(rows)


def test_a_manifest_numbers_classes_by_code_point_and_images_by_row():
    manifest = Manifest(
        [
            row(label="b", split="val", group="1"),
            row(label="\u00e4", split="train", group="2"),
            row(label="Z", split="val", group="3"),
            row(label="b", split="val", group="4"),
        ]
    )
    assert manifest.class_names == ["Z", "b", "\u00e4"]
    assert manifest.labels("val").tolist() == [1, 0, 1]
    assert manifest.labels("val").dtype == np.int64
    assert manifest.groups("val") == ["1", "3", "4"]
    assert [item.group for item in manifest.of("train")] == ["2"]
    assert manifest.labels("test").tolist() == []


HEADER = ",".join(columns_of(ManifestRow))
DAMAGED_MANIFESTS = {
    "empty": ("", r"has the columns \(none\), expected path,label"),
    "other columns": ("path,label\na,b\n", "has the columns path,label, expected path,label,split"),
    "other split": (f"{HEADER}\na,b,dev,g,0,1,1,RGB\n", r"m\.csv:2: split is 'dev' \("),
    "width no number": (f"{HEADER}\na,b,val,g,0,x,1,RGB\n", r"m\.csv:2: width is 'x' \("),
    "negative height": (f"{HEADER}\na,b,val,g,0,1,-1,RGB\n", r"m\.csv:2: height is '-1' \("),
    "digit that is no number": (f"{HEADER}\na,b,val,g,0,\u00b2,1,RGB\n", "width is '\u00b2' "),
}


@pytest.mark.parametrize(
    ("text", "message"), DAMAGED_MANIFESTS.values(), ids=DAMAGED_MANIFESTS.keys()
)
def test_a_damaged_manifest_says_why(tmp_path, text, message):
    (tmp_path / "m.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match=message):
        read_manifest(tmp_path / "m.csv")


# arrays and tensors ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 2), (0, 5), (5, 0), ()])
def test_an_array_comes_back(tmp_path, shape):
    array = np.random.default_rng(0).random(shape).astype(np.float16)
    write_array(tmp_path / "a.npy", array)
    back = read_array(tmp_path / "a.npy")
    assert back.dtype == np.float16
    np.testing.assert_array_equal(back, array)


def test_an_array_is_mapped_read_only(tmp_path):
    write_array(tmp_path / "a.npy", np.zeros(3))
    back = read_array(tmp_path / "a.npy")
    assert isinstance(back, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        back[0] = 1


def test_a_pickle_is_neither_written_nor_read(tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        write_array(tmp_path / "a.npy", np.array([{}], dtype=object))
    assert names_in(tmp_path) == []
    np.save(tmp_path / "b.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ArtifactError, match=r"b\.npy: cannot be read"):
        read_array(tmp_path / "b.npy")


@pytest.mark.parametrize("keep", [0, 5, 130], ids=["empty", "in the header", "in the data"])
def test_a_damaged_array_says_which_file(tmp_path, keep):
    path = tmp_path / "a.npy"
    write_array(path, np.zeros(100))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"a\.npy: cannot be read.*run the stage"):
        read_array(path)


def test_a_missing_array_says_which_file(tmp_path):
    with pytest.raises(ArtifactError, match=r"a\.npy: cannot be read"):
        read_array(tmp_path / "a.npy")


TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not contiguous
    "a": np.array(3, dtype=np.int64),
    "c": np.zeros((0, 4), np.float16),
    "d": np.array([True, False]),
}
NOTE = {key: f'"{key}" \u00e9\n' for key in "zyxwv"}


def test_tensors_and_their_note_come_back(tmp_path):
    write_tensors(tmp_path / "t.safetensors", TENSORS, NOTE)
    back = read_tensors(tmp_path / "t.safetensors")
    assert sorted(back) == ["a", "b", "c", "d"]
    for name, array in TENSORS.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        np.testing.assert_array_equal(back[name], array)
    assert read_tensors_note(tmp_path / "t.safetensors") == NOTE


def test_tensors_are_written_as_the_library_writes_them(tmp_path):
    numbers = np.arange(6).reshape(2, 3)
    arrays = {f"{kind}.{i}": numbers.astype(kind) for kind in "?bBhHiIlLefd" for i in range(2)}
    arrays |= {name: np.asarray(array, order="C") for name, array in TENSORS.items()}
    for tensors in (arrays, {}):
        write_tensors(tmp_path / "t.safetensors", tensors)
        assert (tmp_path / "t.safetensors").read_bytes() == safetensors.numpy.save(tensors)
    write_tensors(tmp_path / "t.safetensors", {"big": numbers.astype(">f4")})
    np.testing.assert_array_equal(read_tensors(tmp_path / "t.safetensors")["big"], numbers)


def test_tensors_without_a_note_have_none(tmp_path):
    write_tensors(tmp_path / "t.safetensors", TENSORS)
    assert read_tensors_note(tmp_path / "t.safetensors") == {}


def test_the_same_tensors_and_note_are_the_same_bytes_whatever_their_order(tmp_path):
    write_tensors(tmp_path / "one", TENSORS, NOTE)
    write_tensors(tmp_path / "two", dict(reversed(TENSORS.items())), dict(reversed(NOTE.items())))
    one = (tmp_path / "one").read_bytes()
    assert one == (tmp_path / "two").read_bytes()
    size = int.from_bytes(one[:8], "little")
    assert size % 8 == 0
    assert list(json.loads(one[8 : 8 + size])["__metadata__"]) == sorted(NOTE)


@pytest.mark.parametrize("keep", [0, 5, 60, -1], ids=["empty", "size", "header", "data"])
@pytest.mark.parametrize("read", [read_tensors, read_tensors_note])
def test_damaged_tensors_say_which_file(tmp_path, read, keep):
    path = tmp_path / "t.safetensors"
    write_tensors(path, TENSORS, NOTE)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"t\.safetensors: cannot be read.*run the stage"):
        read(path)


@pytest.mark.parametrize("read", [read_tensors, read_tensors_note])
def test_missing_tensors_say_which_file(tmp_path, read):
    with pytest.raises(ArtifactError, match=r"t\.safetensors: cannot be read"):
        read(tmp_path / "t.safetensors")


def test_released_pages_leave_the_process_and_can_be_read_again(tmp_path):
    written = np.arange(8_000_000)
    write_array(tmp_path / "large.npy", written)
    mapped = read_array(tmp_path / "large.npy")
    assert mapped.sum() == written.sum()
    resident = psutil.Process().memory_info().rss
    release_pages(mapped)
    assert psutil.Process().memory_info().rss < resident - 60_000_000
    assert (mapped[-3:] == written[-3:]).all()
    release_pages(written)  # not mapped: nothing to release
