"""`regraft promote`: what comes into use, by whom, and what a kill leaves."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT, tells
from owls import MODEL, in_use, record, silent, use
from test_cli import regraft, said, stopped
from toy import ToyProject

from flows.commands import promote
from flows.commands.doctor import check_model_in_use
from flows.commands.promote import find_commit, go_back, judge_candidate, put_into_use
from flows.errors import PromotionError
from flows.stages.in_use import LINK
from flows.stages.registry import read_registry
from tasks.delivery.folder import read_delivered

pytest_plugins = ["toy_fixtures", "owl_fixtures"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning:dvc"),
]

# on the command line ------------------------------------------------------------------------------


def test_a_person_walks_there_and_back(owls: ToyProject) -> None:
    text = said(owls.root, "promote", "HEAD")
    assert tells(text, "no model is in use yet", "classifier@v1.0.0 is in use: models/prod")
    assert in_use(owls) == "first"

    text = stopped(owls.root, "promote", "dull-owl")
    assert tells(text, "50.0 -> 55.0 %", "not better beyond doubt", '--approve "REASON"')
    assert "2 candidates were judged on these 20 test images so far" in text
    assert in_use(owls) == "first"

    text = said(owls.root, "promote", "dull-owl", "--approve", "fewer misses of b")
    assert "classifier@v2.0.0 is in use" in text
    assert in_use(owls) == "dull-owl"
    why = record(owls, 2)
    assert (why["decision"], why["why"]) == ("approved", "fewer misses of b")
    assert why["by"] == "Toy <toy@localhost>"

    text = stopped(owls.root, "promote", "bad-owl", "--approve", "I like it")
    assert tells(text, "worse beyond doubt: nothing changed, and no approval")
    assert in_use(owls) == "dull-owl"

    text = said(owls.root, "promote", "swift-owl")
    assert tells(text, "99.2 % interval", "better beyond doubt", "4 candidates")
    assert "classifier@v3.0.0" in text

    assert "classifier@v2.0.0 is in use" in said(owls.root, "promote", "--back")
    assert in_use(owls) == "dull-owl"
    assert "classifier@v1.0.0 is in use" in said(owls.root, "promote", "--back")
    assert in_use(owls) == "first"
    assert "there is no model before" in stopped(owls.root, "promote", "--back")
    assert len(owls.git("tag", "--list").split()) == 8  # 3 versions, 5 times into use


def test_what_is_typed_wrong_is_told(owls: ToyProject) -> None:
    assert "name a candidate" in stopped(owls.root, "promote")
    assert "give --back alone" in stopped(owls.root, "promote", "HEAD", "--back")
    assert regraft(owls.root, "promote", "-x")[0] == 2
    text = stopped(owls.root, "promote", "HEAD", "--approve", os.fsdecode(b"caf\xe9"))
    assert tells(text, "--approve: the reason is no UTF-8")
    text = stopped(owls.root, "promote", "--", "--upload-pack=touch bad")
    assert text.count("\n") == 1
    assert owls.git("tag", "--list") == ""


@pytest.mark.parametrize(
    "name",
    [
        "\0",
        "\ud800",
        "-x",
        "$(touch bad)",
        "--all",
        "@{",
        "a b",
        "",
        "HEAD..main",
        "a\nb",
        "workspace",
    ],
)
def test_no_name_is_more_than_a_name(owls: ToyProject, name: str) -> None:
    before = sorted(owls.root.iterdir())
    with pytest.raises(PromotionError):
        find_commit(owls.root, name)
    assert sorted(owls.root.iterdir()) == before


def test_experiments_of_one_name_are_told_apart_by_their_commits(owls: ToyProject) -> None:
    owls.commit("Later")
    owls.git("update-ref", f"refs/exps/ab/{'c' * 38}/swift-owl", "HEAD")
    with pytest.raises(PromotionError, match="several experiments are called swift-owl"):
        find_commit(owls.root, "swift-owl")


# the rules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("candidate", "finding"),
    [
        ("swift-owl", "better"),
        ("dull-owl", "no better"),
        ("bad-owl", "worse"),
        ("new-owl", "other images"),
        ("HEAD", "in use"),
    ],
)
def test_what_the_test_images_say(used: ToyProject, candidate: str, finding: str) -> None:
    verdict = judge_candidate(used.root, candidate, silent)
    assert verdict.finding == finding
    assert verdict.by_itself == ("better" if finding == "better" else None)
    assert in_use(used) == "first"


def test_the_record_holds_the_figures(used: ToyProject) -> None:
    use(used, "swift-owl")
    told = record(used, 2)
    assert (told["decision"], told["candidate"], told["by"]) == ("better", "swift-owl", "Ada")
    figures = told["figures"]
    assert (figures["against"], figures["test_images"]) == ("classifier@v1.0.0", 20)
    assert (figures["before"], figures["after"]) == (0.5, 1.0)
    assert figures["gain"]["value"] == pytest.approx(0.5)
    assert figures["gain"]["low"] > 0
    assert record(used, 1)["figures"]["test_set"] == figures["test_set"]


def test_every_candidate_counts_once_whatever_became_of_it(used: ToyProject) -> None:
    judged = [
        judge_candidate(used.root, owl, silent).figures
        for owl in ("bad-owl", "dull-owl", "bad-owl")
    ]
    assert [figures.judged for figures in judged if figures] == [2, 3, 3]
    rates = [1 - figures.confidence for figures in judged if figures]
    assert rates == pytest.approx([0.05, 0.05 / 3, 0.05 / 3])  # of the first comparison and second
    fresh = judge_candidate(used.root, "new-owl", silent).figures  # on other images
    assert fresh is not None
    assert fresh.judged == 1
    use(used, "dull-owl", "why not")
    (used.root / promote.JUDGED).unlink()  # as in another clone, which has the tags alone
    again = judge_candidate(used.root, "swift-owl", silent).figures
    assert again is not None
    assert again.judged == 4


def test_all_candidates_together_keep_one_rate_of_promotions_by_chance() -> None:
    assert promote.interval_confidence(1) == pytest.approx(0.95)
    spent = [
        (1 - promote.interval_confidence(k)) / 2 for k in range(1, 100_001)
    ]  # one side of each
    assert sum(spent) == pytest.approx(promote.ERROR_RATE, rel=1e-4)
    assert sum(spent) < promote.ERROR_RATE


def test_results_that_are_stale_do_not_come_into_use(used: ToyProject) -> None:
    used.set("finetune.head_lr", 0.25)
    used.commit("Not run")
    with pytest.raises(PromotionError) as error:
        judge_candidate(used.root, "HEAD", silent)
    assert tells(str(error.value), "1 stage of it stale", "left (finetune.head_lr 0.0005 -> 0.25)")


def test_a_model_that_is_not_whole_does_not_come_into_use(used: ToyProject) -> None:
    (used.root / MODEL / "labels.txt").unlink()
    used.dvc("add", MODEL)
    used.commit("Half")
    with pytest.raises(PromotionError, match=r"data/report/model: labels\.txt is missing"):
        judge_candidate(used.root, "HEAD", silent)
    used.git("rm", "--quiet", f"{MODEL}.dvc")
    used.commit("None")
    with pytest.raises(PromotionError, match="holds no data/report/model"):
        judge_candidate(used.root, "HEAD", silent)
    assert in_use(used) == "first"


def test_another_model_meanwhile_is_told(used: ToyProject) -> None:
    verdict = judge_candidate(used.root, "swift-owl", silent)
    use(used, "dull-owl", "why not")
    with pytest.raises(PromotionError, match=r"classifier@v2\.0\.0 came into use meanwhile"):
        put_into_use(used.root, verdict, "better", "Ada", "", silent)
    assert in_use(used) == "dull-owl"


# what lasts ---------------------------------------------------------------------------------------


def test_an_experiment_in_use_outlives_its_removal_and_a_lost_folder(
    used: ToyProject, tmp_path: Path
) -> None:
    use(used, "swift-owl")
    used.dvc("exp", "remove", "--all-commits")
    used.git("gc", "--quiet", "--prune=now")
    used.dvc("gc", "--workspace", "--all-tags", "--force")
    shutil.rmtree(used.root / "models")
    assert "classifier@v2.0.0, which is in use" in said(used.root, "promote", "classifier#prod#2")
    assert in_use(used) == "swift-owl"
    words = ["get", str(used.root), "classifier", "--stage", "prod", "--out", str(tmp_path / "got")]
    used.dvc("artifacts", *words)  # DVC finds it by the tags
    assert (tmp_path / "got/model.safetensors").read_text() == "swift-owl"
    assert in_use(used) == "swift-owl"
    go_back(used.root, "Ada", silent)
    assert in_use(used) == "first"


def test_gc_without_tags_loses_it_and_another_may_still_come(used: ToyProject) -> None:
    use(used, "swift-owl")
    used.dvc("gc", "--workspace", "--force")
    shutil.rmtree(used.root / "models")
    told: list[str] = []
    assert judge_candidate(used.root, "HEAD", told.append).finding == "no results"
    assert tells(told[0], "the model in use is not here", "not in DVC's cache", "dvc fetch")


def test_only_the_models_that_are_needed_lie_there(used: ToyProject) -> None:
    for owl in ("dull-owl", "swift-owl", "new-owl"):
        use(used, owl, "why not")
    judge_candidate(used.root, "bad-owl", silent)
    registry = read_registry(used.root)
    named = {one.commit[:12] for one in registry.line[-2:]} | {
        find_commit(used.root, "bad-owl")[:12]
    }
    assert {path.name for path in (used.root / "models").iterdir() if path.is_dir()} == {
        *named,
        "prod",
    }


def test_what_is_in_the_way_of_the_link_is_told(owls: ToyProject) -> None:
    owls.write("models/prod/mine.txt", "mine")
    with pytest.raises(PromotionError, match="move away what is there"):
        use(owls, "HEAD")
    assert owls.read("models/prod/mine.txt") == "mine"
    assert owls.git("tag", "--list") == ""


# a remote -----------------------------------------------------------------------------------------


@pytest.fixture
def shared(used: ToyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToyProject:
    """With a git remote and a DVC remote."""
    used.git("init", "--quiet", "--bare", "--initial-branch=main", str(tmp_path / "hub"))
    used.git("remote", "add", "hub", str(tmp_path / "hub"))
    used.dvc("remote", "add", "--default", "shelf", str(tmp_path / "shelf"))
    used.commit("Remotes")
    used.git("push", "--quiet", "hub", "main")
    used.dvc("push", MODEL)  # that of the first, which came into use without remotes
    monkeypatch.setenv("REGRAFT_GIT_REMOTE", "hub")
    return used


def test_a_clone_finds_what_is_in_use(shared: ToyProject, tmp_path: Path) -> None:
    use(shared, "swift-owl")
    other = ToyProject(tmp_path / "other")
    shared.git("clone", "--quiet", "--origin", "hub", str(tmp_path / "hub"), str(other.root))
    other.git("config", "user.name", "Toy")
    with pytest.raises(PromotionError, match="no model before"):
        go_back(other.root, "Ada", silent) and go_back(other.root, "Ada", silent)
    assert in_use(other) == "first"
    assert record(other, 3)["decision"] == "back"


def test_where_the_remote_refuses_nothing_changes(shared: ToyProject, tmp_path: Path) -> None:
    hook = tmp_path / "hub/hooks/pre-receive"
    hook.write_text("#!/bin/sh\necho prod is closed; exit 1\n")
    hook.chmod(0o755)
    before = shared.git("tag", "--list")
    with pytest.raises(PromotionError, match="prod is closed"):
        use(shared, "swift-owl")
    assert shared.git("tag", "--list") == before
    assert in_use(shared) == "first"


# killed, and read ---------------------------------------------------------------------------------

KILLED = """\
import os, pathlib, signal, sys
from flows.commands import promote
from flows.stages import graph, in_use, registry
place, number = sys.argv[1], int(sys.argv[2])
module, name = {modules}[place], place
real, calls = getattr(module, name), []
def killing(*arguments, **named):
    if place == "git" and arguments[1] != "update-ref":
        return real(*arguments, **named)
    calls.append(name)
    if len(calls) == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **named)
setattr(module, name, killing)
root = pathlib.Path.cwd()
verdict = promote.judge_candidate(root, "swift-owl", print)
promote.put_into_use(root, verdict, "better", "Ada", "", print)
"""
MODULES = (
    "{'copy_out': in_use, 'read_delivered': in_use, '_check': in_use, 'write_tags': promote, "
    "'git': registry, '_follow': promote, 'use_model': promote, 'remove_other_models': promote}"
)
TAGS_OF_TWO = [
    "classifier#prod#1",
    "classifier#prod#2",
    "classifier@v1.0.0",
    "classifier@v2.0.0",
]
POINTS = [
    ("copy_out", 1),
    ("_check", 1),
    ("read_delivered", 3),
    ("remove_other_models", 1),
    ("write_tags", 1),
    ("git", 1),  # before the tag of the version
    ("git", 2),  # between the two tags
    ("_follow", 3),  # after both
    ("use_model", 1),
]


def kill_promotion(toy: ToyProject, place: str, number: int) -> None:
    """Promote swift-owl in a process that kills itself at the n-th call of a function."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED.replace("{modules}", MODULES), place, str(number)],
        check=False,
        cwd=toy.root,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == -9


@pytest.mark.parametrize(("place", "number"), POINTS)
def test_a_kill_leaves_the_old_or_the_new_and_running_again_finishes(
    used: ToyProject, place: str, number: int
) -> None:
    kill_promotion(used, place, number)
    assert read_delivered(used.root / LINK)
    assert (used.root / LINK / "model.safetensors").read_text() == "first"
    text = said(used.root, "promote", "swift-owl")
    assert tells(text, "classifier@v2.0.0", "in use")
    assert in_use(used) == "swift-owl"
    assert sorted(used.git("tag", "--list").split()) == TAGS_OF_TWO
    assert not [path for path in (used.root / "models").iterdir() if path.name.endswith(".tmp")]


def test_a_kill_after_the_push_is_finished_too(shared: ToyProject, tmp_path: Path) -> None:
    kill_promotion(shared, "git", 1)
    hub = ToyProject(tmp_path / "hub")
    assert sorted(hub.git("tag", "--list").split()) == TAGS_OF_TWO
    assert len(shared.git("tag", "--list").split()) == 2
    assert judge_candidate(shared.root, "swift-owl", silent).finding == "in use"
    assert in_use(shared) == "swift-owl"
    assert sorted(shared.git("tag", "--list").split()) == TAGS_OF_TWO


def test_readers_see_a_whole_model_whatever_is_promoted(used: ToyProject) -> None:
    use(used, "swift-owl")
    link, seen, over = used.root / LINK, set(), threading.Event()
    troubles: list[Exception] = []

    def read() -> None:
        while not over.is_set():
            try:
                model = read_delivered(link)
                seen.add((model.folder / "model.safetensors").read_text())
            except Exception as err:  # whatever it is
                troubles.append(err)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(3):
        go_back(used.root, "Ada", silent)
        use(used, "swift-owl")
    over.set()
    reader.join()
    assert troubles == []
    assert seen == {"first", "swift-owl"}


# doctor -------------------------------------------------------------------------------------------


def test_doctor_tells_what_is_in_use_and_what_does_not_fit(used: ToyProject) -> None:
    (finding,) = check_model_in_use(used.root)
    assert (finding.level, finding.found) == ("ok", "classifier@v1.0.0 (models/prod)")
    (used.root / LINK / "labels.txt").write_text("c\n")
    (finding,) = check_model_in_use(used.root)
    assert (finding.level, finding.fix) == ("fault", "regraft promote classifier@v1.0.0")
    said(used.root, "promote", "classifier@v1.0.0")
    assert [one.level for one in check_model_in_use(used.root)] == ["ok"]
