"""`regraft new`: what it makes, what it refuses, and the way from there to a csv of answers."""

import csv
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import PIPE

import pytest
from conftest import ROOT, TINY, draw_classes, draw_image, tells
from PIL import Image
from test_cli import said, stopped
from toy import ToyProject

from flows.commands.new_project import (
    VIEWS,
    FirstLook,
    card_sizes,
    choose_values,
    look_first,
    say_values,
)
from tasks.check import check
from tasks.errors import ParamsError
from tasks.images.listing.sources import list_images
from tasks.params import Params
from tasks.params_file import load_params

IDENTITY = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    draw_classes(tmp_path / "images", images=4)
    return tmp_path / "images"


def new(tmp_path: Path, images: Path, *words: str) -> Path:
    folder = tmp_path / "shells"
    said(tmp_path, "new", str(folder), "--source", str(images), *words, **IDENTITY)
    return folder


def refused(tmp_path: Path, folder: str, source: Path, *words: str) -> str:
    """What `new` says where it makes nothing."""
    before = sorted(tmp_path.rglob("*"))
    text = stopped(tmp_path, "new", folder, "--source", str(source), *words)
    assert sorted(tmp_path.rglob("*")) == before
    assert text.startswith("regraft stopped: ")
    return text


# what it makes -----------------------------------------------------------------------------------


def test_a_new_project_has_the_code_and_nothing_that_was_computed(
    tmp_path: Path, images: Path
) -> None:
    folder = new(tmp_path, images, "--views", "light")
    project = ToyProject(folder)
    assert project.git("status", "--porcelain") == ""
    assert project.git("log", "--format=%s") == "Start\n"
    kept = set(project.git("ls-files").split())
    assert {"flows/cli.py", "tasks/ingest.py", "dvc.yaml", "Makefile", ".dvc/config"} <= kept
    computed = {"dvc.lock", "data/evaluate/summary.json", "data/finetune/val.json"}
    assert not kept & computed
    assert not [name for name in kept if name.startswith(("tests/", "docs/"))]
    assert project.read("data/groups.csv") == "path,group\n"
    assert (folder / ".venv").is_symlink()
    assert (folder / ".venv/bin/python").exists()


def test_a_new_project_has_what_the_images_tell(tmp_path: Path, images: Path) -> None:
    params = load_params(new(tmp_path, images, "--views", "none") / "params.yaml")
    assert params.ingest.source == str(images)
    assert params.augment.image_px == 64
    assert (params.augment.policy, params.augment.views) == ("none", 0)
    assert params.report.title == "shells"
    assert params.finetune == load_params(ROOT / "params.yaml").finetune


def test_a_new_project_is_planned_by_its_own_code(tmp_path: Path, images: Path) -> None:
    folder = new(tmp_path, images, "--views", "light")
    cli = folder / "flows/cli.py"
    cli.write_text(cli.read_text().replace('app(prog_name="regraft")', 'typer.echo("its own")'))
    assert said(folder / "data", "plan") == "its own\n"


def test_make_installs_nothing_through_the_link(tmp_path: Path, images: Path) -> None:
    folder = new(tmp_path, images, "--views", "light")

    def steps() -> str:
        command = ["make", "--dry-run", "run"]
        return subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True
        ).stdout

    assert tells(steps(), "python -m flows.cli run")
    assert "pip install" not in steps()
    (folder / ".venv").unlink()
    assert "pip install" in steps()


def test_make_offers_what_works_without_the_tests(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)

    def offered(folder: Path) -> set[str]:
        done = subprocess.run(["make", "help"], cwd=folder, check=True, stdout=PIPE, text=True)
        return set(re.findall(r"^  make ([a-z-]+) ", done.stdout, re.MULTILINE))

    absent = offered(ROOT) - offered(tmp_path)
    assert absent == {"test", "coverage", "slow", "browser", "bench", "bench-decisions"}
    assert {"run", "ui", "check"} <= offered(tmp_path)
    for target in absent:
        done = subprocess.run(["make", target], check=False, cwd=tmp_path, stderr=PIPE, text=True)
        assert done.returncode != 0
        assert tells(done.stderr, f"make {target} needs tests/")
        assert done.stderr.count("\n") == 1


def test_remotes_of_the_checkout_do_not_come_along(tmp_path: Path, images: Path) -> None:
    checkout = copy_checkout(tmp_path)
    config = checkout / ".dvc/config"
    config.write_text(
        config.read_text().replace("[core]", "['remote \"shelf\"']\n    url = /s\n[core]")
        + "[core]\n    remote = shelf\n"
    )
    words = ["new", "../shells", "--source", str(images), "--views", "light"]
    said(checkout, *words, PYTHONPATH=str(checkout))
    config = tmp_path / "shells/.dvc/config"
    assert "shelf" not in config.read_text()
    assert tells(config.read_text(), "analytics = false", "hardlink")


# the first look ----------------------------------------------------------------------------------


def look_of(folder: Path, sizes: Sequence[tuple[int, int]], mode: str = "RGB") -> Path:
    for number, size in enumerate(sizes):
        place = folder / f"class{number % 2}/{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        draw_image(0, number, size).convert(mode).save(place)
    return folder


@pytest.mark.parametrize(
    ("size", "image_px"),
    [((40, 20), 64), ((100, 130), 96), ((120, 120), 128), ((180, 200), 160), ((900, 800), 224)],
)
def test_the_size_is_the_nearest_that_a_card_is_for(
    tmp_path: Path, default_params: Params, size: tuple[int, int], image_px: int
) -> None:
    look = look_first(list_images(look_of(tmp_path / "raw", [size] * 2)), 10**8)
    sizes = card_sizes(ROOT, default_params.backbone.name)
    assert sizes == [64, 96, 128, 160, 224, 288, 384]
    assert choose_values(default_params, look, "light", sizes)["augment.image_px"] == image_px


def test_another_backbone_has_its_own_sizes() -> None:
    assert card_sizes(ROOT, "tf_efficientnet_lite2") == [160, 224]
    assert card_sizes(ROOT, "resnet18") == card_sizes(ROOT, "tf_efficientnet_lite0")


def test_gray_images_get_no_views_of_other_colors(tmp_path: Path, default_params: Params) -> None:
    gray = look_first(list_images(look_of(tmp_path / "gray", [(40, 40)] * 4, "L")), 10**8)
    colored = look_first(list_images(look_of(tmp_path / "colored", [(40, 40)] * 4)), 10**8)
    assert (gray.gray, colored.gray) == (True, False)
    assert choose_values(default_params, gray, "custom", [64])["augment.custom.hue"] == 0.0
    assert "augment.custom.hue" not in choose_values(default_params, colored, "custom", [64])


def test_colors_are_told_where_they_are_read(default_params: Params) -> None:
    look = FirstLook(10, 2, 100, 90, 110, 1.0, gray=True)
    for views in VIEWS:
        values = choose_values(default_params, look, views, [64]) | {"ingest.source": "images"}
        said = "\n".join(say_values(values, look))
        assert ("views of other colors are off" in said) == (views == "custom"), views


def test_bad_files_are_passed_over(tmp_path: Path) -> None:
    source = look_of(tmp_path / "raw", [(40, 20)] * 4)
    (source / "class0/bad.png").write_bytes(b"no image")
    look = look_first(list_images(source), 10**8)
    assert (look.images, look.classes, look.short_px, look.stretch) == (5, 2, 20, 2.0)


def test_views_come_back_where_the_checkout_has_none(default_params: Params) -> None:
    bare = default_params.model_copy(
        update={"augment": default_params.augment.model_copy(update={"policy": "none", "views": 0})}
    )
    look = FirstLook(10, 2, 100, 90, 110, 1.0, gray=False)
    assert choose_values(bare, look, "light", [64])["augment.views"] == 2


# what it refuses ---------------------------------------------------------------------------------


def test_views_are_asked_for_not_guessed(tmp_path: Path, images: Path) -> None:
    text = refused(tmp_path, "shells", images)
    assert tells(text, "--views is missing", "none (", "light (", "custom (")
    assert "--views is 'mild'" in refused(tmp_path, "shells", images, "--views", "mild")


def test_in_a_terminal_views_are_asked_for(tmp_path: Path, images: Path) -> None:
    master, slave = pty.openpty()
    os.write(master, b"medium\n")
    words = ["new", "shells", "--source", str(images)]
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *words],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=slave,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert tells(done.stdout, "leave its label as it is?", "light ", "for photographs", "Views: ")
    assert load_params(tmp_path / "shells/params.yaml").augment.policy == "medium"
    os.close(master)
    os.close(slave)


def test_nothing_is_overwritten(tmp_path: Path, images: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    light = ("--views", "light")
    assert "full is not empty" in refused(tmp_path, "full", images, *light)
    assert "file is a file" in refused(tmp_path, "file", images, *light)
    here = tmp_path / "empty here"
    here.mkdir()
    text = stopped(here, "new", ".", "--source", str(images), *light)
    assert tells(text, "is the current folder", "cd .. && regraft new 'empty here'")
    assert list(here.iterdir()) == []


def test_images_and_project_lie_beside_each_other(tmp_path: Path, images: Path) -> None:
    light = ("--views", "light")
    assert "lies inside of the images" in refused(tmp_path, "images/shells", images, *light)
    assert "lies inside of" in refused(tmp_path, ".", images, *light)
    inside = str(ROOT / "shells")
    assert "lies inside of the project" in refused(tmp_path, inside, images, *light)


@pytest.mark.parametrize("flat", [True, False])
def test_a_source_that_cannot_be_one_is_told(tmp_path: Path, flat: bool) -> None:
    source = tmp_path / "images"
    if flat:
        source.mkdir()
        Image.new("RGB", (40, 40)).save(source / "1.png")
    said = refused(tmp_path, "shells", source, "--views", "light")
    assert str(source) in said
    assert flat or "no such file or folder" in said


@pytest.mark.parametrize("source", ["http://x.org/a.zip", "s3://shells/images", "file:///a%20b"])
def test_a_url_is_told_as_check_tells_it(tmp_path: Path, source: str) -> None:
    text = stopped(tmp_path, "new", "shells", "--source", source, "--views", "light")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    ToyProject(tmp_path).set("ingest.source", source)
    with pytest.raises(ParamsError) as error:
        check(load_params(tmp_path / "params.yaml"), tmp_path)
    words = str(error.value).splitlines()[0].partition("ingest.source ")[2]
    assert text == f"regraft stopped: --source {words}\n"


def test_images_none_of_which_can_be_read_are_told(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "1.png").write_bytes(b"no image")
    text = refused(tmp_path, "shells", tmp_path / "images", "--views", "light")
    assert tells(text, "none of 2 images can be read", "b/1.png")


# from new to answers -----------------------------------------------------------------------------


def copy_checkout(tmp_path: Path) -> Path:
    """A copy of this checkout, as someone has it who wants a second data set."""
    checkout = tmp_path / "regraft"
    ignored = shutil.ignore_patterns(
        "__pycache__", ".git", ".venv*", ".regraft", "cache", "tmp", "docs", "tests", "raw"
    )
    shutil.copytree(ROOT, checkout, ignore=ignored, symlinks=True)
    (checkout / ".venv").symlink_to(sys.prefix)
    return checkout


def typed_lines() -> list[str]:
    """The lines of README from `regraft new` to a csv of answers."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    (block,) = [block for block in blocks if "regraft new" in block]
    return str(block).splitlines()


def test_readme_leads_to_answers_in_at_most_six_lines() -> None:
    lines = typed_lines()
    assert len(lines) <= 6
    assert lines[-1].startswith("regraft predict")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_lines_of_readme_lead_to_answers_as_they_stand(tmp_path: Path) -> None:
    checkout, home = copy_checkout(tmp_path), tmp_path / "home"
    for path, value in TINY.items():
        ToyProject(checkout).set(path, value)
    draw_classes(home / "pictures/shells")
    (home / "pictures/unsorted").mkdir()
    for label in range(3):
        draw_image(label, 99).save(home / f"pictures/unsorted/{label}.png")
    # Where this environment was made before there was a script, one that does what pip's does.
    script = home / "bin/regraft"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nfrom flows.cli import main\nmain()\n")
    script.chmod(0o755)
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(typed_lines())],
        check=False,
        cwd=checkout,
        env={
            **os.environ,
            "HOME": str(home),
            "PATH": f"{os.environ['PATH']}{os.pathsep}{script.parent}",
            "PYTHONPATH": str(checkout),  # as the environment of that checkout would have it
            "DVC_SITE_CACHE_DIR": str(tmp_path / "site"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    project = tmp_path / "shells"
    assert tells(done.stdout, f"Report:  {project}/data/report/report.html")
    with (project / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["path"]).name for row in rows] == ["0.png", "1.png", "2.png"]
    assert {row["predicted"] for row in rows} <= {"cat", "dog", "fox"}
    assert not [row["error"] for row in rows if row["error"]]
    assert (project / "data/report/report.html").read_text().count("shells")
    assert "nothing to run" in said(project, "plan", PYTHONPATH=str(checkout))
