"""Where a result comes from."""

import hashlib
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import ROOT

from tasks.artifacts.files import hash_file
from tasks.errors import ArtifactError
from tasks.params import Params
from tasks.params_file import leaf_paths
from tasks.reporting import provenance
from tasks.reporting.provenance import (
    CodeState,
    Provenance,
    installed_versions,
    list_params,
    read_code_state,
    without_place,
)


def git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), "-c", "user.name=T", "-c", "user.email=t@localhost", *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "tasks").mkdir(parents=True)
    (root / "tasks" / "report.py").write_text("code\n")
    (root / "params.yaml").write_text("seed: 1\n")
    git(tmp_path, "init", "--quiet", str(root))
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "Start")
    return root


def test_a_clean_checkout_is_its_commit(checkout: Path) -> None:
    state = read_code_state(checkout)
    assert state == CodeState(git(checkout, "rev-parse", "HEAD"))
    assert state.words == git(checkout, "rev-parse", "--short=12", "HEAD")


def test_a_changed_and_a_new_file_of_the_code_make_it_dirty(checkout: Path) -> None:
    (checkout / "params.yaml").write_text("seed: 2\n")
    (checkout / "tasks" / "new é.py").write_text("new\n")
    state = read_code_state(checkout)
    assert state.changed == ("params.yaml", "tasks/new é.py")
    assert state.words.endswith("with uncommitted changes")


def test_what_the_pipeline_writes_does_not_make_it_dirty(checkout: Path) -> None:
    (checkout / "dvc.lock").write_text("lock\n")
    (checkout / "data").mkdir()
    (checkout / "data" / "metrics.json").write_text("{}\n")
    assert read_code_state(checkout).changed == ()


def test_inputs_count_where_they_lie_in_the_project(checkout: Path, tmp_path: Path) -> None:
    (checkout / "groups.csv").write_text("path,group\n")
    (tmp_path / "groups.csv").write_text("path,group\n")
    assert read_code_state(checkout).changed == ()
    whole = [str(checkout / "groups.csv"), str(tmp_path / "groups.csv")]
    back = f"../{checkout.name}/groups.csv"
    for inputs in (["groups.csv", "../groups.csv"], whole, [back], [":!groups.csv", "groups.csv"]):
        assert read_code_state(checkout, inputs).changed == ("groups.csv",)


def test_a_git_that_fails_is_not_taken_for_a_clean_checkout(checkout: Path) -> None:
    (checkout / "params.yaml").write_text("seed: 2\n")
    (checkout / ".git" / "index").write_bytes(b"damaged")
    assert read_code_state(checkout).words == "unknown (no git checkout, or git failed)"


def test_the_hash_of_changes_follows_their_content(checkout: Path) -> None:
    hashes = []
    for content in ("seed: 2\n", "seed: 3\n", "seed: 2\n"):
        (checkout / "params.yaml").write_text(content)
        hashes.append(read_code_state(checkout).changes_sha256)
    (checkout / "params.yaml").unlink()
    hashes.append(read_code_state(checkout).changes_sha256)
    assert hashes[0] == hashes[2]
    assert len({*hashes, None}) == 4


def test_a_folder_without_git_is_no_checkout(tmp_path: Path) -> None:
    assert read_code_state(tmp_path).words == "unknown (no git checkout, or git failed)"


def test_a_folder_inside_another_repository_is_no_checkout_of_its_own(checkout: Path) -> None:
    assert read_code_state(checkout / "tasks").commit is None


def test_a_machine_without_git_is_no_error(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/none")
    assert read_code_state(checkout) == CodeState(None)


def test_asking_git_changes_nothing(checkout: Path) -> None:
    before = sorted((p, p.stat().st_mtime_ns) for p in (checkout / ".git").rglob("*"))
    read_code_state(checkout)
    assert sorted((p, p.stat().st_mtime_ns) for p in (checkout / ".git").rglob("*")) == before


def test_the_commands_check_the_commit_out_where_there_is_one() -> None:
    with_commit = Provenance(CodeState("abc"), "", (), ())
    assert with_commit.commands == "git checkout abc\nmake run"
    assert Provenance(CodeState(None), "", (), ()).commands == "make run"


def test_files_are_hashed_whole(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "x").write_bytes(content)
    assert hash_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()
    with pytest.raises(ArtifactError, match="missing: cannot be read"):
        hash_file(tmp_path / "missing")


def test_versions_are_those_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-package"))
    found = dict(installed_versions())
    assert found["torch"] == version("torch")
    assert found["no-such-package"] == "not installed"
    assert "python" in found


def test_every_parameter_is_listed_in_file_order(default_params: Params) -> None:
    listed = list_params(default_params.model_dump(mode="json"))
    assert [name for name, _ in listed] == leaf_paths()


def test_parameters_are_printed_as_they_stand_in_yaml() -> None:
    values = {"a": {"flag": True, "rate": 1e-4, "list": [0.25, 1.0], "name": "x"}, "n": 3}
    assert list_params(values) == (
        ("a.flag", "true"),
        ("a.rate", "0.0001"),
        ("a.list", "[0.25, 1]"),
        ("a.name", "x"),
        ("n", "3"),
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("data/raw", "data/raw"),
        ("/home/ada/photos", ".../photos"),
        ("~/photos", ".../photos"),
        ("C:\\Users\\ada\\photos", ".../photos"),
        ("https://ada:secret@host.org/x.zip?token=secret#t", "https://host.org/x.zip"),
        ("tf_efficientnet_lite0", "tf_efficientnet_lite0"),
    ],
)
def test_places_and_secrets_are_not_told(value: str, shown: str) -> None:
    assert without_place(value) == shown


def test_the_watched_paths_are_in_this_project() -> None:
    assert "tasks" in provenance.CODE
    assert all((ROOT / name).exists() for name in provenance.CODE)
