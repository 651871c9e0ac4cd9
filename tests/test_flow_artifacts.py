"""What a run leaves on its page; the numbers are those of the records."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import httpx
import pytest
from conftest import tells
from made_run import STAGES, Runs
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate

from flows import artifacts
from flows.artifacts import (
    StageProgress,
    StageReport,
    metrics_in_words,
    publish_results,
    publish_stages,
    publish_sweep,
)
from tasks.artifacts.records import Arm, Difference, Estimate, Metrics, Scores
from tasks.evaluation.comparison import Ranked
from tasks.evaluation.words import headline
from tasks.judging.rule import Verdict

Published = Callable[[], dict[str, Any]]


def estimate(value: float, low: float | None = None, high: float | None = None) -> Estimate:
    return Estimate(value=value, low=low, high=high, n=444)


def scores(accuracy: Estimate) -> Scores:
    other = estimate(0.5)
    return Scores(
        accuracy=accuracy,
        balanced_accuracy=other,
        macro_f1=other,
        nll=other,
        brier=other,
        ece=estimate(0.0312, 0.02, 0.05),
        ece_calibrated=other,
        nll_calibrated=0.3,
        temperature=1.2,
    )


def metrics(**changes: Any) -> Metrics:
    difference = Difference(
        accuracy=estimate(0.02),
        balanced_accuracy=estimate(0.02),
        macro_f1=estimate(0.02),
        mcnemar_p=0.5,
        only_baseline_right=3,
        only_finetuned_right=12,
        sentence="The difference is within noise.",
    )
    values: dict[str, Any] = {
        "majority": estimate(0.59),
        "baseline": scores(estimate(0.865, 0.83, 0.895)),
        "finetuned": scores(estimate(0.885, 0.851, 0.912)),
        "difference": difference,
        "shipped": "finetuned",
        "shipped_reason": "It was right more often on val.",
        "val_baseline": 0.86,
        "val_finetuned": 0.88,
    }
    return Metrics(**{**values, **changes})


class Client:
    """In the place of the server's client: keeps what it is sent."""

    def __init__(self) -> None:
        self.artifacts: dict[str, ArtifactCreate] = {}
        self.updates: list[ArtifactUpdate] = []

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to close."""

    def create_artifact(self, artifact: ArtifactCreate) -> SimpleNamespace:
        self.artifacts[str(artifact.key)] = artifact
        return SimpleNamespace(id=UUID(int=len(self.artifacts)))

    def update_artifact(self, number: UUID, update: ArtifactUpdate) -> None:
        assert number == UUID(int=1)
        self.updates.append(update)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    client = Client()
    monkeypatch.setattr(artifacts, "get_client", lambda sync_client: client)
    return client


@pytest.fixture
def published(client: Client) -> Published:
    """Key -> data of what was sent, when called."""
    return lambda: {key: artifact.data for key, artifact in client.artifacts.items()}


def cells(row: str) -> list[str]:
    """The cells of a row of a table in markdown."""
    return [cell.strip() for cell in row.strip("|").split("|")]


def words(found: Metrics, **before: float) -> list[str]:
    now = {"accuracy": 0.885, "ece": 0.0312}
    return metrics_in_words(found, "fine_tune", now, before).splitlines()


def test_metrics_stand_side_by_side_with_intervals() -> None:
    found = metrics()
    lines = words(found)
    head, first = map(cells, (lines[0], lines[2]))
    assert (head[0], "frozen" in head[1], "fine-tuned" in head[2]) == ("on test", True, True)
    assert first == [
        "accuracy",
        "0.865 (0.830 to 0.895, n = 444)",
        "0.885 (0.851 to 0.912, n = 444)",
    ]
    ece = "0.031 (0.020 to 0.050, n = 444)"
    assert ["ece", ece, ece] in map(cells, lines)
    assert ["majority class", "0.590 (n = 444)", ""] in map(cells, lines)
    assert found.difference is not None
    assert found.difference.sentence in lines
    assert tells(lines[-1], "Shipped: **fine-tuned", found.shipped_reason)


def test_a_model_from_scratch_is_not_called_fine_tuned() -> None:
    lines = metrics_in_words(metrics(), "scratch", {}, {}).splitlines()
    for line in (lines[0], lines[-1]):
        assert "trained from scratch" in line
    assert not any("fine-tuned" in line for line in lines)


def test_the_change_against_the_last_run_stands_beside() -> None:
    lines = words(metrics(), accuracy=0.865, ece=0.0312)
    assert tells(cells(lines[0])[-1], "shipped", "last run")
    assert lines[2].endswith("| +0.020 |")
    assert next(line for line in lines if line.startswith("| ece |")).endswith("| same |")
    assert next(line for line in lines if line.startswith("| nll |")).endswith("|  |")


def test_where_nothing_was_fine_tuned_its_column_is_empty() -> None:
    lines = words(metrics(finetuned=None, difference=None, shipped="baseline"))
    assert cells(lines[2]) == ["accuracy", "0.865 (0.830 to 0.895, n = 444)", ""]
    assert "Shipped: **frozen" in lines[-1]


@pytest.mark.parametrize(
    ("changes", "arm", "shipped", "facts"),
    [
        ({}, "fine_tune", "fine-tuned", ("88.5 % [85.1, 91.2]", "+2.0 over frozen")),
        ({}, "scratch", "trained from scratch", ("88.5 % [85.1, 91.2]", "+2.0 over frozen")),
        (
            {"shipped": "baseline"},
            "fine_tune",
            "frozen baseline",
            ("86.5 % [83.0, 89.5]", "fine-tuned +2.0"),
        ),
        (
            {"shipped": "baseline", "finetuned": None, "difference": None},
            "feature_extraction",
            "frozen baseline",
            ("86.5 % [83.0, 89.5]",),
        ),
    ],
)
def test_the_headline_says_what_ships_and_how_good_it_is(
    changes: dict[str, Any], arm: Arm, shipped: str, facts: tuple[str, ...]
) -> None:
    found = metrics(**changes)
    model, _, results = headline(found, arm).partition(":")
    assert tells(model, "shipped", shipped)
    assert tells(results, *facts)
    assert ("+2.0" in results) == (found.difference is not None)


def test_the_table_of_stages_keeps_its_shape_whatever_a_stage_says(
    published: Published,
) -> None:
    said = "a | b\nsecond line"
    publish_stages([StageReport("left", "Failed", said, why="never ran", seconds=1.26)])
    assert published()["stages"].splitlines()[2:] == [
        "| 1.3 | left | Failed | a \\| b<br>second line | never ran |"
    ]


def reports(*stages: str, message: str = "ran") -> list[StageReport]:
    return [StageReport(stage, "Completed", message, "", 1.0) for stage in stages]


def test_results_of_stages_that_ran_are_shown_and_unchanged_pictures_are_not(
    published: Published, tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = runs("fine-tuned").copy(tmp_path).root
    lock = {"stages": {"report": {"outs": [{"path": "data/report/report.html", "md5": "ab" * 16}]}}}
    (root / "dvc.lock").write_text(json.dumps(lock))
    monkeypatch.setenv("REGRAFT_REPORTS_URL", "http://127.0.0.1:4201")

    publish_results(root, reports(*STAGES, "report", message="unchanged"))
    assert sorted(published()) == ["metrics", "report"]
    assert (
        published()["report"] == f"[Open the report](http://127.0.0.1:4201/{'ab' * 16}/report.html)"
    )

    publish_results(root, reports(*STAGES, "report"))
    pictures = {"confusion", "contact-sheet", "learning-curves"}
    assert set(published()) == pictures | {"decision", "metrics", "report"}
    assert all("](data:image/" in published()[key] for key in pictures)
    assert published()["decision"] == (root / "data/decide/decision.md").read_text()
    assert len(published()["contact-sheet"]) < 300_000


def test_a_graph_without_our_stages_shows_nothing(published: Published, tmp_path: Path) -> None:
    publish_results(tmp_path, reports("left", "right"))
    assert published() == {}


def test_progress_moves_a_bar_with_the_time_left(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter([0.0, 60.0, 120.0, 150.0])
    monkeypatch.setattr(artifacts.time, "monotonic", lambda: next(moments))
    bar = StageProgress("finetune")
    bar.read("finetune: frozen layers run in onnxruntime")
    bar.read("finetune: cache blocks.3: 50 of 200 views, 5 a second, 30 s left")
    bar.read("finetune: phase 1 of 2, epoch 1 of 2: train loss 0.5, val loss 0.4")
    bar.finish()
    shown = [*client.artifacts.values(), *client.updates]
    assert [one.data for one in shown] == [25.0, 25.0, 100.0]
    facts = (
        ("finetune", "cache blocks.3", "30 s left"),
        ("finetune", "phase 1 of 2", "epoch 1 of 2", "6 min left"),
        ("finetune", "done", "2 min"),
    )
    for one, told in zip(shown, facts, strict=True):
        assert tells(str(one.description), *told)


def test_a_sweep_shows_every_setting_and_test_of_the_chosen_one_alone(
    published: Published,
) -> None:
    accuracy = Estimate(value=-0.012, low=-0.03, high=0.006, n=60)
    loss = Estimate(value=0.05, low=0.02, high=0.08, n=60)
    change = Verdict(accuracy=accuracy, loss=loss, better=False, worse=True, reason="sure")
    ranked = [
        Ranked("lr = 2", (17, 18), 0.91, 0.3, False, None),
        Ranked("lr = 1", (17, 18), 0.898, 0.35, False, change),
        Ranked("groups", (17,), 0.9, 0.2, False, None),
    ]
    names = {"lr = 2": ["owl-1", "owl-2"], "lr = 1": ["owl-3", "owl-4"], "groups": ["owl-5"]}
    troubles = {"groups": "lr | too high", "broken": "no such network"}
    tested = [(metrics(), "fine_tune"), (metrics(), "fine_tune")]
    publish_sweep(ranked, names, troubles, tested)  # type: ignore[arg-type]
    lines = published()["sweep"].splitlines()
    assert lines[2:6] == [
        "| lr = 2 | 91.0 | 0.300 | chosen | chosen | 17, 18 | owl-1, owl-2 |  |",
        "| lr = 1 | 89.8 | 0.350 | -1.2 [-3.0, +0.6] | +0.050 [+0.020, +0.080] | 17, 18 "
        "| owl-3, owl-4 |  |",
        "| groups | 90.0 | 0.200 | other val images | other val images | 17 | owl-5 "
        "| lr \\| too high |",
        "| broken |  |  |  |  |  |  | no such network |",
    ]
    assert tells(lines[7], "**lr = 2**", "lowest calibrated loss", "accuracy beyond doubt")
    assert "classes count the same" not in lines[7]
    on_test = [line for line in lines if line.startswith("- ")]
    assert [line.split(":")[0] for line in on_test] == ["- owl-1", "- owl-2"]
    assert all("88.5 %" in line for line in on_test)


def test_a_sweep_of_balanced_runs_says_that_all_classes_count_the_same(
    published: Published,
) -> None:
    publish_sweep(
        [Ranked("a", (17,), 0.9, 0.3, True, None)], {"a": ["owl-1"]}, {}, [(metrics(), "fine_tune")]
    )
    assert "All classes count the same" in published()["sweep"]


def test_a_sweep_of_which_nothing_is_left_says_why(published: Published) -> None:
    publish_sweep([], {}, {"a": "no room"}, [])
    assert published()["sweep"].splitlines()[2:] == ["| a |  |  |  |  |  |  | no room |"]


def test_a_server_in_trouble_costs_the_page_and_not_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(**arguments: Any) -> None:
        raise httpx.ConnectError("connection refused")

    monkeypatch.setattr(artifacts, "get_client", refuse)
    monkeypatch.setattr(artifacts, "get_run_logger", lambda: logging.getLogger("run"))
    publish_stages([StageReport("left", "Completed", "ran", why="never ran", seconds=1.0)])
    (message,) = caplog.messages
    assert tells(message, "artifact stages", "connection refused")
