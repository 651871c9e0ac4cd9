"""Runs with overrides: the user's tree stays as it is, and so does what the user sees of it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, tells
from toy import GRAPH, STAGES, ToyProject

from flows.errors import IsolationError
from flows.stages.graph import read_graph, why_stale
from flows.stages.isolation import (
    RUNS,
    Clone,
    base_of,
    cloned,
    experiment_name,
    keep_clone,
    keep_results,
    kept_clones,
    remove_dead_clones,
)
from flows.stages.runner import Runner
from tasks.errors import ParamsError

pytest_plugins = ["toy_fixtures"]
pytestmark = pytest.mark.filterwarnings(
    "ignore:_NoneStep.value will soon raise:DeprecationWarning:dvc"
)

FASTER = {"finetune.head_lr": 0.0004}


def silent(line: str) -> None:
    """Take a line and do nothing."""


def clone_now(
    root: Path, name: str, values: Mapping[str, Any] = FASTER
) -> AbstractContextManager[Clone]:
    return cloned(root, name, values, base_of(root))


MakeClone = Callable[..., Path]


@pytest.fixture
def make_clone() -> Iterator[MakeClone]:
    """Make clones that are removed at the end of the test."""
    with ExitStack() as stack:

        def make(root: Path, name: str, values: dict[str, Any]) -> Path:
            return stack.enter_context(clone_now(root, name, values)).path

        yield make


def run_stage(root: Path, name: str) -> str:
    return Runner(root).run(name, silent).kind


def make_dirty(toy: ToyProject) -> None:
    """Give the tree every kind of change that git knows."""
    toy.write("notes.md", "tracked\n")
    toy.write("gone.md", "tracked\n")
    toy.commit("Notes")
    toy.write("notes.md", "edited\n")
    toy.set("evaluate.ece_bins", 9)
    (toy.root / "gone.md").unlink()
    toy.write("staged.md", "staged\n")
    toy.git("add", "staged.md")
    toy.write("new folder/ünew.md", "untracked\n")


def state_of(toy: ToyProject) -> tuple[str, str, str]:
    return (
        toy.git("status", "--porcelain=v1"),
        toy.git("diff", "HEAD"),
        toy.git("stash", "list"),
    )


def test_the_clone_is_what_the_user_sees_and_the_tree_stays_as_it_is(
    make_clone: MakeClone, toy: ToyProject
) -> None:
    make_dirty(toy)
    before = state_of(toy)
    clone = make_clone(toy.root, "quick-fox", FASTER)
    assert state_of(toy) == before
    assert (clone / "notes.md").read_text() == "edited\n"
    assert (clone / "staged.md").read_text() == "staged\n"
    assert (clone / "new folder/ünew.md").read_text() == "untracked\n"
    assert not (clone / "gone.md").exists()
    params = (clone / "params.yaml").read_text()
    (comment,) = re.findall(r"\n +head_lr: [\d.]+ +(#.+)", toy.read("params.yaml"))
    assert re.search(rf"\n +head_lr: 0\.0004 +{re.escape(comment)}", params)
    assert "ece_bins: 9" in params
    head = ["git", "rev-parse", "HEAD"]
    assert subprocess.check_output(head, cwd=clone, text=True) == toy.git("rev-parse", "HEAD")


def test_only_what_the_overrides_touch_is_stale_in_the_clone(
    make_clone: MakeClone, toy: ToyProject
) -> None:
    clone = make_clone(toy.root, "quick-fox", FASTER)
    reasons = {stage: reasons for stage, reasons in why_stale(clone, STAGES).items()}
    assert reasons == {
        "fetch": [],
        "left": ["finetune.head_lr 0.0005 -> 0.0004"],
        "right": [],
        "join": [],
    }


def test_results_come_back_as_an_experiment_that_can_be_applied(
    make_clone: MakeClone, toy: ToyProject
) -> None:
    make_dirty(toy)
    before = state_of(toy)
    clone = make_clone(toy.root, "quick-fox", FASTER)
    for stage in STAGES:
        assert run_stage(clone, stage) in {"ran", "unchanged"}
    keep_results(toy.root, clone, "quick-fox")
    assert state_of(toy) == before
    shown = toy.dvc("exp", "show", "--csv", "--only-changed")
    assert "quick-fox" in shown
    assert "0.0004" in shown
    toy.git("stash", "--include-untracked", "--quiet")
    toy.dvc("exp", "apply", "quick-fox")
    assert "head_lr: 0.0004" in toy.read("out/join.txt")
    assert "ece_bins: 9" in toy.read("out/join.txt")
    assert toy.read("new folder/ünew.md") == "untracked\n"


def test_values_that_do_not_fit_together_are_refused_and_nothing_stays(
    make_clone: MakeClone, toy: ToyProject
) -> None:
    with pytest.raises(ParamsError) as error:
        make_clone(toy.root, "quick-fox", {"finetune.backbone_lr": 0.01})
    facts = "params.yaml", "overrides", "backbone_lr is 0.01; allowed: at most head_lr"
    assert tells(str(error.value), *facts)
    assert str(toy.root) not in str(error.value)
    assert not list((toy.root / ".regraft/runs").glob("quick-fox*"))


def test_images_that_git_ignores_come_along_without_being_copied(
    make_clone: MakeClone, toy: ToyProject
) -> None:
    toy.write(".gitignore", toy.read(".gitignore") + "/data/raw/\n")
    toy.write("data/raw/cat/1.png", "pixels\n")
    toy.need("data/raw")
    clone = make_clone(toy.root, "quick-fox", FASTER)
    image = clone / "data/raw/cat/1.png"
    assert image.samefile(toy.root / "data/raw/cat/1.png")
    assert run_stage(clone, "fetch") == "ran"
    assert toy.read("data/raw/cat/1.png") == "pixels\n"


def test_a_source_that_only_the_overrides_name_comes_along_too(
    make_clone: MakeClone, toy: ToyProject
) -> None:
    toy.write(".gitignore", toy.read(".gitignore") + "/mine/\n")
    toy.write("mine/1.png", "pixels\n")
    toy.need()
    clone = make_clone(toy.root, "quick-fox", {"ingest.source": "mine"})
    assert (clone / "mine/1.png").samefile(toy.root / "mine/1.png")


def files_of_experiment(toy: ToyProject, name: str) -> list[str]:
    references = toy.git("for-each-ref", "--format=%(refname)", "refs/exps/").split()
    (reference,) = [found for found in references if found.endswith(f"/{name}")]
    return toy.git("ls-tree", "-r", "--name-only", reference).split()


def test_images_that_git_does_not_know_yet_are_linked_and_stay_out_of_the_experiment(
    make_clone: MakeClone,
    toy: ToyProject,
) -> None:
    toy.write("mine/cat/1.png", "pixels\n")
    toy.write("mine.txt", "new, but no image\n")
    toy.need()
    clone = make_clone(toy.root, "quick-fox", {**FASTER, "ingest.source": "mine"})
    assert (clone / "mine/cat/1.png").samefile(toy.root / "mine/cat/1.png")
    assert not (clone / "mine.txt").samefile(toy.root / "mine.txt")
    for stage in STAGES:
        run_stage(clone, stage)
    keep_results(toy.root, clone, "quick-fox")
    kept = files_of_experiment(toy, "quick-fox")
    assert "mine.txt" in kept
    assert not [name for name in kept if name.startswith("mine/")]


def test_images_that_a_csv_lists_come_along_too(make_clone: MakeClone, toy: ToyProject) -> None:
    toy.write(".gitignore", toy.read(".gitignore") + "/tables/photos/\n")
    for name in ("tables/photos/1.png", "tables/photos/2.png", "tables/new/3.png"):
        toy.write(name, "pixels\n")
    rows = [
        "photos/1.png,cat",
        "new/3.png,cat",
        "gone.png,dog",
        "../../4.png,dog",
    ]
    toy.write("tables/mine.csv", "\n".join(["path,label", *rows]))
    toy.need()
    clone = make_clone(toy.root, "quick-fox", {"ingest.source": "tables/mine.csv"})
    assert not (clone / "tables/mine.csv").samefile(toy.root / "tables/mine.csv")
    for name in ("tables/photos/1.png", "tables/new/3.png"):
        assert (clone / name).samefile(toy.root / name)
    assert not (clone / "tables/photos/2.png").exists()


def test_whole_paths_in_a_csv_that_moves_are_refused(
    make_clone: MakeClone, toy: ToyProject
) -> None:
    toy.write("tables/photos/1.png", "pixels\n")
    toy.write("tables/mine.csv", f"path,label\nphotos/1.png,cat\n{toy.root}/tables/2.png,cat\n")
    with pytest.raises(IsolationError) as error:
        make_clone(toy.root, "quick-fox", {"ingest.source": "tables/mine.csv"})
    found = "tables/mine.csv: 1 of 2", "line 3", f"{toy.root}/tables/2.png"
    assert tells(str(error.value), *found, "relative to the folder of the csv")


@pytest.mark.parametrize("source", ["mine", "mine.csv"])
def test_images_of_a_whole_path_are_read_in_place_and_stay_out_of_the_experiment(
    make_clone: MakeClone, toy: ToyProject, source: str
) -> None:
    toy.write("mine/cat/1.png", "pixels\n")
    toy.write("mine.csv", f"path,label\n{toy.root}/mine/cat/1.png,cat\n")
    clone = make_clone(toy.root, "quick-fox", {"ingest.source": str(toy.root / source)})
    assert (clone / "mine.csv").exists()
    assert not (clone / "mine").exists()
    keep_results(toy.root, clone, "quick-fox")
    kept = files_of_experiment(toy, "quick-fox")
    assert "mine.csv" in kept
    assert not [name for name in kept if name.startswith("mine/")]


def test_a_csv_that_is_edited_during_a_run_lets_no_image_into_the_experiment(
    make_clone: MakeClone,
    toy: ToyProject,
) -> None:
    toy.write("tables/1.png", "pixels\n")
    toy.write("tables/mine.csv", "path,label\n1.png,cat\n")
    clone = make_clone(toy.root, "quick-fox", {"ingest.source": "tables/mine.csv"})
    toy.write("tables/mine.csv", "path,label\n2.png,cat\n")
    keep_results(toy.root, clone, "quick-fox")
    kept = files_of_experiment(toy, "quick-fox")
    assert "tables/mine.csv" in kept
    assert "tables/1.png" not in kept


def test_the_project_itself_is_no_source(make_clone: MakeClone, toy: ToyProject) -> None:
    with pytest.raises(IsolationError, match="the project itself"):
        make_clone(toy.root, "quick-fox", {"ingest.source": "."})


def test_a_table_that_ingest_will_refuse_is_left_to_ingest(
    make_clone: MakeClone, toy: ToyProject
) -> None:
    toy.write("mine.csv", "file,class\n1.png,cat\n")
    clone = make_clone(toy.root, "quick-fox", {"ingest.source": "mine.csv"})
    assert (clone / "mine.csv").read_text() == toy.read("mine.csv")


def test_a_linked_folder_of_images_stays_a_link(
    make_clone: MakeClone, toy: ToyProject, tmp_path: Path
) -> None:
    (tmp_path / "disk/cat").mkdir(parents=True)
    (tmp_path / "disk/cat/1.png").write_text("pixels\n")
    toy.write(".gitignore", toy.read(".gitignore") + "/mine\n")
    (toy.root / "mine").symlink_to(tmp_path / "disk")
    toy.need()
    clone = make_clone(toy.root, "quick-fox", {"ingest.source": "mine"})
    assert (clone / "mine").is_symlink()
    assert (clone / "mine/cat/1.png").samefile(tmp_path / "disk/cat/1.png")


@pytest.mark.parametrize("ignored", [False, True])
def test_a_relative_link_to_images_leads_to_the_same_folder(
    make_clone: MakeClone, toy: ToyProject, ignored: bool
) -> None:
    (toy.root.parent / "photos").mkdir()
    if ignored:
        toy.write(".gitignore", toy.read(".gitignore") + "/mine\n")
    (toy.root / "mine").symlink_to("../photos")
    toy.need()
    clone = make_clone(toy.root, "quick-fox", {"ingest.source": "mine"})
    assert (clone / "mine").samefile(toy.root.parent / "photos")


def test_images_of_one_folder_come_along_whatever_git_knows_of_each(
    make_clone: MakeClone, toy: ToyProject
) -> None:
    toy.write("mine/cat/0.png", "tracked\n")
    toy.commit("Add an image")
    toy.write(".gitignore", toy.read(".gitignore") + "*.bmp\n")
    toy.write("mine/cat/1.png", "new\n")
    toy.write("mine/cat/2.bmp", "ignored\n")
    (toy.root / "mine/cat/3.png").symlink_to("1.png")
    subprocess.run(["git", "init", "--quiet", str(toy.root / "mine/dog")], check=True)
    toy.write("mine/dog/4.png", "of another repository\n")
    toy.need()
    clone = make_clone(toy.root, "quick-fox", {"ingest.source": "mine"})
    for name in ("0.png", "1.png", "2.bmp", "3.png"):
        assert (clone / "mine/cat" / name).read_text() == toy.read(f"mine/cat/{name}")
    assert (clone / "mine/cat/3.png").is_symlink()
    assert (clone / "mine/dog/4.png").samefile(toy.root / "mine/dog/4.png")


def test_images_that_are_links_lead_to_the_same_files_from_a_clone(
    make_clone: MakeClone, toy: ToyProject, tmp_path: Path
) -> None:
    (tmp_path / "disk/dog").mkdir(parents=True)
    for name in ("disk/blob", "disk/dog/2.png"):
        (tmp_path / name).write_text("pixels\n")
    toy.write(".gitignore", toy.read(".gitignore") + "/mine/\n")
    (toy.root / "mine/cat").mkdir(parents=True)
    (toy.root / "mine/cat/1.png").symlink_to("../../../disk/blob")
    (toy.root / "mine/cat/gone.png").symlink_to("nothing")
    (toy.root / "mine/dog").symlink_to("../../disk/dog")
    toy.need()
    clone = make_clone(toy.root, "quick-fox", {"ingest.source": "mine"})
    assert (clone / "mine/cat/1.png").samefile(tmp_path / "disk/blob")
    assert (clone / "mine/dog/2.png").samefile(tmp_path / "disk/dog/2.png")
    assert (clone / "mine/cat/gone.png").is_symlink()


def test_a_path_that_leads_elsewhere_from_a_clone_is_refused(
    make_clone: MakeClone, toy: ToyProject
) -> None:
    (toy.root.parent / "photos").mkdir()
    with pytest.raises(IsolationError) as error:
        make_clone(toy.root, "quick-fox", {"ingest.source": "../photos"})
    assert tells(str(error.value), "../photos", f"whole path, {toy.root.parent / 'photos'}")
    clone = make_clone(toy.root, "slow-fox", {"ingest.source": str(toy.root.parent / "photos")})
    assert clone.is_dir()


def test_the_users_own_dvc_settings_hold_in_the_clone(
    make_clone: MakeClone, toy: ToyProject
) -> None:
    toy.dvc("remote", "add", "--local", "shelf", "/somewhere")
    clone = make_clone(toy.root, "quick-fox", FASTER)
    settings = (clone / ".dvc/config.local").read_text()
    assert "shelf" in settings
    assert str(toy.root / ".dvc/cache") in settings
    assert "cache" not in toy.read(".dvc/config.local")


def test_a_remote_that_is_a_folder_beside_the_project_is_the_same_from_a_clone(
    make_clone: MakeClone, toy: ToyProject
) -> None:
    toy.dvc("remote", "add", "--default", "shelf", "../shelf")
    toy.commit("Add a remote")
    clone = make_clone(toy.root, "quick-fox", FASTER)
    Runner(clone).dvc("push", "--run-cache")
    assert list((toy.root.parent / "shelf").rglob("*"))
    assert not (toy.root / RUNS / "shelf").exists()


def test_names_that_a_remote_has_are_taken(toy: ToyProject, tmp_path: Path) -> None:
    toy.git("clone", "--quiet", "--bare", str(toy.root), str(tmp_path / "hub.git"))
    toy.git("remote", "add", "hub", str(tmp_path / "hub.git"))
    toy.git("push", "--quiet", "hub", "HEAD:refs/exps/ab/cdef/quick-fox")
    assert experiment_name(toy.root, "quick-fox") == "quick-fox"
    assert experiment_name(toy.root, "quick-fox", "hub") == "quick-fox-2"


def test_tracked_data_that_changed_is_refused_with_the_command_to_run(
    make_clone: MakeClone, toy: ToyProject
) -> None:
    toy.git("rm", "--quiet", "--cached", "source.txt")
    toy.dvc("add", "source.txt")
    toy.commit("Track the source")
    (toy.root / "source.txt").unlink()
    toy.write("source.txt", "other\n")
    with pytest.raises(IsolationError, match=r"run `dvc add source\.txt` first"):
        make_clone(toy.root, "quick-fox", FASTER)


def test_a_project_without_commits_is_told_what_to_run(
    make_clone: MakeClone, toy: ToyProject
) -> None:
    shutil.rmtree(toy.root / ".git")
    toy.git("init", "--quiet")
    with pytest.raises(IsolationError, match=r"commit.*none yet.*`git add --all`"):
        make_clone(toy.root, "quick-fox", FASTER)


def test_a_folder_without_git_is_told_what_to_run(make_clone: MakeClone, toy: ToyProject) -> None:
    shutil.rmtree(toy.root / ".git")
    with pytest.raises(IsolationError, match="Run `git init`"):
        make_clone(toy.root, "quick-fox", FASTER)


def test_a_name_in_use_gets_a_number(make_clone: MakeClone, toy: ToyProject) -> None:
    assert experiment_name(toy.root, "my run: ü/1") == "my-run-1"
    toy.git("update-ref", "refs/exps/aa/bb/quick-fox", "HEAD")
    make_clone(toy.root, "quick-fox-2", FASTER)
    assert experiment_name(toy.root, "quick-fox") == "quick-fox-3"


def test_a_clone_is_removed_after_its_run_unless_it_is_kept(toy: ToyProject) -> None:
    with clone_now(toy.root, "quick-fox") as clone:
        pass
    assert not list((toy.root / RUNS).glob("quick-fox*"))
    with clone_now(toy.root, "slow-fox") as clone:
        keep_clone(clone.path, "left: too fast")
    assert kept_clones(toy.root) == {clone.path: "left: too fast"}
    assert clone.path.is_dir()
    with clone_now(toy.root, "slow-fox"):  # the same run, tried again
        assert kept_clones(toy.root) == {}
    assert not clone.path.exists()


def test_clones_of_killed_runs_are_removed_and_living_ones_are_not(
    make_clone: MakeClone, toy: ToyProject
) -> None:
    alive = make_clone(toy.root, "alive", FASTER)
    with clone_now(toy.root, "kept") as kept:
        keep_clone(kept.path, "left: too fast")
    code = (
        "import os, pathlib; from flows.stages.isolation import base_of, cloned\n"
        f"root = pathlib.Path({str(toy.root)!r})\n"
        f"with cloned(root, 'dead', {FASTER}, base_of(root)): os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert (toy.root / RUNS / "dead/params.yaml").exists()
    assert remove_dead_clones(toy.root) == ["dead"]
    assert sorted(path.name for path in (toy.root / RUNS).iterdir() if path.is_dir()) == [
        "alive",
        "kept",
    ]
    assert alive.is_dir()


def test_a_kept_copy_without_a_reason_and_one_that_was_deleted_are_no_trouble(
    toy: ToyProject,
) -> None:
    for name in ("silent", "deleted"):
        with clone_now(toy.root, name) as clone:
            keep_clone(clone.path, "")
    shutil.rmtree(toy.root / RUNS / "deleted")
    assert kept_clones(toy.root) == {toy.root / RUNS / "silent": "no reason is known"}


@pytest.mark.parametrize(
    ("given", "expected"), [(None, "{root}/.regraft"), ("mine", "{root}/mine"), ("/a/b", "/a/b")]
)
def test_scratch_of_a_run_outlives_its_clone(
    toy: ToyProject, monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str
) -> None:
    monkeypatch.delenv("REGRAFT_SCRATCH", raising=False)
    if given:
        monkeypatch.setenv("REGRAFT_SCRATCH", given)
    with clone_now(toy.root, "quick-fox") as clone:
        assert clone.settings["REGRAFT_SCRATCH"] == expected.format(root=toy.root)


def test_an_experiment_can_be_branched_and_rerun(make_clone: MakeClone, toy: ToyProject) -> None:
    plots = "plots:\n  - left:\n      x: a\n      y: {out/left.txt: b}\n"
    toy.write("dvc.yaml", GRAPH + plots)
    toy.commit("Plot")
    clone = make_clone(toy.root, "quick-fox", FASTER)
    for stage in STAGES:
        run_stage(clone, stage)
    keep_results(toy.root, clone, "quick-fox")
    kept = files_of_experiment(toy, "quick-fox")
    assert sorted(kept) == sorted(toy.git("ls-files").split())
    toy.dvc("exp", "branch", "quick-fox", "quick")
    toy.git("checkout", "--quiet", "quick")
    toy.dvc("checkout")
    assert "Data and pipelines are up to date." in toy.dvc("status")
    toy.set("finetune.head_lr", 0.0002)
    toy.dvc("repro")
    assert "head_lr: 0.0002" in toy.read("out/join.txt")


def test_one_stage_of_a_project_where_nothing_ran_becomes_an_experiment(
    make_clone: MakeClone, fresh_toy: ToyProject
) -> None:
    clone = make_clone(fresh_toy.root, "quick-fox", FASTER)
    run_stage(clone, "fetch")
    keep_results(fresh_toy.root, clone, "quick-fox")
    fresh_toy.dvc("exp", "branch", "quick-fox", "quick")
    fresh_toy.git("checkout", "--quiet", "quick")
    fresh_toy.dvc("checkout", "--allow-missing")
    assert fresh_toy.read("out/fetch.txt") == "source\n"
    assert "Running stage 'fetch'" not in fresh_toy.dvc("repro")


def test_a_stage_that_did_not_run_stays_stale_in_the_experiment(
    make_clone: MakeClone, toy: ToyProject
) -> None:
    clone = make_clone(toy.root, "quick-fox", FASTER)
    run_stage(clone, "left")
    keep_results(toy.root, clone, "quick-fox")
    toy.dvc("exp", "apply", "quick-fox")
    assert why_stale(toy.root, STAGES) == {
        "fetch": [],
        "left": [],
        "right": [],
        "join": ["out/left.txt modified"],
    }


def test_files_that_git_keeps_instead_of_the_cache_come_along(
    make_clone: MakeClone, fresh_toy: ToyProject
) -> None:
    graph = GRAPH.replace("outs: [out/fetch.txt]", "metrics: [{out/fetch.txt: {cache: false}}]")
    fresh_toy.write("dvc.yaml", graph)
    fresh_toy.commit("Let git keep it")
    clone = make_clone(fresh_toy.root, "quick-fox", FASTER)
    run_stage(clone, "fetch")
    keep_results(fresh_toy.root, clone, "quick-fox")
    assert "out/fetch.txt" in files_of_experiment(fresh_toy, "quick-fox")


def test_a_shallow_repository_with_edits_can_be_cloned(
    make_clone: MakeClone, toy: ToyProject, tmp_path: Path
) -> None:
    toy.commit("One more")
    shallow = ToyProject(tmp_path / "shallow")
    toy.git("clone", "--quiet", "--depth", "1", f"file://{toy.root}", str(shallow.root))
    shallow.git("config", "user.name", "Toy")
    shallow.git("config", "user.email", "toy@localhost")
    shallow.write("notes.md", "mine\n")
    shallow.set("evaluate.ece_bins", 9)
    clone = make_clone(shallow.root, "quick-fox", FASTER)
    assert "ece_bins: 9" in (clone / "params.yaml").read_text()
    run_stage(clone, "fetch")
    keep_results(shallow.root, clone, "quick-fox")
    assert shallow.dvc("exp", "list", "--name-only").split() == ["quick-fox"]
    assert "notes.md" in files_of_experiment(shallow, "quick-fox")


def test_files_are_copied_where_they_cannot_be_linked(
    make_clone: MakeClone, toy: ToyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    toy.write(".gitignore", toy.read(".gitignore") + "/mine.csv\n")
    toy.write("mine.csv", "rows\n")
    toy.need("mine.csv")
    monkeypatch.setattr(os, "link", refuse)
    clone = make_clone(toy.root, "quick-fox", FASTER)
    assert (clone / "mine.csv").read_text() == "rows\n"
    assert not (clone / "mine.csv").samefile(toy.root / "mine.csv")


@pytest.mark.slow
def test_four_isolated_runs_at_once_all_come_back(make_clone: MakeClone, toy: ToyProject) -> None:
    def run(number: int) -> None:
        clone = make_clone(toy.root, f"run-{number}", {"finetune.head_lr": 0.001 + number / 1000})
        for stage in read_graph(clone):
            assert run_stage(clone, stage.name) in {"ran", "unchanged"}
        keep_results(toy.root, clone, f"run-{number}")

    before = state_of(toy)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    assert state_of(toy) == before
    shown = toy.dvc("exp", "list", "--name-only")
    assert sorted(shown.split()) == [f"run-{number}" for number in range(4)]
    assert Path(toy.root / ".regraft/runs/.gitignore").read_text() == "*\n"
