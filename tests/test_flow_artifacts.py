"""What a run leaves on its page; the numbers are those of the records."""

import logging
from typing import Any

import httpx
import pytest

from flows import artifacts
from flows.artifacts import StageReport, metrics_in_words, publish_results, publish_stages
from flows.stages.graph import Stage
from tasks.records import Difference, Estimate, Metrics, Scores


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


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Key -> text of what would be sent to the server."""
    sent: dict[str, str] = {}

    def keep(key: str, markdown: str, description: str) -> None:
        sent[key] = markdown

    monkeypatch.setattr(artifacts, "create_markdown_artifact", keep)
    return sent


def test_metrics_stand_side_by_side_with_intervals() -> None:
    lines = metrics_in_words(metrics()).splitlines()
    assert lines[0] == "| on test | frozen baseline | fine-tuned |"
    assert lines[2] == (
        "| accuracy | 0.865 (0.830 to 0.895, n = 444) | 0.885 (0.851 to 0.912, n = 444) |"
    )
    ece = "0.031 (0.020 to 0.050, n = 444)"
    assert f"| ece | {ece} | {ece} |" in lines
    assert "| majority class | 0.590 (n = 444) |  |" in lines
    assert lines[-3:] == [
        "The difference is within noise.",
        "",
        "Shipped: **finetuned**. It was right more often on val.",
    ]


def test_where_nothing_was_fine_tuned_its_column_is_empty() -> None:
    words = metrics_in_words(metrics(finetuned=None, difference=None, shipped="baseline"))
    assert "| accuracy | 0.865 (0.830 to 0.895, n = 444) |  |" in words
    assert "Shipped: **baseline**" in words


def test_the_table_of_stages_keeps_its_shape_whatever_a_stage_says(
    published: dict[str, str],
) -> None:
    said = "a | b\nsecond line"
    publish_stages([StageReport("left", "Failed", said, why="never ran", seconds=1.26)])
    assert published["stages"].splitlines()[2:] == [
        "| left | Failed | a \\| b<br>second line | never ran | 1.3 |"
    ]


def test_only_what_the_run_makes_is_shown(published: dict[str, str], tmp_path: Any) -> None:
    publish_results(tmp_path, [Stage("left", (), (), ("out/left.txt",))])
    assert published == {}


def test_a_server_in_trouble_costs_the_page_and_not_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(**arguments: str) -> None:
        raise httpx.ConnectError("connection refused")

    monkeypatch.setattr(artifacts, "create_markdown_artifact", refuse)
    monkeypatch.setattr(artifacts, "get_run_logger", lambda: logging.getLogger("run"))
    publish_stages([StageReport("left", "Completed", "ran", why="never ran", seconds=1.0)])
    assert "artifact stages was not stored: connection refused" in caplog.text
