"""Answers to a user's own files: as evaluate gives them, whole after a kill, an error a row."""

import csv
import errno
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from conftest import ROOT, draw_image, tells
from made_run import Run, Runs
from PIL import Image
from pyarrow import parquet

from tasks import evaluate, predict
from tasks.artifacts import files
from tasks.artifacts.pixels import PixelStore
from tasks.artifacts.records import Conversion, read_record
from tasks.artifacts.tables import AnswerRow, PredictionRow, read_manifest, read_rows
from tasks.delivery import answer_file, answer_formats
from tasks.delivery.answer_file import AnswerFile
from tasks.delivery.explanations import name_picture
from tasks.delivery.folder import SUMS, hash_files, read_delivered
from tasks.errors import ArtifactError, DataError
from tasks.predict import BATCH_SIZE, main, read_pixels
from tasks.report import main as report

IMAGES = 70


@pytest.fixture(scope="module")
def delivered(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run judged in onnxruntime, as it is on a CPU, and its exported model. Not to be changed."""
    run = runs("fine-tuned").copy(tmp_path_factory.mktemp("delivered"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGRAFT_THREADS", "1")
        patch.setenv("REGRAFT_DEVICE", "cpu")
        evaluate.main(run.arguments("evaluate"))
        report(run.arguments("report"))
    return run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images at several depths; a current folder of its own."""
    monkeypatch.setenv("REGRAFT_DEVICE", "cpu")
    monkeypatch.setenv("REGRAFT_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "images"
    for number in range(IMAGES):
        place = root / ("", "a", "a/b")[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        draw_image(number % 2, number).save(place / f"{number:03d}.png")
    return root


def ask(run: Run, source: Path | str, out: str | Path, *more: str) -> list[dict[str, str]]:
    main([str(source), str(out), "--model", str(run.paths.export), *more])
    return rows_of(Path(out))


def rows_of(out: Path) -> list[dict[str, str]]:
    text = out.read_bytes().decode("utf-8", "surrogateescape")
    return list(csv.DictReader(io.StringIO(text, newline="")))


# as evaluate does --------------------------------------------------------------------------------


def test_answers_to_the_test_images_are_those_of_evaluate_to_the_last_bit(
    delivered: Run, folder: Path
) -> None:
    known = read_rows(delivered.paths.predictions, PredictionRow)
    table = delivered.root / "asked.csv"
    table.write_text("Path,note\n" + "".join(f"{row.path},x\n" for row in known))
    rows = ask(delivered, table, "out.csv", "--probabilities")
    assert [row["path"] for row in rows] == [row.path for row in known]
    assert [row["predicted"] for row in rows] == [row.predicted for row in known]
    assert [float(row["probability"]) for row in rows] == [row.probability for row in known]
    of_label = [float(row[f"p_{one.label}"]) for row, one in zip(rows, known, strict=True)]
    assert of_label == [row.label_probability for row in known]
    assert {row["model"] for row in rows} == {read_delivered(delivered.paths.export).name}


def test_pixels_are_those_of_the_test_store_to_the_bit(delivered: Run) -> None:
    model = read_delivered(delivered.paths.export)
    settled = read_record(delivered.paths.conversion, Conversion)
    assert model.conversion.background == settled.background
    store = PixelStore.open(delivered.paths.test)
    for number, row in enumerate(read_manifest(delivered.paths.manifest).of("test")):
        pixels = read_pixels(delivered.root / row.path, model=model)
        np.testing.assert_array_equal(pixels, store.rows([number])[0])


def test_torch_gives_the_same_answers_from_a_copied_folder(
    delivered: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ask(delivered, folder, "onnx.csv")
    copy = folder.parent / "elsewhere/copied"
    shutil.copytree(delivered.paths.export, copy)
    monkeypatch.setenv("REGRAFT_ENGINE", "torch")
    main([str(folder), "torch.csv", "--model", str(copy)])
    found = rows_of(Path("torch.csv"))
    assert [row["predicted"] for row in found] == [row["predicted"] for row in expected]
    one, other = ([float(row["probability"]) for row in rows] for rows in (found, expected))
    np.testing.assert_allclose(one, other, atol=1e-5)


# what is asked -----------------------------------------------------------------------------------


def test_a_folder_gives_a_row_for_every_image_at_any_depth(delivered: Run, folder: Path) -> None:
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    rows = ask(delivered, folder, folder / "out.csv")
    assert list(rows[0]) == [
        "path", "predicted", "probability", "label_set", "strangeness", "in_domain", "error",
        "model",
    ]  # fmt: skip
    names = [row["path"] for row in rows]
    assert names == sorted(names)
    assert len(names) == IMAGES
    assert f"{folder}/a/b/002.png" in names
    assert {row["predicted"] for row in rows} == {"defective", "functional"}


def test_lines_of_json_hold_the_same(delivered: Run, folder: Path) -> None:
    rows = ask(delivered, folder, "out.csv", "--probabilities")
    main([str(folder), "out.jsonl", "--model", str(delivered.paths.export), "--probabilities"])
    lines = [json.loads(line) for line in Path("out.jsonl").read_text("ascii").splitlines()]
    assert [list(line) for line in lines] == [list(row) for row in rows]
    assert [str(line["p_defective"]) for line in lines] == [row["p_defective"] for row in rows]
    totals = [line["p_defective"] + line["p_functional"] for line in lines]
    np.testing.assert_allclose(totals, 1)


def test_parquet_holds_the_same_in_columns_of_their_kinds(delivered: Run, folder: Path) -> None:
    (folder / "empty.png").touch()
    rows = ask(delivered, folder, "out.csv", "--probabilities")
    main([str(folder), "out.parquet", "--model", str(delivered.paths.export), "--probabilities"])
    table = parquet.read_table("out.parquet")
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("path", "string"),
        ("predicted", "string"),
        ("probability", "double"),
        ("label_set", "list<element: string>"),
        ("strangeness", "double"),
        ("in_domain", "bool"),
        ("error", "string"),
        ("model", "string"),
        ("p_defective", "double"),
        ("p_functional", "double"),
    ]
    assert table.num_rows == len(rows) == IMAGES + 1
    for found, row in zip(table.to_pylist(), rows, strict=True):
        as_text = {
            key: "" if cell is None else str(int(cell)) if isinstance(cell, bool) else str(cell)
            for key, cell in found.items()
        }
        listed = json.dumps(found["label_set"]) if found["label_set"] else ""
        assert {**as_text, "label_set": listed} == row


@pytest.mark.parametrize("end", ["\n", "\0"])
def test_paths_come_on_stdin(
    end: str, delivered: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [b"images/000.png", b"images/a/001.png", b"images/none.png", b"images/000.png"]
    stdin = io.TextIOWrapper(io.BytesIO(end.encode().join(names) + end.encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    rows = ask(delivered, "-", "out.csv")
    assert [row["path"].encode() for row in rows] == names
    assert [row["error"] for row in rows] == ["", "", "no such file", ""]
    assert rows[0] == rows[3]


def test_paths_on_stdin_may_have_the_line_ends_of_windows(
    delivered: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "000.png").rename(folder / "odd.png\r")
    stdin = io.TextIOWrapper(io.BytesIO(b"images/a/001.png\r\nimages/odd.png\r\n\r\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    rows = ask(delivered, "-", "out.jsonl.csv")
    assert [row["path"] for row in rows] == ["images/a/001.png", "images/odd.png\r"]
    assert [row["error"] for row in rows] == ["", ""]


def test_files_of_the_same_name_in_two_folders_have_a_row_each(
    delivered: Run, folder: Path
) -> None:
    shutil.copytree(folder / "a", "other")
    ask(delivered, "images/a", "out.csv")
    ask(delivered, "other", "out.csv")
    names = {row["path"] for row in ask(delivered, "images/a/001.png", "out.csv")}
    assert {"images/a/001.png", "other/001.png"} <= names
    assert (
        len(names)
        == len(rows_of(Path("out.csv")))
        == 2 * sum(len(found) for _, _, found in os.walk("other"))
    )


def test_one_image_is_a_source(delivered: Run, folder: Path) -> None:
    [row] = ask(delivered, folder / "a/001.png", "out.csv")
    assert row["path"] == f"{folder}/a/001.png"


def test_names_that_are_no_text_come_back_as_their_bytes(delivered: Run, folder: Path) -> None:
    odd = [b"caf\xe9.png", 'né\nw,"x".png'.encode(), b"back\rhere.png"]
    for name in odd:
        draw_image(0, 3).save(folder / os.fsdecode(name))
    rows = ask(delivered, folder, "out.csv")
    odd = [os.fsencode(folder) + b"/" + name for name in odd]
    names = {os.fsencode(row["path"]) for row in rows if not row["error"]}
    assert set(odd) <= names
    main([str(folder), "out.jsonl", "--model", str(delivered.paths.export)])
    lines = [json.loads(line) for line in Path("out.jsonl").read_text("ascii").splitlines()]
    assert set(odd) <= {os.fsencode(line["path"]) for line in lines}
    again = Path("out.csv").read_bytes(), Path("out.jsonl").read_bytes()
    for out in ("out.csv", "out.jsonl"):  # the names are known again
        main([str(folder), out, "--model", str(delivered.paths.export)])
    assert (Path("out.csv").read_bytes(), Path("out.jsonl").read_bytes()) == again


# bad files ---------------------------------------------------------------------------------------


@pytest.fixture
def spoiled(folder: Path) -> Path:
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no image")
    whole = (folder / "000.png").read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    draw_image(0, 1).resize((4, 4)).save(folder / "small.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "lost.png").symlink_to("nowhere.png")
    return folder


def test_bad_files_are_rows_that_say_why(
    delivered: Run, spoiled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="tasks")
    rows = ask(delivered, spoiled, "out.csv", "--probabilities")
    assert len(rows) == IMAGES + 6
    bad = {Path(row["path"]).name: row for row in rows if row["error"]}
    assert set(bad) == {
        f"{name}.{end}" for name, end in zip(
            ["empty", "text", "half", "small", "pipe", "lost"],
            ["png", "jpg", "png", "png", "png", "png"], strict=True,
        )
    }  # fmt: skip
    assert bad["half.png"]["error"].startswith("truncated (")
    assert bad["pipe.png"]["error"] == "not a regular file (pipe)"
    assert bad["lost.png"]["error"] == "no such file"
    assert bad["small.png"]["error"].startswith("too small (4 x 4 pixels")
    for row in bad.values():
        assert row["predicted"] == row["probability"] == row["p_defective"] == ""
    assert tells(caplog.text, "76 rows in out.csv, 76 of them new", "; 6 files could not be used;")


def test_the_policy_sets_the_exit_status_after_all_rows_are_written(
    delivered: Run, spoiled: Path
) -> None:
    with pytest.raises(DataError, match=r"6 files could not be used; out\.csv says why"):
        ask(delivered, spoiled, "out.csv", "--on-bad", "fail")
    assert len(rows_of(Path("out.csv"))) == IMAGES + 6
    with pytest.raises(DataError, match="6 files could not be used"):  # nothing is new
        ask(delivered, spoiled, "out.csv", "--on-bad", "fail")


def test_bad_files_are_tried_again(delivered: Run, spoiled: Path) -> None:
    first = ask(delivered, spoiled, "out.csv")
    draw_image(0, 1).save(spoiled / "half.png")
    (spoiled / "lost.png").unlink()
    rows = ask(delivered, spoiled, "out.csv")
    sound = [row for row in first if not row["error"]]
    assert rows[: len(sound)] == sound
    names = {Path(row["path"]).name: row["error"] for row in rows[len(sound) :]}
    assert set(names) == {"empty.png", "text.jpg", "half.png", "small.png", "pipe.png"}
    assert not names["half.png"]


def test_a_fault_of_the_machine_is_no_row(
    delivered: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_bytes

    def fail(file: Path) -> bytes:
        if file.name == "068.png":  # the last one, in the third batch
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(file)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with pytest.raises(
            DataError, match=r"^\S+068\.png: cannot be read \(Input/output error\)$"
        ):
            ask(delivered, folder, "out.csv")
    assert {row["error"] for row in rows_of(Path("out.csv"))} == {""}
    assert len(ask(delivered, folder, "out.csv")) == IMAGES


def test_other_answers_do_not_depend_on_the_bad_files_between_them(
    delivered: Run, spoiled: Path
) -> None:
    with_bad = [row for row in ask(delivered, spoiled, "bad.csv") if not row["error"]]
    for name in ("empty.png", "text.jpg", "half.png", "small.png", "pipe.png", "lost.png"):
        (spoiled / name).unlink()
    good = ask(delivered, spoiled, "good.csv")
    assert [row["predicted"] for row in good] == [row["predicted"] for row in with_bad]
    pairs = zip(good, with_bad, strict=True)
    assert all(abs(float(a["probability"]) - float(b["probability"])) < 1e-6 for a, b in pairs)


# going on ----------------------------------------------------------------------------------------

# The command, but that it writes after every batch and waits there, so that it can be killed.
SLOW = """\
import sys, time
from tasks import predict
from tasks.delivery import answer_file
answer_file.SECONDS_BETWEEN_WRITES, answer_file.SHARE_OF_TIME = 1e-9, 1e9
classify = predict.classify
def slow(*arguments):
    time.sleep(0.3)
    return classify(*arguments)
predict.classify = slow
predict.main(sys.argv[1:])
"""


def start_slow(run: Run, folder: Path, out: str) -> "subprocess.Popen[bytes]":
    command = [str(folder), out, "--model", str(run.paths.export)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, *command],
        env={**os.environ, "PYTHONPATH": path},
        cwd=folder.parent,
    )


@pytest.mark.parametrize("out", ["out.csv", "out.jsonl"])
def test_a_kill_leaves_whole_rows_and_the_next_run_goes_on(
    out: str, delivered: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main([str(folder), f"whole{out}", "--model", str(delivered.paths.export)])
    expected = Path(f"whole{out}").read_bytes()
    process = start_slow(delivered, folder, out)
    give_up = time.monotonic() + 60
    while not Path(out).exists() or Path(out).read_bytes().count(b"\n") <= BATCH_SIZE:
        assert process.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = Path(out).read_bytes()
    assert expected.startswith(left)
    assert left.endswith(b"\n")
    assert BATCH_SIZE <= left.count(b"\n") < IMAGES
    asked: list[str] = []
    read = predict.read_pixels

    def count(file: Path, **options: Any) -> Any:
        asked.append(file.name)
        return read(file, **options)

    monkeypatch.setattr(predict, "read_pixels", count)
    main([str(folder), out, "--model", str(delivered.paths.export)])
    assert Path(out).read_bytes() == expected
    assert 0 < len(asked) <= IMAGES - BATCH_SIZE
    assert [path.name for path in Path().glob(".out*")] == []


def test_what_is_there_is_not_done_again_and_new_files_are_added(
    delivered: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ask(delivered, folder, "out.csv")
    draw_image(1, 99).save(folder / "000a.png")
    rows = ask(delivered, folder, "out.csv")
    assert rows[:-1] == first
    assert rows[-1]["path"] == f"{folder}/000a.png"
    written = Path("out.csv").stat().st_mtime_ns
    assert ask(delivered, folder, "out.csv") == rows
    assert Path("out.csv").stat().st_mtime_ns == written


def test_the_table_and_the_pictures_are_no_images_of_the_folder_that_they_lie_in(
    delivered: Run, folder: Path
) -> None:
    tables = [f"{folder}/out.parquet", f"{folder}/out.csv"]
    for table in tables * 2:
        main([str(folder), table, "--model", str(delivered.paths.export), "--on-bad", "fail"])
    assert len(rows_of(Path(tables[1]))) == IMAGES


def test_a_path_that_stands_twice_has_two_rows_also_when_it_is_gone_on_with(
    delivered: Run, folder: Path
) -> None:
    table = folder / "twice.csv"
    table.write_text("path\n000.png\n000.png\na/001.png\n")
    assert [row["path"] for row in ask(delivered, table, "out.csv")] == [
        "000.png",
        "000.png",
        "a/001.png",
    ]
    table.write_text("path\n000.png\n000.png\na/001.png\n000.png\n")
    assert [row["path"] for row in ask(delivered, table, "out.csv")].count("000.png") == 3


def test_what_was_answered_before_an_interrupt_is_written(
    delivered: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = predict.read_pixels

    def interrupt(file: Path, **options: Any) -> Any:
        if file.name == "068.png":  # the last one, in the third batch
            raise KeyboardInterrupt
        return read(file, **options)

    monkeypatch.setattr(predict, "read_pixels", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ask(delivered, folder, "out.csv")
    rows = rows_of(Path("out.csv"))
    assert rows
    assert len(rows) % BATCH_SIZE == 0
    monkeypatch.setattr(predict, "read_pixels", read)
    again = ask(delivered, folder, "out.csv")
    assert again[: len(rows)] == rows
    assert len(again) == IMAGES


def answer(name: str, error: str = "") -> AnswerRow:
    found = ("", None, "", None, None) if error else ("x", 0.5, '["x"]', 0.7, True)
    return AnswerRow(name, *found, error, "m", {})


def write_answers(out: Path, *rows: AnswerRow) -> list[str]:
    """Give the lines of the table after rows were appended."""
    with AnswerFile(out, [], "m") as answers:
        answers.append(rows)
    return out.read_text().splitlines()


@pytest.mark.parametrize("out", [Path("out.csv"), Path("out.jsonl")])
def test_a_table_whose_last_line_has_no_end_is_gone_on_with(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = write_answers(out, answer("a"), answer("b"), answer("c"))
    for kept in range(1, len(expected)):
        out.write_text("\n".join(expected[:kept]))
        names = "abc"[kept - len(expected) :]
        assert write_answers(out, *map(answer, names)) == expected
    out.write_text(
        "\n".join([*write_answers(out), *write_answers(Path(f"2{out}"), answer("d", "!"))[-1:]])
    )
    assert write_answers(out) == expected


def rows_of_parquet(out: Path, *rows: AnswerRow) -> list[tuple[str, str]]:
    """Path and error of the rows of the table after rows were appended, a write each."""
    with AnswerFile(out, [], "m") as answers:
        for row in rows:
            answers.append([row])
            answers._write()
    table = parquet.read_table(out, columns=["path", "error"]).to_pylist()
    return [(row["path"], row["error"]) for row in table]


def test_parquet_grows_and_is_gone_on_with_without_its_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_formats, "CELLS_IN_MEMORY", 16)  # two rows at a time
    out = tmp_path / "out.parquet"
    first = rows_of_parquet(out, answer("a"), answer("b", "!"), answer("c"), answer("a"))
    assert first == [("a", ""), ("b", "!"), ("c", ""), ("a", "")]
    with AnswerFile(out, [], "m") as answers:
        assert answers.done == {"a": 2, "c": 1}
    left = [("a", ""), ("c", ""), ("a", "")]
    assert rows_of_parquet(out) == left
    assert rows_of_parquet(out, answer("b")) == [*left, ("b", "")]
    with pytest.raises(ArtifactError, match="holds answers of model m, this one is n"):
        AnswerFile(out, [], "n").__enter__()


def test_parquet_with_errors_is_gone_on_with_by_the_command_itself(
    delivered: Run, folder: Path
) -> None:
    (folder / "empty.png").touch()
    command = [sys.executable, "-m", "tasks.predict", str(folder), "out.parquet"]
    for _ in range(2):
        done = subprocess.run(
            [*command, "--model", str(delivered.paths.export)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert tells(done.stderr, "71 rows in out.parquet, 1 of them new")
    assert parquet.read_table("out.parquet").num_rows == IMAGES + 1
    assert not Path(".regraft").exists()  # nothing is left in anybody's folder


def test_many_writes_of_parquet_do_not_leave_many_parts(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    rows_of_parquet(out, *(answer(f"{number}") for number in range(50)))
    with parquet.ParquetFile(out) as file:
        assert file.num_row_groups <= 2


def test_a_name_that_parquet_cannot_hold_is_an_error_that_is_tried_again(tmp_path: Path) -> None:
    odd, out = os.fsdecode(b"caf\xe9.png"), tmp_path / "out.parquet"
    with AnswerFile(out, [], "m") as answers:
        answers.append([answer(odd), answer("b"), answer(odd, "truncated")])
        assert answers.errors == 2
    assert [tuple(row.values())[:2] for row in parquet.read_table(out).to_pylist()] == [
        ("caf\\xe9.png", ""),
        ("b", "x"),
        ("caf\\xe9.png", ""),
    ]
    errors = parquet.read_table(out)["error"].to_pylist()
    assert errors[0].startswith("its name is no UTF-8, which parquet cannot hold")
    assert errors[1:] == ["", "truncated"]
    assert rows_of_parquet(out) == [("b", "")]


def test_parquet_without_its_library_is_told_with_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        ArtifactError, match=r"out\.parquet: .*pip install pyarrow; or name a \.csv"
    ):
        AnswerFile(tmp_path / "out.parquet", [], "m")


def test_an_interrupt_once_rows_are_in_place_does_not_write_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.csv"
    write_answers(out, answer("a"))
    sync = files._sync

    def interrupt(path: Path) -> None:
        monkeypatch.setattr(files, "_sync", sync)
        raise KeyboardInterrupt

    with AnswerFile(out, [], "m") as answers:
        answers.append([answer("b")])
        monkeypatch.setattr(
            files, "_sync", lambda path: interrupt(path) if path.is_dir() else sync(path)
        )
        with pytest.raises(KeyboardInterrupt):
            answers._write()
    assert [line[0] for line in out.read_text().splitlines()[1:]] == ["a", "b"]


def test_a_lock_that_was_removed_meanwhile_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = answer_file.fcntl.flock

    def late(file: Any, how: int) -> None:
        (tmp_path / ".out.csv.lock").unlink()  # as its holder does at its end
        lock(file, how)

    monkeypatch.setattr(answer_file.fcntl, "flock", late)
    with pytest.raises(ArtifactError, match="another command is writing it"):
        write_answers(tmp_path / "out.csv")


def test_a_link_stays_one_and_a_table_keeps_its_rights(tmp_path: Path) -> None:
    real, link = tmp_path / "real/out.csv", tmp_path / "out.csv"
    write_answers(real, answer("a"), answer("b", "!"))
    real.chmod(0o640)
    link.symlink_to(real)
    told = f"^{link}: another command is writing it"
    with AnswerFile(real, [], "m"), pytest.raises(ArtifactError, match=told):
        write_answers(link)
    assert len(write_answers(link, answer("c"))) == 3
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.glob("**/.*")) == []


def test_two_commands_do_not_write_one_table(delivered: Run, folder: Path) -> None:
    name = read_delivered(delivered.paths.export).name
    told = r"^out\.csv: another command is writing it; wait"
    with AnswerFile(Path("out.csv"), [], name), pytest.raises(ArtifactError, match=told):
        ask(delivered, folder, "out.csv")
    assert len(ask(delivered, folder, "out.csv")) == IMAGES


def test_memory_does_not_grow_with_the_number_of_images(
    delivered: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: set[int] = set()
    most = 0

    class Counted(np.ndarray[Any, Any]):
        def __del__(self) -> None:
            alive.discard(id(self))

    def read(file: Path, **_: object) -> Any:
        nonlocal most
        pixels = np.zeros((32, 32, 3), np.uint8).view(Counted)
        alive.add(id(pixels))
        most = max(most, len(alive))
        return pixels

    monkeypatch.setattr(predict, "read_pixels", read)
    table = folder / "many.csv"
    table.write_text("path\n" + "".join(f"{number}.png\n" for number in range(2000)))
    assert len(ask(delivered, table, "out.csv")) == 2000
    assert BATCH_SIZE <= most <= 3 * BATCH_SIZE


# mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "out", "told"),
    [
        ("", "out.csv", r"^source is empty; name a folder, a csv or an image$"),
        (300 * "x", "out.csv", r"^x{100}: cannot be read \(File name too long\)$"),
        ("images", 300 * "x" + ".csv", r"^x+\.csv: cannot be written \(File name too long\)$"),
        ("nowhere", "out.csv", r"^nowhere: no such file or folder; name a folder"),
        ("empty", "out.csv", r"^empty: no images in this folder or below it$"),
        (
            "labels.csv",
            "out.csv",
            r"^labels\.csv:1: columns are 'file,label'; .* Missing: path\.?$",
        ),
        ("marks.csv", "out.csv", r"columns are separated by semicolons"),
        ("header.csv", "out.csv", r"^header\.csv: no rows below its header$"),
        ("notes.txt", "out.csv", r"^notes\.txt: unknown kind of source; allowed: a folder"),
        (
            "images",
            "out.xlsx",
            r"^out\.xlsx: answers are written as \.csv, \.jsonl or \.parquet$",
        ),
        ("images", "half.parquet", r"^half\.parquet: is there and no table of such answers"),
        (
            "images",
            "other.parquet",
            r"^other\.parquet: is there and no table .* columns are x, not",
        ),
        ("images", "notes.txt/out.csv", r"^notes\.txt/out\.csv: cannot be written \("),
        ("images", "labels.csv", r"^labels\.csv: is there and no table of such answers"),
    ],
)
def test_a_mistake_is_one_line(
    source: str, out: str, told: str, delivered: Run, folder: Path
) -> None:
    Path("empty").mkdir()
    Path("labels.csv").write_text("file,label\nx.png,y\n")
    Path("marks.csv").write_text("path;label\nx.png;y\n")
    Path("header.csv").write_text("path\n")
    Path("notes.txt").touch()
    Path("half.parquet").write_text("PAR1")
    parquet.write_table(pyarrow.table({"x": [1]}), "other.parquet")
    with pytest.raises((DataError, ArtifactError), match=told) as caught:
        ask(delivered, source, out)
    assert "\n" not in str(caught.value)
    assert Path("labels.csv").read_text() == "file,label\nx.png,y\n"


def test_a_folder_that_cannot_be_read_is_told(
    delivered: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("images/a"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"^images/a: cannot be read \(Permission denied\)$"):
        ask(delivered, "images", "out.csv")


def test_an_onnx_file_that_cannot_be_loaded_is_told(delivered: Run, folder: Path) -> None:
    copy = shutil.copytree(delivered.paths.export, folder.parent / "copied")
    (copy / "model.onnx").write_text("no graph")
    (copy / SUMS).write_text(hash_files(copy))
    with pytest.raises(ArtifactError, match=r"model\.onnx: onnxruntime cannot load it") as caught:
        main([str(folder), "out.csv", "--model", str(copy)])
    assert "\n" not in str(caught.value)


def test_other_columns_of_probabilities_are_told_by_the_option(
    delivered: Run, folder: Path
) -> None:
    for out in ("out.csv", "out.jsonl", "out.parquet"):
        options = [str(folder / "000.png"), out, "--model", str(delivered.paths.export)]
        main(options)
        with pytest.raises(ArtifactError, match=r"ask without --probabilities; or"):
            main([*options, "--probabilities"])
        Path(out).unlink()
        main([*options, "--probabilities"])
        with pytest.raises(ArtifactError, match=r"ask with --probabilities; or"):
            main(options)


def test_answers_of_another_model_are_not_mixed(delivered: Run, folder: Path) -> None:
    ask(delivered, folder, "out.csv")
    text = Path("out.csv").read_text()
    name = read_delivered(delivered.paths.export).name
    Path("out.csv").write_text(text.replace(name, "0123456789ab"))
    with pytest.raises(ArtifactError, match=f"holds answers of model 0123456789ab, .* is {name}"):
        ask(delivered, folder, "out.csv")
    with pytest.raises(ArtifactError, match="holds answers of model 0123456789ab"):
        ask(delivered, folder, "out.csv", "--probabilities")


def test_no_model_is_told_by_the_command_itself(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tasks.predict", str(folder), "out.csv"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "predict stopped: data/report/model: holds no exported model; `make run` makes one in "
        "data/report/model, --model names another folder\n"
    )
    assert not Path("out.csv").exists()


def test_torch_is_not_imported_where_onnxruntime_does(delivered: Run, folder: Path) -> None:
    code = (
        "import sys; from tasks.predict import main; main(sys.argv[1:]); "
        "assert not {'torch', 'timm', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(folder), "out.csv", "--model", delivered.paths.export],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )


PEAK = """\
import resource, sys
from tasks.predict import main
main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_grows_by_little_more_than_the_paths(delivered: Run, folder: Path) -> None:
    names = sorted(path.name for path in folder.glob("*.png"))
    peaks = []
    for count in (300, 30_000):
        table = folder / f"{count}.csv"
        rows = (names[number % len(names)] for number in range(count))
        table.write_text("path\n" + "".join(f"{name}\n" for name in rows))
        arguments = [str(table), f"{count}-out.csv", "--model", str(delivered.paths.export)]
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, check=True,
        )  # fmt: skip
        peaks.append(1024 * int(done.stdout))
        assert len(rows_of(Path(f"{count}-out.csv"))) == count
    assert peaks[1] - peaks[0] < 30_000 * 1_000  # a kilobyte an image


# explained ---------------------------------------------------------------------------------------


def test_each_new_answer_gets_a_picture_that_its_row_leads_to(
    delivered: Run, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "half.png").write_bytes((folder / "000.png").read_bytes()[:90])
    shutil.copy(folder / "a/001.png", folder / "a_001.png")  # its name meets a/001.png
    plain = ask(delivered, folder, "plain.csv")
    with caplog.at_level(logging.INFO, logger="tasks"):
        rows = ask(delivered, folder, "out.csv", "--explain", "maps")
    assert rows == plain
    sound = [row for row in rows if not row["error"]]
    pictures = {path.name: path.read_bytes() for path in Path("maps").iterdir()}
    assert set(pictures) == {name_picture(row["path"]) for row in sound}
    assert len(pictures) == len(rows) - 1 == IMAGES + 1
    with Image.open(Path("maps") / name_picture(sound[0]["path"])) as picture:
        assert picture.size == (32, 32)
    assert f"{IMAGES + 1} heatmaps in maps" in caplog.messages[-1]
    ask(delivered, folder.absolute(), "again.csv", "--explain", "absolute")
    again = {path.read_bytes() for path in Path("absolute").iterdir()}
    assert again == set(pictures.values())


def test_rows_that_the_table_had_get_no_picture_and_that_is_said(
    delivered: Run, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ask(delivered, folder / "a", "out.csv")
    with caplog.at_level(logging.INFO, logger="tasks"):
        ask(delivered, folder / "a", "out.csv", "--explain", "maps")
    assert tells(caplog.messages[-1], "0 heatmaps in maps", "had before got none")


def test_a_folder_of_pictures_that_cannot_be_written_is_told(delivered: Run, folder: Path) -> None:
    Path("maps").write_text("a file")
    with pytest.raises(ArtifactError, match=r"maps.*cannot be written"):
        ask(delivered, folder, "out.csv", "--explain", "maps")


NO_NAME = '{"path": ["x"], "predicted": "", "probability": 1, "error": "", "model": "m"}\n'


@pytest.mark.parametrize("text", ["[1]\n", "no json\n", '{"path": "x"}\n', "\xff\n", NO_NAME])
def test_lines_that_are_no_answers_are_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text(text, "latin-1")
    with (
        pytest.raises(ArtifactError, match="no table of such answers"),
        AnswerFile(tmp_path / "out.jsonl", [], "m"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
