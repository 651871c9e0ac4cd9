"""What flows/stages/graph.py relies on in DVC, pinned on real projects."""

import json
import os
import re
import shutil
from pathlib import Path

import psutil
import pytest
from conftest import tells
from dvc.repo import Repo
from toy import GRAPH, STAGES, ToyProject

from flows.errors import GraphError
from flows.stages.graph import (
    Stage,
    all_upstream,
    choose_stages,
    find_root,
    locked_stages,
    made_paths,
    order_lock,
    read_graph,
    read_state,
    restore,
    run_key,
    stale_at,
    uncached_outs,
    why_stale,
)
from tasks.errors import DataError, ParamsError

pytest_plugins = ["toy_fixtures"]
pytestmark = pytest.mark.filterwarnings(
    "ignore:_NoneStep.value will soon raise:DeprecationWarning:dvc"
)

DIAMOND = [
    Stage("a", upstream=(), deps=(), outs=()),
    Stage("b", upstream=("a",), deps=(), outs=()),
    Stage("c", upstream=("a",), deps=(), outs=()),
    Stage("d", upstream=("b", "c"), deps=(), outs=()),
    Stage("e", upstream=(), deps=(), outs=()),
]


def names(graph: list[Stage]) -> list[str]:
    return [stage.name for stage in graph]


def why(toy: ToyProject, stage: str) -> list[str]:
    return why_stale(toy.root, [stage])[stage]


def test_stages_come_in_the_order_of_dvc_repro_with_their_neighbors(toy: ToyProject) -> None:
    graph = read_graph(toy.root)
    assert names(graph) == STAGES
    assert graph[3] == Stage(
        name="join",
        upstream=("left", "right"),
        deps=("work.py", "out/left.txt", "out/right.txt"),
        outs=("out/join.txt",),
    )


def test_names_do_not_depend_on_the_current_folder(
    toy: ToyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.write(
        "sub/dvc.yaml", "stages:\n  part:\n    cmd: echo 1 > part.txt\n    outs: [part.txt]\n"
    )
    toy.write("dvc.yaml", GRAPH.replace("deps: [work.py, source.txt]", "deps: [sub/part.txt]"))
    expected = ["sub/dvc.yaml:part", *STAGES]
    for folder in (toy.root, toy.root / "sub", toy.root.parent):
        monkeypatch.chdir(folder)
        assert names(read_graph(toy.root)) == expected
        assert why(toy, "sub/dvc.yaml:part") == ["never ran"]


def test_a_name_is_what_dvc_repro_takes(toy: ToyProject) -> None:
    toy.write(
        "dvc.yaml", GRAPH + "  each:\n    foreach: [x, y]\n    do:\n      cmd: echo ${item}\n"
    )
    assert {"each@x", "each@y"} <= set(names(read_graph(toy.root)))
    assert "Running stage 'each@x'" in toy.dvc("repro", "--single-item", "each@x")


def test_stages_of_other_files_that_nothing_needs_are_left_out(toy: ToyProject) -> None:
    toy.write(
        "sub/dvc.yaml", "stages:\n  part:\n    cmd: echo 1 > part.txt\n    outs: [part.txt]\n"
    )
    assert names(read_graph(toy.root)) == STAGES


def test_tracked_data_that_a_stage_reads_is_a_node_of_the_graph(toy: ToyProject) -> None:
    toy.git("rm", "--quiet", "--cached", "source.txt")
    toy.dvc("add", "source.txt")
    graph = read_graph(toy.root)
    assert names(graph) == ["source.txt.dvc", *STAGES]
    assert graph[1].upstream == ("source.txt.dvc",)
    assert why(toy, "source.txt.dvc") == []
    (toy.root / "source.txt").unlink()
    toy.write("source.txt", "other\n")
    assert why(toy, "source.txt.dvc") == ["source.txt modified"]


def test_an_unchanged_stage_has_no_reason_to_run(toy: ToyProject) -> None:
    assert why_stale(toy.root, STAGES) == {stage: [] for stage in STAGES}


def test_a_stage_that_never_ran_says_so(fresh_toy: ToyProject) -> None:
    assert why_stale(fresh_toy.root, STAGES) == {stage: ["never ran"] for stage in STAGES}


def change_param(toy: ToyProject) -> None:
    toy.set("finetune.head_lr", 0.0007)


def change_source(toy: ToyProject) -> None:
    toy.write("source.txt", "other\n")


def delete_out(toy: ToyProject) -> None:
    (toy.root / "out/left.txt").unlink()


def change_command(toy: ToyProject) -> None:
    toy.write(
        "dvc.yaml", GRAPH.replace("out/fetch.txt out/left.txt", "out/fetch.txt out/left.txt -")
    )


def change_code(toy: ToyProject) -> None:
    toy.write("work.py", toy.read("work.py") + "# touched\n")


@pytest.mark.parametrize(
    ("change", "stage", "reason"),
    [
        (change_param, "left", ["finetune.head_lr 0.0005 -> 0.0007"]),
        (change_source, "fetch", ["source.txt modified"]),
        (delete_out, "left", ["out/left.txt deleted"]),
        (delete_out, "join", ["out/left.txt deleted"]),
        (change_command, "left", ["changed command"]),
        (change_code, "right", ["work.py modified"]),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_change_is_said_in_words_and_dvc_agrees(
    toy: ToyProject, change: object, stage: str, reason: list[str]
) -> None:
    assert callable(change)
    change(toy)
    assert why(toy, stage) == reason
    for other in STAGES:
        with Repo(str(toy.root)) as repo, repo.lock:
            truth = next(node for node in repo.index.stages if node.name == other).changed()
        assert bool(why(toy, other)) == truth, other


def test_a_change_of_a_value_back_is_restored_without_a_process(toy: ToyProject) -> None:
    before = toy.lock
    toy.set("finetune.head_lr", 0.0003)
    assert not restore(toy.root, "left")
    assert why(toy, "left") == ["finetune.head_lr 0.0005 -> 0.0003"]
    toy.dvc("repro")
    toy.set("finetune.head_lr", 0.0005)
    assert restore(toy.root, "left")
    assert restore(toy.root, "join")
    assert toy.lock == before
    assert "head_lr: 0.0005" in toy.read("out/join.txt")
    assert "Data and pipelines are up to date." in toy.dvc("status")


def test_nothing_is_restored_for_what_never_ran_or_lacks_its_inputs(fresh_toy: ToyProject) -> None:
    assert not restore(fresh_toy.root, "fetch")
    assert not restore(fresh_toy.root, "join")


def hold_left(toy: ToyProject, command: str) -> None:
    """Let the process that started this one hold a file as `dvc repro` does."""
    holder = {"pid": os.getppid(), "cmd": command}
    held = {"write": {str(toy.root / "out/left.txt"): holder}, "read": {}}
    toy.write(".dvc/tmp/rwlock", json.dumps(held))


def test_files_that_another_process_holds_are_not_restored(toy: ToyProject) -> None:
    (toy.root / "out/left.txt").unlink()
    hold_left(toy, " ".join(psutil.Process(os.getppid()).cmdline()[:2]))
    at_work = f"another run is at work (process {os.getppid()})"
    with pytest.raises(GraphError, match=re.escape(at_work)):
        restore(toy.root, "left")
    assert why(toy, "left") == [at_work]


def test_a_lock_that_is_left_over_is_told_with_the_file_to_delete(toy: ToyProject) -> None:
    hold_left(toy, "dvc repro of long ago")
    (reason,) = why(toy, "left")
    assert tells(reason, "rwlock names process", "what held the lock has died. Delete that file")
    toy.write(".dvc/tmp/rwlock", '{"write": {"/so')
    assert why(toy, "left") == [".dvc/tmp/rwlock was cut off. Delete that file"]


def test_runs_of_the_same_from_the_same_have_one_key(toy: ToyProject) -> None:
    before = run_key(toy.root, "left")
    assert run_key(toy.root, "right") != before
    toy.set("finetune.head_lr", 0.0003)
    assert run_key(toy.root, "left") != before
    toy.set("finetune.head_lr", 0.0005)
    assert run_key(toy.root, "left") == before
    (toy.root / "out/fetch.txt").unlink()
    assert run_key(toy.root, "left").startswith("left-")


def test_new_entries_of_the_lock_come_in_the_order_of_the_graph(fresh_toy: ToyProject) -> None:
    fresh_toy.dvc("repro", "fetch")
    before = locked_stages(fresh_toy.root)
    for stage in ("right", "left", "join"):
        fresh_toy.dvc("repro", "--single-item", stage)
    assert locked_stages(fresh_toy.root) == ["fetch", "right", "left", "join"]
    order_lock(fresh_toy.root, read_graph(fresh_toy.root), before)
    assert locked_stages(fresh_toy.root) == STAGES
    ordered = fresh_toy.lock
    (fresh_toy.root / "dvc.lock").unlink()
    fresh_toy.dvc("repro")
    assert fresh_toy.lock == ordered


def test_outs_that_git_keeps_are_named(toy: ToyProject) -> None:
    assert uncached_outs(toy.root) == []
    toy.write(
        "dvc.yaml",
        GRAPH.replace("outs: [out/left.txt]", "metrics: [{out/left.txt: {cache: false}}]"),
    )
    assert uncached_outs(toy.root) == ["out/left.txt"]


@pytest.mark.parametrize("above", ["..", "{}"], ids=["relative", "absolute"])
def test_a_commit_is_judged_by_what_git_holds_alone(
    toy: ToyProject, tmp_path: Path, above: str
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.png", ".DS_Store"):
        (images / name).write_text(name)
    toy.write(".dvcignore", ".DS_Store\n")
    toy.need()
    toy.set("ingest.source", f"{above.format(tmp_path)}/images")
    toy.dvc("repro")
    toy.commit("Images from elsewhere")
    assert why(toy, "fetch") == []
    assert stale_at(toy.root, "HEAD") == {}
    toy.write("source.txt", "other\n")
    toy.commit("Not run")
    assert stale_at(toy.root, "HEAD") == {"fetch": ["source.txt modified"]}


def test_all_stages_are_chosen_where_none_is_named() -> None:
    assert choose_stages(DIAMOND, []) == DIAMOND


def test_named_stages_come_in_the_order_of_the_graph() -> None:
    assert names(choose_stages(DIAMOND, ["d", "b", "d"])) == ["b", "d"]


def test_an_unknown_stage_is_told_with_the_nearest_names() -> None:
    graph = [Stage(name, (), (), ()) for name in ("finetune", "baseline", "report")]
    with pytest.raises(GraphError) as error:
        choose_stages(graph, ["fintune", "report", "nothing"])
    near, far = str(error.value).splitlines()
    for line, name in ((near, "'fintune'"), (far, "'nothing'")):
        assert tells(line, name, "dvc.yaml", "finetune, baseline, report")
    assert "Did you mean finetune?" in near
    assert "Did you mean" not in far


def test_upstream_is_transitive_and_without_siblings() -> None:
    assert all_upstream(DIAMOND, "d") == ["a", "b", "c"]
    assert all_upstream(DIAMOND, "b") == ["a"]
    assert all_upstream(DIAMOND, "e") == []


def test_made_paths_are_outs_and_tracked_files(toy: ToyProject) -> None:
    assert made_paths(toy.root) == {f"out/{stage}.txt" for stage in STAGES}


def test_the_root_is_found_from_below(toy: ToyProject) -> None:
    assert find_root(toy.root / "out") == toy.root


def test_a_folder_outside_any_project_is_told_with_the_command_to_run(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=rf"{tmp_path}.*project's folder.*`dvc init`"):
        find_root(tmp_path)


def test_a_project_without_git_is_told_what_to_type(toy: ToyProject) -> None:
    shutil.rmtree(toy.root / ".git")
    with pytest.raises(GraphError, match=r"not a git repository.*`git init`.*no_scm"):
        read_graph(toy.root)
    toy.write(".dvc/config.local", "[core]\n    no_scm = true\n")
    assert names(read_graph(toy.root)) == STAGES


def test_a_project_without_stages_is_told(toy: ToyProject) -> None:
    toy.write("dvc.yaml", "stages: {}\n")
    with pytest.raises(GraphError, match="holds no stage"):
        read_graph(toy.root)


@pytest.mark.parametrize("source", ["", "."])
def test_a_source_that_dvc_stumbles_over_is_told_in_our_words(toy: ToyProject, source: str) -> None:
    toy.need()
    toy.set("ingest.source", source)
    with pytest.raises(ParamsError, match=rf"params\.yaml:\d+: ingest\.source is '{source}'"):
        read_graph(toy.root)


def test_names_that_dvc_cannot_hash_are_told_in_our_words(toy: ToyProject) -> None:
    toy.need()
    toy.set("ingest.source", "pictures")
    (toy.root / "pictures" / os.fsdecode(b"caf\xe9")).mkdir(parents=True)
    (toy.root / "pictures" / os.fsdecode(b"caf\xe9") / "1.png").touch()
    with pytest.raises(DataError, match=r"(?s)pictures: 1 name .*caf\\xe9"):
        read_state(toy.root)


def test_a_broken_graph_is_told_in_dvcs_own_words(toy: ToyProject) -> None:
    toy.write("dvc.yaml", GRAPH.replace("cmd:", "command:"))
    with pytest.raises(GraphError, match=r"dvc\.yaml.*'fetch'.*'command'"):
        read_graph(toy.root)


def test_what_another_clone_made_is_fetched_from_the_remote(
    toy: ToyProject, tmp_path: Path
) -> None:
    toy.dvc("remote", "add", "--default", "shelf", str(tmp_path / "shelf"))
    toy.commit("Add a remote")
    other = ToyProject(tmp_path / "other")
    shutil.copytree(toy.root, other.root, symlinks=True)
    for project in (toy, other):
        project.set("finetune.head_lr", 0.0003)
    other.dvc("repro", "left")
    other.dvc("push", "--run-cache")
    toy.dvc("fetch", "--run-cache")
    assert not restore(toy.root, "left")
    assert restore(toy.root, "left", pull=True)
    assert toy.read("out/left.txt") == other.read("out/left.txt")
    assert toy.lock == other.lock
