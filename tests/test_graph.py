"""What flows/stages/graph.py relies on in DVC, pinned on real projects."""

import json
import os
from pathlib import Path

import pytest
from dvc.repo import Repo
from toy import GRAPH, STAGES, ToyProject

from flows.errors import GraphError
from flows.stages.graph import (
    Stage,
    all_upstream,
    choose_stages,
    find_root,
    made_paths,
    read_graph,
    why_stale,
)
from tasks.errors import ParamsError

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
        assert why_stale(toy.root, "sub/dvc.yaml:part") == ["never ran"]


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
    assert why_stale(toy.root, "source.txt.dvc") == []
    (toy.root / "source.txt").unlink()
    toy.write("source.txt", "other\n")
    assert why_stale(toy.root, "source.txt.dvc") == ["source.txt modified"]


def test_an_unchanged_stage_has_no_reason_to_run(toy: ToyProject) -> None:
    assert [why_stale(toy.root, stage) for stage in STAGES] == [[], [], [], []]


def test_a_stage_that_never_ran_says_so(fresh_toy: ToyProject) -> None:
    assert [why_stale(fresh_toy.root, stage) for stage in STAGES] == [["never ran"]] * 4


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
    assert why_stale(toy.root, stage) == reason
    for other in STAGES:
        with Repo(str(toy.root)) as repo, repo.lock:
            truth = next(node for node in repo.index.stages if node.name == other).changed()
        assert bool(why_stale(toy.root, other)) == truth, other


def test_a_stage_whose_files_another_process_holds_cannot_be_judged(toy: ToyProject) -> None:
    holder = {"pid": os.getppid(), "cmd": "dvc repro"}
    held = {"write": {str(toy.root / "out/left.txt"): holder}, "read": {}}
    toy.write(".dvc/tmp/rwlock", json.dumps(held))
    with pytest.raises(GraphError, match=rf"busy(.|\n)*PID {os.getppid()}"):
        why_stale(toy.root, "left")


def test_all_stages_are_chosen_where_none_is_named() -> None:
    assert choose_stages(DIAMOND, []) == DIAMOND


def test_named_stages_come_in_the_order_of_the_graph() -> None:
    assert names(choose_stages(DIAMOND, ["d", "b", "d"])) == ["b", "d"]


def test_an_unknown_stage_is_told_with_the_nearest_names() -> None:
    graph = [Stage(name, (), (), ()) for name in ("finetune", "baseline", "report")]
    with pytest.raises(GraphError) as error:
        choose_stages(graph, ["fintune", "report", "nothing"])
    assert str(error.value).splitlines() == [
        "'fintune' is no stage of dvc.yaml. Did you mean finetune? "
        "Stages: finetune, baseline, report.",
        "'nothing' is no stage of dvc.yaml. Stages: finetune, baseline, report.",
    ]


def test_upstream_is_transitive_and_without_siblings() -> None:
    assert all_upstream(DIAMOND, "d") == ["a", "b", "c"]
    assert all_upstream(DIAMOND, "b") == ["a"]
    assert all_upstream(DIAMOND, "e") == []


def test_made_paths_are_outs_and_tracked_files(toy: ToyProject) -> None:
    assert made_paths(toy.root) == {f"out/{stage}.txt" for stage in STAGES}


def test_the_root_is_found_from_below(toy: ToyProject) -> None:
    assert find_root(toy.root / "out") == toy.root


def test_a_folder_outside_any_project_is_told_with_the_command_to_run(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="run from the project's folder, or `dvc init`"):
        find_root(tmp_path)


def test_a_project_without_stages_is_told(toy: ToyProject) -> None:
    toy.write("dvc.yaml", "stages: {}\n")
    with pytest.raises(GraphError, match="holds no stage"):
        read_graph(toy.root)


@pytest.mark.parametrize("source", ["", "."])
def test_a_source_that_dvc_stumbles_over_is_told_in_our_words(
    toy: ToyProject, source: str
) -> None:
    toy.write("dvc.yaml", GRAPH.replace("source.txt]", "source.txt, '${ingest.source}']"))
    toy.set("ingest.source", source)
    with pytest.raises(ParamsError, match=rf"params\.yaml:\d+: ingest\.source is '{source}'"):
        read_graph(toy.root)


def test_a_broken_graph_is_told_in_dvcs_own_words(toy: ToyProject) -> None:
    toy.write("dvc.yaml", GRAPH.replace("cmd:", "command:"))
    with pytest.raises(GraphError, match=r"dvc\.yaml.*'fetch'.*'command'"):
        read_graph(toy.root)
