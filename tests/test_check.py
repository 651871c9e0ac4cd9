"""The stage check: a path of params.yaml that leads nowhere is told in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, tells

from tasks.artifacts.records import NamedPaths, read_record
from tasks.check import check, main
from tasks.errors import DataError, ParamsError
from tasks.params_file import load_params


def write_project(root: Path, **values: str) -> Path:
    """A project with images in data/raw, and some values of params.yaml changed."""
    (root / "data/raw/cat").mkdir(parents=True)
    (root / "data/weights").mkdir()
    (root / "data/groups.csv").write_text("path,group\n")
    (root / "data/corrections.csv").write_text("path,label,drop\n")
    values = {"source": "data/raw", **values}
    lines = []
    for line in (ROOT / "params.yaml").read_text().splitlines():
        key = line.strip().split(":")[0]
        lines.append(f"  {key}: '{values[key]}'" if key in values else line)
    (root / "params.yaml").write_text("\n".join(lines))
    return root


def checked(root: Path) -> NamedPaths:
    return check(load_params(root / "params.yaml"), root)


def test_sound_paths_are_written_as_they_stand(tmp_path: Path) -> None:
    root = write_project(tmp_path, weights="data/weights/mine.safetensors")
    (root / "data/weights/mine.safetensors").touch()
    main(["--params", str(root / "params.yaml"), "--paths", str(root / "paths.json")])
    assert read_record(root / "paths.json", NamedPaths) == NamedPaths(
        source="data/raw",
        groups="data/groups.csv",
        corrections="data/corrections.csv",
        weights="data/weights/mine.safetensors",
    )


@pytest.mark.parametrize("source", ["./data/raw", "data//raw/", "data/../data/raw", "linked"])
def test_every_way_of_writing_a_path_is_sound(tmp_path: Path, source: str) -> None:
    root = write_project(tmp_path, source=source)
    (root / "linked").symlink_to("data/raw")
    assert checked(root).source == source


def test_a_whole_path_is_sound(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert checked(write_project(tmp_path / "project", source=str(elsewhere)))


@pytest.mark.parametrize(
    ("source", "facts"),
    [
        ("data/row", ("no such", "Did you mean data/raw?")),
        ("data/raw/lions", ("no such", "data/raw holds no 'lions'")),
        ("date/raw", ("no such", "Did you mean data?")),
        ("data/groups.csv/cat", ("no such", "data/groups.csv is a file")),
        ("~/pictures", ("~ and $", "whole path: {home}/pictures")),
        ("$HOME/pictures", ("~ and $", "whole path: {home}/pictures")),
        ("~/nothing", ("~ and $", "write the path out")),
        ("file:///data/my%20set", ("URL", "path alone: /data/my set")),
        ("https://example.org/set.zip", ("URL", "fetch", "into a folder")),
        (".", ("project's own results", "such as data/raw")),
        ("data", ("project's own results", "such as data/raw")),
        ("..", ("project's own results", "such as data/raw")),
        ("linked", ("project's own results", "such as data/raw")),
        ("data/augment/train", ("a stage writes and clears", "move it")),
    ],
)
def test_a_path_that_cannot_be_used_is_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, facts: tuple[str, ...]
) -> None:
    home = tmp_path / "home"
    (home / "pictures").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    root = write_project(tmp_path / "project", source=source)
    (root / "data/augment/train").mkdir(parents=True)
    (root / "linked").symlink_to("data")
    with pytest.raises(ParamsError) as error:
        checked(root)
    lines = (root / "params.yaml").read_text("utf-8").splitlines()
    at = next(number for number, line in enumerate(lines, start=1) if "  source:" in line)
    assert str(error.value).startswith(f"{root}/params.yaml:{at}: ingest.source is {source!r}")
    assert tells(str(error.value), *(fact.format(home=home) for fact in facts))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["data/mine", "data/mine/left"])
def test_images_that_dvc_tracks_and_did_not_bring_are_told(tmp_path: Path, source: str) -> None:
    root = write_project(tmp_path, source=source)
    (root / "data/mine.dvc").touch()
    with pytest.raises(ParamsError, match=r"DVC tracks it.*dvc checkout.*dvc pull"):
        checked(root)


def test_a_copy_that_lacks_the_images_tells_how_it_would_have_them(tmp_path: Path) -> None:
    (tmp_path / "my images").mkdir()
    root = write_project(tmp_path / ".dvc/tmp/exps/tmp1", source="my images")
    with pytest.raises(ParamsError, match="dvc add 'my images' in the project itself"):
        checked(root)
    root = write_project(tmp_path / ".dvc/tmp/exps/tmp2", source="your images")
    with pytest.raises(ParamsError, match="no such file or folder"):
        checked(root)


def test_weights_that_lead_out_of_their_folder_are_told(tmp_path: Path) -> None:
    root = write_project(tmp_path, weights="data/weights/../mine.safetensors")
    (root / "data/mine.safetensors").touch()
    with pytest.raises(ParamsError, match=r"backbone\.weights is .*, outside of data/weights/"):
        checked(root)


def test_every_wrong_path_has_a_line(tmp_path: Path) -> None:
    root = write_project(
        tmp_path,
        source="no",
        groups="none.csv",
        corrections="neither.csv",
        weights="data/weights/other.safetensors",
    )
    with pytest.raises(ParamsError) as error:
        checked(root)
    keys = [line.split(": ")[1].split(" is ")[0] for line in str(error.value).splitlines()]
    assert keys == ["ingest.source", "ingest.groups", "ingest.corrections", "backbone.weights"]


def test_a_mistake_in_a_value_comes_first(tmp_path: Path) -> None:
    root = write_project(tmp_path, source="")
    with pytest.raises(
        ParamsError, match=r"ingest\.source is ''; allowed: string, length at least 1"
    ):
        main(["--params", str(root / "params.yaml"), "--paths", str(root / "paths.json")])


def test_names_that_dvc_cannot_hash_are_told_before_it_runs(tmp_path: Path) -> None:
    root = write_project(tmp_path)
    (root / "data/raw" / os.fsdecode(b".hidden \xe9")).mkdir()
    with pytest.raises(DataError) as caught:
        checked(root)
    assert tells(str(caught.value), "1 name", ".hidden \\xe9", "python3 -c")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"name": "resnet5O", "weights": "random"}, ("knows no backbone 'resnet5O'", "resnet50")),
        ({"name": "resnet18"}, ("no packaged weights of 'resnet18'", "tf_efficientnet_lite0")),
        ({"name": "tf_efficientnet_lite0.mine"}, ("knows no tag", "lite0.in1k")),
    ],
)
def test_a_backbone_that_cannot_be_had_is_told_before_anything_is_computed(
    tmp_path: Path, values: dict[str, str], told: tuple[str, ...]
) -> None:
    root = write_project(tmp_path, **values)
    with pytest.raises(ParamsError) as caught:
        checked(root)
    assert tells(str(caught.value), "params.yaml:", "backbone.name: ", *told)


def test_candidates_are_checked_where_they_are_compared(tmp_path: Path) -> None:
    root = write_project(tmp_path)
    params = load_params(root / "params.yaml")
    several = params.select.model_copy(update={"candidates": ["resnet18"]})
    params = params.model_copy(update={"select": several})
    check(params, root)
    auto = params.backbone.model_copy(update={"name": "auto"})
    with pytest.raises(ParamsError, match=r"select\.candidates: .*'resnet18'"):
        check(params.model_copy(update={"backbone": auto}), root)


def test_timm_is_not_asked_where_the_name_is_that_of_packaged_weights(tmp_path: Path) -> None:
    root = write_project(tmp_path)
    code = (
        "import sys; from tasks.check import main; main(sys.argv[1:]); print('timm' in sys.modules)"
    )
    words = ["--params", str(root / "params.yaml"), "--paths", str(root / "paths.json")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "False\n"
