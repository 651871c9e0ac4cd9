"""Looks at incoming images: judged together, once each, whatever is killed; word of a change."""

import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from conftest import ROOT, tells
from PIL import Image
from watched import FALSE_ALARM, darken, draw, export_watched

from tasks import monitor
from tasks.artifacts.arrays import read_tensors
from tasks.artifacts.files import write_text
from tasks.artifacts.records import Estimate, read_record
from tasks.artifacts.tables import read_rows
from tasks.delivery.appearance import FACTS
from tasks.delivery.folder import SUMS, hash_files, read_delivered
from tasks.errors import ArtifactError
from tasks.monitor import main
from tasks.watching import looks as looks_module
from tasks.watching.looks import LookFolder, LookRecord, LookRow, ShiftTest, Subject
from tasks.watching.repeated import ALARM_RATE
from tasks.watching.shifts import shares_p_value
from tasks.watching.words import LEAST_IMAGES, say

OUT = Path("out")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model with its reference. Not to be changed."""
    root = tmp_path_factory.mktemp("watched")
    return export_watched(root / "model", root / "scratch")


@pytest.fixture
def new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that images come into; a current folder of its own."""
    monkeypatch.setenv("REGRAFT_DEVICE", "cpu")
    monkeypatch.setenv("REGRAFT_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new").mkdir()
    return Path("new")


def newest_of(out: Path) -> LookRecord:
    return read_record(out / "look.json", LookRecord)


def look(model: Path) -> LookRecord:
    main(["new", "out", "--model", str(model)])
    return newest_of(OUT)


def names_of(out: Path) -> list[str]:
    """Names of all images that were looked at, in the order of the looks."""
    with LookFolder(out, "") as folder:
        return [name for kept in folder._kept for name in kept.names]


# looks -------------------------------------------------------------------------------------------


def test_the_world_as_it_was_is_fine(
    model: Path, new: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="tasks")
    draw(new, range(50))
    found = look(model)
    assert (found.verdict, found.images, found.judged_images, found.judged) == ("fine", 50, 50, 1)
    assert found.model == read_delivered(model).name
    assert {test.of for test in found.tests} == set(get_args(Subject))
    assert [share.name for share in found.kinds] == ["PNG, RGB, no camera named"]
    size = found.appearance[FACTS.index("megapixels")]
    assert size.now == size.held_out == pytest.approx(40 * 32 / 1e6)
    assert found.expected == pytest.approx(FALSE_ALARM)
    assert found.out_of_domain is not None
    assert found.out_of_domain.n == 50
    assert tells(caplog.text, "fine: 50 new images", "out of the domain, 5.0% expected; look 1")
    assert "\n" not in found.words


def test_a_change_is_told_with_what_changed_and_what_to_do(model: Path, new: Path) -> None:
    draw(new, range(30))
    look(model)
    darken(new, range(100, 130))
    found = look(model)
    assert found.verdict == "changed"
    assert min(test.corrected for test in found.tests) <= ALARM_RATE
    assert tells(found.words, "changed: ", "of the 30 new images 100.0%", "Look at")
    light = found.appearance[FACTS.index("brightness")]
    assert light.now is not None
    assert light.held_out is not None
    assert light.held_out > 2 * light.now
    assert tells(
        found.words,
        f"brightness of the 30 new images differs, {light.now:.3g} of the new ones and",
        f"{light.held_out:.3g} of the held-out ones",
    )
    assert str(OUT / "looks/00002.jpg") in found.words
    with Image.open(OUT / "looks/00002.jpg") as sheet:
        assert sheet.format == "JPEG"
    [first, second] = read_rows(OUT / "looks.csv", LookRow)
    assert (first.verdict, second.verdict) == ("fine", "changed")
    assert first.brightness is not None
    assert second.brightness is not None
    assert first.brightness > 2 * second.brightness
    assert second.words == found.words


def test_another_kind_of_file_is_told_though_pictures_look_the_same(model: Path, new: Path) -> None:
    draw(new, range(30))
    assert look(model).verdict == "fine"
    for file in draw(new, range(100, 130)).glob("001*.png"):
        with Image.open(file) as image:
            image.save(file.with_suffix(".tif"))
        file.unlink()
    found = look(model)
    assert found.verdict == "changed"
    assert {test.of for test in found.tests if test.corrected <= ALARM_RATE} >= {"kinds"}
    assert tells(found.words, "the 30 new images are other kinds of files, the new ones")
    assert "PNG, RGB, no camera named 100% to 0%" in found.words
    assert "TIFF, RGB, no camera named 0% to 100%" in found.words
    [*_, row] = read_rows(OUT / "looks.csv", LookRow)
    assert row.p_kinds is not None
    assert row.p_kinds <= ALARM_RATE < (row.p_brightness or 0)


def test_a_slow_change_adds_up_over_looks(model: Path, new: Path) -> None:
    for number in range(12):
        draw(new, range(100 * number, 100 * number + 16))
        darken(new, range(100 * number + 16, 100 * number + 20))
        found = look(model)
        if found.verdict == "changed":
            break
    assert number > 1
    assert {test.window for test in found.tests if test.corrected <= ALARM_RATE} == {"recent"}
    assert "the newest" in found.words


def test_after_a_change_was_told_the_newest_images_begin_anew(model: Path, new: Path) -> None:
    darken(new, range(30))
    assert look(model).verdict == "changed"
    for first in (100, 200):
        draw(new, range(first, first + 30))
        found = look(model)
        assert found.verdict == "fine"
    assert {test.window: test.images for test in found.tests} == {"new": 30, "recent": 60}


def test_few_images_wait_and_are_judged_with_those_of_the_next_look(model: Path, new: Path) -> None:
    draw(new, range(LEAST_IMAGES - 8))
    found = look(model)
    assert (found.verdict, found.judged, found.tests) == ("waiting", 0, [])
    assert tells(found.words, "waiting: 12 images, judged from 20 on")
    draw(new, range(100, 110))
    found = look(model)
    assert (found.verdict, found.images, found.judged_images) == ("fine", 10, 22)
    assert (found.number, found.judged) == (2, 1)
    draw(new, range(200, 220))
    assert look(model).judged_images == 20
    assert len(names_of(OUT)) == len(set(names_of(OUT))) == 42


def test_nothing_new_is_no_look(model: Path, new: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="tasks")
    draw(new, range(20))
    first = look(model)
    before = (OUT / "looks.csv").read_bytes()
    assert look(model) == first
    assert "nothing new in new since look 1" in caplog.text
    assert (OUT / "looks.csv").read_bytes() == before


def test_an_empty_folder_before_the_first_look_names_no_look(
    model: Path, new: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="tasks")
    main([str(new), str(OUT), "--model", str(model)])
    assert "nothing new in new\n" in caplog.text


def test_bad_files_count_once_and_are_tried_again(model: Path, new: Path) -> None:
    draw(new, range(20))
    (new / "half.png").write_bytes((new / "00000.png").read_bytes()[:200])
    (new / "empty.png").touch()
    found = look(model)
    assert (found.images, found.bad) == (20, 2)
    assert "2 files could not be used" in found.words
    shutil.copy(new / "00001.png", new / "half.png")
    draw(new, range(100, 120))
    (new / "text.jpg").write_text("no image")
    found = look(model)
    assert (found.images, found.bad) == (21, 1)
    assert names_of(OUT).count("new/half.png") == 1
    assert look(model) == found  # those that are still bad are no look


def test_bad_files_alone_wait(model: Path, new: Path) -> None:
    (new / "empty.png").touch()
    found = look(model)
    assert (found.verdict, found.images, found.bad, found.sheet) == ("waiting", 0, 1, None)
    draw(new, range(20))
    assert look(model).verdict == "fine"


def test_names_that_are_no_text_are_known_again(model: Path, new: Path) -> None:
    draw(new, range(20))
    shutil.copy(new / "00000.png", new / os.fsdecode(b"caf\xe9.png"))
    assert look(model) == look(model)
    assert os.fsencode(names_of(OUT)[-1]) == b"new/caf\xe9.png"


def test_a_name_that_stands_twice_is_one_image(model: Path, new: Path) -> None:
    draw(new, range(20))
    table = new / "list.csv"
    names = sorted(file.name for file in new.glob("*.png"))
    table.write_text("path\n" + "".join(f"{name}\n" for name in [*names, names[3]]))
    main([str(table), "out", "--model", str(model)])
    assert names_of(OUT) == [f"new/{name}" for name in names]
    main([str(table), "out", "--model", str(model)])
    assert len(read_rows(OUT / "looks.csv", LookRow)) == 1


@pytest.mark.parametrize("spelled", ["./new/", "{here}/new", "new/../new", "new/list.csv"])
def test_a_source_that_is_spelled_otherwise_is_not_seen_again(
    spelled: str, model: Path, new: Path
) -> None:
    draw(new, range(20))
    files = sorted(file.name for file in new.glob("*.png"))
    look(model)
    (new / "list.csv").write_text("path\n" + "".join(f"{name}\n" for name in files))
    main([spelled.format(here=Path.cwd()), "out", "--model", str(model)])
    assert len(read_rows(OUT / "looks.csv", LookRow)) == 1


def test_a_source_that_is_named_from_another_folder_is_not_seen_again(
    model: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(new, range(20))
    look(model)
    here = Path.cwd()
    (here / "elsewhere").symlink_to(here / new)
    monkeypatch.chdir(new)
    main([".", "../out", "--model", str(model)])
    monkeypatch.chdir(here.parent)
    main([f"{here.name}/elsewhere", f"{here.name}/out", "--model", str(model)])
    monkeypatch.chdir(here)
    assert len(read_rows(OUT / "looks.csv", LookRow)) == 1


def test_names_of_many_files_do_not_make_a_look_that_cannot_be_read(model: Path, new: Path) -> None:
    draw(new, range(20))
    look(model)
    with (OUT / "looks/00001.safetensors").open("rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    assert b'"files"' in header  # what readers refuse above 100 MB
    assert b".png" not in header
    assert names_of(OUT) == sorted(str(file) for file in new.glob("*.png"))


def test_classes_that_rose_and_fell_are_named() -> None:
    predicted = {"held out": [0] * 60 + [1] * 40, "new": [0] * 2 + [1] * 38}
    known, new = map(np.array, predicted.values())
    p_value = shares_p_value(known, new, needed=1e-4, seed=0)
    names = ["glass", "paper"]
    test = ShiftTest(
        of="classes", window="new", images=40, p_value=p_value, corrected=p_value * 200
    )
    look = LookRecord(
        number=3,
        judged=3,
        at="2026-01-05T05:00:00+00:00",
        model="m",
        verdict="changed",
        images=40,
        bad=0,
        judged_images=40,
        out_of_domain=Estimate(value=0.0, low=0.0, high=0.09, n=40),
        expected=0.05,
        classes=monitor.compare_shares(*([names[row] for row in rows] for rows in (known, new))),
        kinds=[],
        appearance=[],
        tests=[test],
        sheet=None,
        words="",
    )
    words = say(look, waiting=0, sheet=Path("sheet.jpg"))
    assert tells(words, "the 40 new images fall into other classes", "glass 60% to 5%")
    assert tells(words, "paper 40% to 95%", "label some images and measure it")


# another model -----------------------------------------------------------------------------------


@pytest.fixture
def other(model: Path, tmp_path: Path) -> Path:
    """The same model with another temperature, which makes it another one."""
    copy = Path(shutil.copytree(model, tmp_path / "other"))
    record = (copy / "calibration.json").read_text()
    (copy / "calibration.json").write_text(record.replace("20", "21"))
    write_text(copy / SUMS, hash_files(copy))
    assert read_delivered(copy).name != read_delivered(model).name
    return copy


def test_another_model_begins_a_lifetime_of_its_own(model: Path, other: Path, new: Path) -> None:
    draw(new, range(30))
    assert look(model).judged == 1
    draw(new, range(100, 107))
    assert look(model).verdict == "waiting"
    draw(new, range(200, 225))
    found = look(other)
    assert (found.number, found.judged, found.images) == (3, 1, 32)  # those that waited are read
    assert {test.window for test in found.tests} == {"new"}


# kills -------------------------------------------------------------------------------------------

# The command, but that it waits in every batch, so that it can be killed.
SLOW = """\
import sys, time
from tasks import monitor
from tasks.watching.intake import Intake
take = Intake.take
def slow(self, batch):
    take(self, batch)
    print("took", flush=True)
    time.sleep(0.5)
Intake.take = slow
monitor.main(sys.argv[1:])
"""


def test_a_kill_in_the_middle_of_a_look_leaves_the_looks_before_and_loses_no_image(
    model: Path, new: Path
) -> None:
    draw(new, range(20))
    look(model)
    before = {file: file.read_bytes() for file in OUT.rglob("*") if file.is_file()}
    draw(new, range(100, 200))
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "new", "out", "--model", str(model)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert {file: file.read_bytes() for file in OUT.rglob("*") if file.is_file()} == before
    found = look(model)
    assert (found.number, found.images) == (2, 100)
    assert len(names_of(OUT)) == len(set(names_of(OUT))) == 120


@pytest.mark.parametrize("step", ["write_bytes", "write_tensors", "write_rows", "write_record"])
@pytest.mark.parametrize("after", [False, True])
def test_an_interrupt_at_any_write_loses_nothing_and_counts_nothing_twice(
    step: str, after: bool, model: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(new, range(20))
    look(model)
    draw(new, range(100, 120))
    module: Any = monitor if step == "write_bytes" else looks_module
    write, say = getattr(module, step), monitor.say

    def interrupt(*arguments: Any, **options: Any) -> None:
        if after:
            write(*arguments, **options)
        raise KeyboardInterrupt

    def arm(*arguments: Any, **options: Any) -> str:  # the last before all that is written
        monkeypatch.setattr(module, step, interrupt)
        return say(*arguments, **options)

    monkeypatch.setattr(monitor, "say", arm)
    with pytest.raises(KeyboardInterrupt):
        look(model)
    monkeypatch.setattr(monitor, "say", say)
    monkeypatch.setattr(module, step, write)
    main(["new", "out", "--model", str(model)])
    assert [row.images for row in read_rows(OUT / "looks.csv", LookRow)] == [20, 20]
    assert newest_of(OUT).number == 2
    assert sorted(names_of(OUT)) == sorted(str(file) for file in new.iterdir())


def test_two_commands_do_not_look_at_once(model: Path, new: Path) -> None:
    draw(new, range(20))
    told = r"^out: another command is writing it; wait"
    with LookFolder(OUT, "m"), pytest.raises(ArtifactError, match=told):
        look(model)
    assert look(model).images == 20


# memory and numbers ------------------------------------------------------------------------------


def test_of_many_images_all_are_counted_and_the_features_of_some_are_kept(
    model: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "MOST_ROWS", 25)
    draw(new, range(40))
    found = look(model)
    arrays = read_tensors(OUT / "looks/00001.safetensors")
    assert (len(arrays["features"]), len(arrays["scores"])) == (25, 40)
    assert found.judged_images == 40
    known = read_tensors(model / "reference.safetensors")["held_out"]
    assert arrays["features"].dtype == known.dtype == np.float16


def test_features_are_of_usable_images_however_many_others_there_are(
    model: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "MOST_ROWS", 20)
    draw(new, range(30))
    for number in range(100):
        (new / f"{number}.cr3").write_bytes(b"raw")
    assert look(model).verdict == "fine"
    assert len(read_tensors(OUT / "looks/00001.safetensors")["features"]) == 20


def test_its_own_pictures_are_no_incoming_images(model: Path, new: Path) -> None:
    draw(new, range(25))
    for _ in range(2):
        main(["new", "new/out", "--model", str(model)])
    newest = newest_of(new / "out")
    assert (newest.number, newest.images, newest.bad) == (1, 25, 0)


def test_what_a_model_has_judged_is_not_new_to_the_next_one(model: Path, new: Path) -> None:
    draw(new, range(10))
    assert look(model).verdict == "waiting"
    draw(new, range(10, 30))
    assert look(model).verdict == "fine"
    draw(new, range(30, 35))
    assert look(model).verdict == "waiting"
    with LookFolder(OUT, "another") as folder:
        names = [str(file) for file in sorted(new.iterdir())]
        assert folder.unseen(names) == names[30:]


def test_an_emptied_folder_has_nothing_new(model: Path, new: Path) -> None:
    main(["new", "out", "--model", str(model)])
    assert not (OUT / "look.json").exists()


# mistakes ----------------------------------------------------------------------------------------


def test_mistakes_are_one_sentence(model: Path, new: Path, tmp_path: Path) -> None:
    draw(new, range(20))
    Path("file").touch()
    with pytest.raises(ArtifactError, match=r"^file: is a file; name a folder for the looks$"):
        main(["new", "file", "--model", str(model)])
    look(model)
    file = OUT / "looks/00001.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ArtifactError, match=r"00001\.safetensors: is no look of this version"):
        look(model)
    file.unlink()
    assert look(model).number == 1
