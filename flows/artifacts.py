"""What a run leaves on its page: the table of stages, the metrics, the decision in words."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact

from flows.stages.graph import Stage
from tasks.artifacts import read_record
from tasks.records import Estimate, Metrics, Scores

METRICS, DECISION = "data/evaluate/metrics.json", "data/decide/decision.md"
SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "nll", "brier", "ece", "ece_calibrated")


@dataclass(frozen=True, slots=True)
class StageReport:
    """One row of the table of stages."""

    stage: str
    outcome: str  # Completed, Cached, Failed or Skipped
    message: str
    why: str
    seconds: float


def publish_stages(reports: Sequence[StageReport]) -> None:
    """Show what became of every stage, why it ran and how long it took."""
    rows = [
        (report.stage, report.outcome, report.message, report.why, f"{report.seconds:.1f}")
        for report in reports
    ]
    head = ("stage", "outcome", "what happened", "why", "seconds")
    _publish("stages", _table(head, rows), "What DVC did with every stage")


def publish_results(root: Path, ran: Iterable[Stage]) -> None:
    """Show metrics and decision, where the stages of this run make them."""
    made = {out for stage in ran for out in stage.outs}
    if METRICS in made:
        metrics = read_record(root / METRICS, Metrics)
        _publish("metrics", metrics_in_words(metrics), "Test results with intervals")
    if DECISION in made:
        words = (root / DECISION).read_text(encoding="utf-8")
        _publish("decision", words, "How to transfer, and why")


def metrics_in_words(metrics: Metrics) -> str:
    """Write the test results as a table of both models, their difference, and what is shipped."""
    rows = [
        (name, *(_of(scores, name) for scores in (metrics.baseline, metrics.finetuned)))
        for name in SCORES
    ]
    rows.append(("majority class", _show(metrics.majority), ""))
    lines = [_table(("on test", "frozen baseline", "fine-tuned"), rows), ""]
    if metrics.difference is not None:
        lines += [metrics.difference.sentence, ""]
    lines.append(f"Shipped: **{metrics.shipped}**. {metrics.shipped_reason}")
    return "\n".join(lines)


def _publish(key: str, markdown: str, description: str) -> None:
    """Send one artifact. A server in trouble costs the page, never the results of the run."""
    try:
        create_markdown_artifact(key=key, markdown=markdown, description=description)
    except httpx.HTTPError as err:
        get_run_logger().warning("artifact %s was not stored: %s", key, err)


def _of(scores: Scores | None, name: str) -> str:
    return "" if scores is None else _show(scores.model_dump()[name])


def _show(estimate: Estimate | dict[str, float | None]) -> str:
    """Write "0.905 (0.876 to 0.930, n = 444)"."""
    found = Estimate.model_validate(estimate)
    if found.low is None or found.high is None:
        return f"{found.value:.3f} (n = {found.n})"
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f}, n = {found.n})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")
