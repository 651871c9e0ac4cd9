"""The proof of the decision: who gets which images, what the cells keep, regret, the page."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bench.arms import describe_phases, halves, transfer_by
from bench.cells import Cell, CellArm, Said, Task, append_row, nearest_arm, read_cells, read_said
from bench.decisions import Bench, main, order_work, parse, stages_before
from bench.decisions_page import (
    advise_by_domain,
    count_right,
    explain_loss,
    gather_strategies,
    write_page,
)
from bench.left_out import leave_one_set_out
from bench.pools import corrupt
from bench.regret import (
    RANDOM,
    complete,
    constant,
    follow,
    judge_all,
    judge_choice,
    mean_over_sets,
)
from bench.studies import Study
from bench.subsets import ALL, choose_subset
from conftest import ROOT
from test_decide import INFO, found_by_baseline, make_manifest
from tiny_finetune import record_of

from tasks.artifacts.records import write_record
from tasks.artifacts.tables import ManifestRow, write_manifest
from tasks.params import Params
from tasks.training.phases import PhasePlan
from tasks.transferability.doubts import PROVEN

ARMS: tuple[CellArm, ...] = ("frozen", "top", "most", "all")


def cell(arm: CellArm, accuracy: float, **values: object) -> Cell:
    """An arm that ships its own model."""
    known = Cell(
        set="a", images_per_class="10", seed=17, px=96, arm=arm, code="c", train_images=30,
        val_images=15, test_images=100, classes=3, val_accuracy=0.5, val_loss=1.0,
        test_accuracy=accuracy, test_a=accuracy, test_b=accuracy, shipped="finetuned",
        shipped_accuracy=accuracy, shipped_a=accuracy, shipped_b=accuracy, seconds=10.0, epochs=2,
        phases="6:2:kept:4.0 4:5:lost:6.0", raised=False,
    )  # fmt: skip
    return replace(known, **values)


def said(arm: CellArm, **values: object) -> Said:
    """A decision for an arm."""
    known = Said(
        set="a", images_per_class="10", seed=17, px=96, decider="rules", images=30, classes=3,
        groups=8, mmd=0.3, mmd_p_value=0.01, shift=0.2, gain=0.4, ridge_accuracy=0.5, domain="far",
        chosen="fine_tune", cuts="6", arm=arm, confidence="high", seconds=3.0,
    )  # fmt: skip
    return replace(known, **values)


def arms_of(*accuracies: float, **values: object) -> dict[CellArm, Cell]:
    """The four transfer arms of a task."""
    pairs = zip(ARMS, accuracies, strict=True)
    return {arm: cell(arm, accuracy, **values) for arm, accuracy in pairs}


def cells_of(sets: dict[str, tuple[float, ...]]) -> list[Cell]:
    """Two seeds of each set, with these accuracies of the arms."""
    return [
        one
        for name, accuracies in sets.items()
        for seed in (17, 18)
        for one in arms_of(*accuracies, set=name, seed=seed).values()
    ]


# who gets which images ---------------------------------------------------------------------------


def pool_rows(images: int, classes: int = 2) -> list[ManifestRow]:
    """Images of a few classes, each two of one group."""
    return [
        ManifestRow(
            path=f"{number}.png", label=str(number % classes), split="train",
            group=f"g{number // (2 * classes)}-{number % classes}", sha256=f"{number:064x}",
            width=9, height=9, mode="RGB",
        )
        for number in range(images)
    ]  # fmt: skip


def counts(subset, rows) -> Counter[tuple[str, str]]:  # type: ignore[no-untyped-def]
    return Counter((row.split, row.label) for row in subset.rows(rows))


def test_a_small_user_has_a_small_val_and_the_test_set_of_all_others(default_params: Params):
    rows = pool_rows(400)
    few, more, every = (
        choose_subset(rows, level, default_params.ingest, seed=17) for level in ("10", "50", ALL)
    )
    for label in ("0", "1"):
        assert counts(few, rows)["train", label] == 10
        assert counts(few, rows)["val", label] == 5
        assert counts(more, rows)["train", label] == 50
        assert counts(more, rows)["val", label] == 17
    assert few.of("test") == more.of("test") == every.of("test")
    assert set(few.of("train")) < set(more.of("train")) < set(every.of("train"))
    assert set(few.of("val")) < set(more.of("val"))


def test_no_group_of_a_subset_lies_in_two_splits(default_params: Params):
    rows = pool_rows(400)
    chosen = choose_subset(rows, ALL, default_params.ingest, seed=18).rows(rows)
    splits = {row.group: {other.split for other in chosen if other.group == row.group}
              for row in chosen}  # fmt: skip
    assert {len(found) for found in splits.values()} == {1}


def test_a_level_above_what_the_classes_hold_is_left_out(default_params: Params):
    assert choose_subset(pool_rows(200), "100", default_params.ingest, seed=17) is None


def test_corrupted_images_have_few_levels_and_noise():
    clean = np.full((32, 32, 3), 120, np.uint8)
    corrupted = corrupt(clean, np.random.default_rng(1))
    assert set(np.unique(corrupted)) <= {0, 85, 170, 255}
    assert corrupted.std() > 40


# what the cells keep -----------------------------------------------------------------------------


def test_rows_are_read_as_they_were_added_and_the_last_of_a_task_counts(tmp_path: Path):
    for one in (cell("top", 0.4), cell("most", 0.5), cell("top", 0.6)):
        append_row(tmp_path / "cells.csv", one)
    assert read_cells(tmp_path / "cells.csv") == [cell("top", 0.6), cell("most", 0.5)]
    append_row(tmp_path / "evidence.csv", said("top", mmd=None))
    assert read_said(tmp_path / "evidence.csv") == [said("top", mmd=None)]
    assert read_cells(tmp_path / "none.csv") == []


def test_a_run_goes_on_with_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    given = ["--set", "a=/a", "--seeds", "17", "--levels", "10", "--out", str(tmp_path),
             "--decider", "rules"]  # fmt: skip
    bench = Bench(parse(given))
    append_row(tmp_path / "cells.csv", cell("top", 0.4))
    append_row(tmp_path / "evidence.csv", said("top"))
    trained = []
    monkeypatch.setattr(Bench, "open_study", lambda *_: "study")
    monkeypatch.setattr(Bench, "train", lambda _, study, task, arm: trained.append((task, arm)))
    assert bench.run() == 0
    task = ("a", "10", 17, 96)
    assert trained == [(task, arm) for arm in ("frozen", "most", "all", "other", "scratch")]
    trained.clear()
    assert Bench(parse([*given, "--arms", "top", "most"])).run() == 0
    assert trained == [(task, "most")]


def test_what_fails_does_not_stop_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    given = ["--set", "a=/a", "--seeds", "17", "--levels", "10", "--out", str(tmp_path)]
    monkeypatch.setattr(Bench, "open_study", lambda *_: 1 / 0)
    assert Bench(parse(given)).run() == 6


def test_a_decider_may_have_values_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    shares: list[float] = []

    def look(fork: Study, task: Task, decider: str) -> Said:
        shares.append(fork.params.race.share)
        return said("most", decider=decider)

    monkeypatch.setattr(Study, "fork", lambda study, _: study)
    monkeypatch.setattr("bench.decisions.decide", look)
    given = ["--out", str(tmp_path), "--decider", "a race", "--values", "race.share=1.0"]
    Bench(parse(given)).decide(Study(tmp_path), ("a", "10", 17, 96))
    assert shares == [1.0]
    assert read_said(tmp_path / "evidence.csv") == [said("most", decider="a race")]


def test_few_images_of_all_sets_come_first_and_scratch_late():
    work = order_work(["a", "b"], ["10", "50", "all"], [17, 18], 96)
    assert len(work) == len(set(work)) == 2 * 3 * 2 * 6
    assert {task[1:3] for task, _ in work[:20]} == {("10", 17), ("50", 17)}
    assert "scratch" not in {arm for _, arm in work[:40]}
    assert {task[1] for task, _ in work[:44]} == {"10", "50"}


def test_a_depth_is_looked_up_at_the_nearest_arm():
    blocks = [1, 1, 2, 2, 3, 3, 4, 1]
    assert nearest_arm("feature_extraction", [], blocks) == "frozen"
    assert nearest_arm("scratch", [0], blocks) == "scratch"
    assert [nearest_arm("fine_tune", [7, cut], blocks) for cut in (7, 6, 5, 4, 2, 1, 0)] == [
        "top", "top", "top", "most", "all", "all", "all",
    ]  # fmt: skip


def test_the_stages_that_a_decision_rests_on_are_those_of_the_graph():
    found = stages_before("decide")
    assert "similarity" in found
    assert not {"ingest", "augment", "extract", "decide", "finetune"} & set(found)


@pytest.mark.parametrize(("images", "raised"), [(10, False), (50, True)])
def test_an_arm_has_the_phases_and_rates_that_the_rules_give_its_depth(
    tmp_path: Path, images: int, raised: bool
):
    study = Study(tmp_path)
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    write_manifest(study.path("ingest/manifest.csv"), make_manifest(2 * images, 2))
    baseline = found_by_baseline().model_copy(update={"overfit": 5.0})
    write_record(study.path("baseline/baseline.json"), baseline)
    write_record(study.path("extract/backbone.json"), INFO)
    shallow, deep = (transfer_by(arm, study) for arm in ("top", "all"))
    assert shallow.raised is deep.raised is raised
    most, other = (transfer_by(arm, study) for arm in ("most", "other"))
    assert other == most.model_copy(update={"raised": not raised})
    assert shallow.phases[-1] > deep.phases[-1] == 0
    assert not transfer_by("scratch", study).raised


def test_phases_are_told_with_their_time_and_fate():
    plan = PhasePlan(1, 2, "", unfrozen_from=6, epochs=1, patience=3, rates={}, share=1.0,
                     adapt_norm=False)  # fmt: skip
    phases = [record_of(plan), record_of(replace(plan, unfrozen_from=4), kept=False)]
    told = describe_phases(phases, [100.0, 104.0, 110.5])
    assert told == "6:1:kept:4.0 4:1:lost:6.5"
    assert cell("top", 0.5, phases=told).lost_seconds == 6.5
    assert cell("frozen", 0.5, phases="").lost_seconds == 0


def test_halves_share_every_class():
    labels = [0, 1, 0, 1, 0, 1, 0, 1]
    right = np.array([True, False, False, False, True, False, False, False])
    assert halves(right, labels) == (0.5, 0.0)


# regret ------------------------------------------------------------------------------------------


def test_regret_is_what_the_best_arm_has_more():
    arms = arms_of(0.6, 0.7, 0.65, 0.5)
    assert judge_choice(arms, constant("top")).regret == pytest.approx(0)
    assert judge_choice(arms, constant("all")).regret == pytest.approx(20)
    assert judge_choice(arms, RANDOM).regret == pytest.approx(70 - 61.25)


def test_scratch_counts_where_it_was_trained():
    arms = arms_of(0.6, 0.7, 0.65, 0.5) | {"scratch": cell("scratch", 0.8)}
    assert judge_choice(arms, constant("top")).regret == pytest.approx(10)
    assert judge_choice(arms, RANDOM).regret == pytest.approx(80 - 65)


def test_the_regret_by_halves_has_no_luck_in_it():
    arms = arms_of(0.5, 0.5, 0.5, 0.5)
    arms["top"] = cell("top", 0.5, shipped_a=0.6, shipped_b=0.4)
    outcome = judge_choice(arms, constant("frozen"))
    assert outcome.regret == 0
    assert outcome.unbiased == pytest.approx(-5)


def test_the_time_of_an_arm_holds_that_of_the_head_and_what_was_lost():
    outcome = judge_choice(arms_of(0.6, 0.7, 0.65, 0.5), constant("most"))
    assert (outcome.seconds, outcome.lost) == (20.0, 6.0)
    frozen = judge_choice(arms_of(0.6, 0.7, 0.65, 0.5, phases=""), constant("frozen"))
    assert (frozen.seconds, frozen.lost) == (10.0, 0.0)


def test_only_tasks_whose_transfer_arms_are_all_there_count():
    cells = cells_of({"a": (0.6, 0.7, 0.65, 0.5)})
    assert len(complete(cells)) == 2
    assert list(complete(cells[1:])) == [("a", "10", 18, 96)]
    choices = follow(complete(cells), [said("most"), said("scratch", seed=18)], "rules")
    assert choices == {("a", "10", 17, 96): {"most": 1.0}}


def test_sets_count_alike_however_many_tasks_they_have():
    done = complete(
        [*cells_of({"a": (0.6, 0.7, 0.7, 0.7)}), *arms_of(0.6, 0.9, 0.9, 0.9, set="b").values()]
    )
    outcomes = [judge_choice(arms, constant("frozen")) for arms in done.values()]
    found = mean_over_sets(outcomes, lambda one: one.regret)
    assert found.value == pytest.approx(20)
    assert (found.low, found.high) == (pytest.approx(10), pytest.approx(30))


def test_a_table_learns_from_the_other_sets_what_distance_means():
    near, far = (0.8, 0.7, 0.6, 0.5), (0.5, 0.6, 0.7, 0.8)
    done = complete(cells_of({"a": near, "b": near, "c": far, "d": far, "e": far}))
    distances = {"a": 0.1, "b": 0.2, "c": 0.8, "d": 0.9, "e": 1.0}
    known = [said("top", set=task[0], seed=task[2], mmd=distances[task[0]]) for task in done]
    chosen = leave_one_set_out(done, known, lambda one: one.mmd or 0.0)
    arms = {task[0]: next(iter(choice)) for task, choice in chosen.items()}
    assert arms == {"a": "frozen", "b": "frozen", "c": "all", "d": "all", "e": "all"}


def test_a_table_knows_nothing_of_the_set_left_out_nor_of_its_kin():
    done = complete(cells_of({"a": (0.8, 0.7, 0.6, 0.5), "b": (0.8, 0.7, 0.6, 0.5)}))
    odd = complete(cells_of({"c": (0.1, 0.1, 0.1, 0.9), "c-corrupted": (0.1, 0.1, 0.1, 0.9)}))
    known = [said("top", set=task[0], seed=task[2]) for task in done | odd]
    chosen = leave_one_set_out({**done, **odd}, known, lambda one: one.mmd or 0.0)
    assert chosen["c", "10", 17, 96] == {"frozen": 1.0}
    assert chosen["c-corrupted", "10", 18, 96] == {"frozen": 1.0}


def test_sets_of_the_same_images_are_resampled_together():
    done = complete(cells_of({"a": (0.5, 0.5, 0.5, 0.5), "a-corrupted": (0.5, 0.5, 0.5, 0.9)}))
    outcomes = [judge_choice(arms, constant("frozen")) for arms in done.values()]
    found = mean_over_sets(outcomes, lambda one: one.regret)
    assert (found.low, found.value, found.high) == (pytest.approx(20),) * 3


def test_a_loss_is_explained_by_val_or_by_depth():
    arms = arms_of(0.6, 0.7, 0.65, 0.5)

    def explained(arm: CellArm) -> str:
        return explain_loss(arms, arm, judge_choice(arms, constant(arm)))

    assert explained("frozen") == "too shallow"
    assert explained("all") == "val (15 images) shipped the arm's model, the worse one on test"
    assert explained("most") == "too deep"
    arms["other"] = cell("other", 0.8, raised=True)
    assert explained("most") == "rates too low"
    assert explained("frozen") == "too shallow"
    assert explained("all") == "too deep"
    arms["scratch"] = cell("scratch", 0.9)
    assert explained("most") == "nothing was worth transferring"
    arms["scratch"] = cell("scratch", 0.9, shipped_a=1.0, shipped_b=0.6)
    assert explained("other").startswith("luck of the best arm")


@pytest.mark.parametrize(
    ("domain", "images", "arm"),
    [("similar", 60, "frozen"), ("similar", 63, "top"), ("intermediate", 60, "top"),
     ("far", 60, "most")],
)  # fmt: skip
def test_the_advice_of_guides_goes_deeper_the_farther_the_domain(
    domain: str, images: int, arm: str
):
    assert advise_by_domain(said("all", domain=domain, images=images)) == arm


def test_what_decisions_say_of_others_like_them_is_what_the_cells_say():
    folder = ROOT / "docs/benchmarks/decisions"
    cells, known = complete(read_cells(folder / "cells.csv")), read_said(folder / "evidence.csv")
    stated = {one.task: one.confidence for one in known if one.decider == "today"}
    outcomes = judge_all(cells, follow(cells, known, "today"))
    assert len({task[0] for task in cells}) == 7, "decision_words.py says how many sets"
    assert {task[3] for task in cells} == {96}, "and their size"
    for confidence, proven in PROVEN.items():
        found = [one for one in outcomes if stated[one.task] == confidence]
        assert (len(found), count_right(found)) == proven, confidence


@pytest.mark.slow
def test_the_committed_page_is_of_the_committed_cells(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    page = Path("docs/decisions.md").read_text()
    monkeypatch.setattr(Path, "write_text", lambda _, text: written.append(text))
    written: list[str] = []
    assert main(["--page"]) == 0
    assert written == [page]


def test_rates_that_are_the_same_for_all_are_strategies_of_their_own():
    done = complete([
        *arms_of(0.6, 0.7, 0.7, 0.7).values(), cell("other", 0.9, raised=True),
        *(replace(one, raised=True) for one in arms_of(0.6, 0.7, 0.7, 0.7, seed=18).values()),
        cell("other", 0.5, seed=18), *arms_of(0.6, 0.7, 0.7, 0.7, seed=19).values(),
    ])  # fmt: skip
    every = gather_strategies(done, [])
    written, raised = (
        every[f"always the upper two thirds, rates {one}"] for one in ("as written", "raised")
    )
    assert [task[2] for task in written] == [17, 18, 19]
    assert list(written.values()) == [{"most": 1.0}, {"other": 1.0}, {"most": 1.0}]
    assert list(raised.values()) == [{"other": 1.0}, {"most": 1.0}]


def test_the_page_holds_regrets_confidence_and_losses():
    cells = cells_of({"a": (0.6, 0.7, 0.65, 0.5), "b": (0.6, 0.7, 0.65, 0.5), "c": (0.5,) * 4})
    known = [said("frozen", set=one.set, seed=one.seed) for one in cells if one.arm == "top"]
    page = write_page(cells, known, "make bench-decisions")
    assert "24 cells of 6 tasks" in page
    assert "| rules | 6 | 6.7 [0.0, 10.0] |" in page
    assert "| always the top third | 6 | 0.0 [0.0, 0.0] |" in page
    assert "| rules | high | 6 | 2 | 6.7 | 6.7 |" in page
    assert (
        "| a | 10 | 17 | frozen, 60.0 | top, 70.0 | 10.0 | 10.0 | 0.300 | 0.40 | too shallow |"
        in page
    )


def test_the_makefile_names_the_command():
    assert "python -m bench.decisions" in (ROOT / "Makefile").read_text()
