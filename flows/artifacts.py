"""What a run leaves on its page: stages, metrics, decision, pictures, progress, the report."""

import base64
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
)
from prefect.client.schemas.sorting import ArtifactSort
from prefect.runtime import deployment, flow_run, task_run

from flows.durations import in_time
from flows.serve import REPORTS_URL
from flows.stages.graph import locked_outs
from tasks.artifacts.files import read_bytes
from tasks.artifacts.records import (
    Arm,
    Baseline,
    Estimate,
    Finetuned,
    Health,
    Metrics,
    Scores,
    read_record,
)
from tasks.artifacts.tables import ConfusionRow, HistoryRow, read_rows
from tasks.artifacts.words import FROZEN, name_trained
from tasks.errors import ArtifactError
from tasks.evaluation.comparison import Ranked
from tasks.evaluation.words import headline
from tasks.judging.rule import Verdict
from tasks.reporting.confusion import count_answers, matrix
from tasks.reporting.figures import accuracy_curves, loss_curves
from tasks.reporting.pages import picture
from tasks.runtime.progress import read_progress
from tasks.watching.looks import LookRecord
from tasks.watching.repeated import ALARM_RATE
from tasks.watching.words import NAMES

METRICS, REPORT = "data/evaluate/metrics.json", "data/report/report.html"
FINETUNED, BASELINE = "data/finetune/finetune.json", "data/baseline/baseline.json"
SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "nll", "brier", "ece", "ece_calibrated")
SHOWN_CLASSES = 10
LARGEST_PICTURE_BYTES, LARGEST_SIDE_PX = 150_000, 900


@dataclass(frozen=True, slots=True)
class StageReport:
    """One row of the table of stages."""

    stage: str
    outcome: str  # Completed, Cached, Failed, Skipped or Cancelled
    message: str
    why: str
    seconds: float


def publish_stages(reports: Sequence[StageReport]) -> None:
    """Show what became of every stage, how long it took and why it ran."""
    rows = [
        (f"{report.seconds:.1f}", report.stage, report.outcome, report.message, report.why)
        for report in reports
    ]
    head = ("seconds", "stage", "outcome", "what happened", "why")
    _send("markdown", "stages", _table(head, rows), "What DVC did with every stage")


def publish_results(
    root: Path, reports: Iterable[StageReport], *, test_is_hidden: bool = False
) -> None:
    """Show what the stages of a run made; pictures and words only of those that made them anew.

    Args:
        root: Where they ran.
        reports: Of the stages.
        test_is_hidden: Whether to show nothing of the test images.
    """
    done = {report.stage: report.message != "unchanged" for report in reports}
    if test_is_hidden:
        done = {stage: new for stage, new in done.items() if stage not in {"evaluate", "report"}}
    if "evaluate" in done:
        _publish_metrics(root)
    for stage, (key, description, show) in SHOWN.items():
        if done.get(stage):
            with suppress(ArtifactError):  # of another stage, which has not run here yet
                _send("markdown", key, show(root), description)
    if "report" in done:
        _publish_link(root)


def read_metrics(root: Path) -> tuple[Metrics, Arm] | None:
    """Read the test results and how the fine-tuned model was trained; None before there are any."""
    try:
        metrics = read_record(root / METRICS, Metrics)
        return metrics, read_record(root / FINETUNED, Finetuned).arm
    except ArtifactError:
        return None


def _publish_metrics(root: Path) -> None:
    found = read_metrics(root)
    if found is None:
        return
    metrics, arm = found
    shipped = metrics.finetuned if metrics.shipped == "finetuned" else metrics.baseline
    assert shipped is not None
    now = {name: shipped.model_dump()[name]["value"] for name in SCORES}
    words = metrics_in_words(metrics, arm, now, _scores_of_last_run())
    _send("markdown", "metrics", words, "Test results with intervals", {"scores": json.dumps(now)})


def metrics_in_words(
    metrics: Metrics, arm: Arm, now: Mapping[str, float], before: Mapping[str, float]
) -> str:
    """Write the test results as a table of both models, their difference, and what is shipped.

    Args:
        metrics: The results.
        arm: How the model that is not the frozen baseline was trained.
        now: Scores of the shipped model.
        before: Those of the last run of the same deployment; empty where there was none.
    """
    trained = name_trained(arm)
    head = ["on test", FROZEN, trained]
    rows = [
        [name, *(_of(scores, name) for scores in (metrics.baseline, metrics.finetuned))]
        for name in SCORES
    ]
    rows.append(["majority class", _show(metrics.majority), ""])
    if before:
        head.append("shipped, against the last run")
        for row in rows:
            change = now[row[0]] - before[row[0]] if row[0] in before.keys() & now.keys() else None
            row.append("" if change is None else f"{change:+.3f}" if change else "same")
    lines = [_table(head, rows), ""]
    if metrics.difference is not None:
        lines += [metrics.difference.sentence, ""]
    shipped = trained if metrics.shipped == "finetuned" else FROZEN
    lines.append(f"Shipped: **{shipped}**. {metrics.shipped_reason}")
    return "\n".join(lines)


def _scores_of_last_run() -> dict[str, float]:
    """Read what the last run of this deployment left; empty where there was none."""
    if not deployment.id:
        return {}
    with suppress(httpx.HTTPError), get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["metrics"])),
            flow_run_filter=FlowRunFilter(
                deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id])
            ),
            sort=ArtifactSort.CREATED_DESC,
            limit=1,
        )
        if found and found[0].metadata_:
            scores: dict[str, float] = json.loads(found[0].metadata_["scores"])
            return scores
    return {}


def publish_sweep(
    ranked: Sequence[Ranked],
    experiments: Mapping[str, Sequence[str]],
    troubles: Mapping[str, str],
    tested: Sequence[tuple[Metrics, Arm]],
) -> None:
    """Show the settings of a sweep, the chosen one first, and what test says of that one alone.

    Args:
        ranked: The settings, the chosen one first.
        experiments: Setting -> names of its experiments.
        troubles: Setting -> message of a run of it that failed.
        tested: Test results of the runs of the chosen setting, and how they trained.
    """
    head = (
        "setting",
        "val accuracy, %",
        "val loss",
        "to the chosen, points",
        "to the chosen, loss",
        "seeds",
        "experiments",
        "failed",
    )
    rows: list[Sequence[str]] = [
        (
            one.setting,
            f"{100 * one.accuracy:.1f}",
            f"{one.loss:.3f}",
            *(_changes(one.change) if number else ("chosen", "chosen")),
            ", ".join(map(str, one.seeds)),
            ", ".join(experiments[one.setting]),
            troubles.get(one.setting, ""),
        )
        for number, one in enumerate(ranked)
    ]
    known = {one.setting for one in ranked}
    rows += [
        (setting, *[""] * 6, said) for setting, said in troubles.items() if setting not in known
    ]
    lines = [_table(head, rows), ""]
    if ranked:
        lines += [
            f"Chosen on val: **{ranked[0].setting}**. Of the settings that lack no seed it has the "
            "lowest calibrated loss, which sees more than accuracy does, or is better in accuracy "
            "beyond doubt." + " All classes count the same here." * ranked[0].balanced,
            "",
            "Its val figures flatter, as those of any best of several do; test was looked at for "
            "it alone:",
            "",
            *(
                f"- {name}: {headline(metrics, arm)}"
                for name, (metrics, arm) in zip(experiments[ranked[0].setting], tested, strict=True)
            ),
            "",
            f"`dvc exp apply {experiments[ranked[0].setting][0]}` brings it into the working tree; "
            "`dvc exp show --only-changed` shows all.",
        ]
    _send("markdown", "sweep", "\n".join(lines), "Settings compared on val")


def publish_promotion(words: str) -> None:
    """Show what the test images say of a candidate, in markdown."""
    _send("markdown", "promotion", words, "The candidate beside the model in use")


def publish_look(folder: Path, look: LookRecord) -> None:
    """Show a look of the flow `monitor`: its figures, and its strangest images.

    Args:
        folder: The looks.
        look: The one to show.
    """
    _send("markdown", "look", look_in_words(look), "Incoming images against held-out ones")
    if look.sheet:
        words = "The new images that are farthest from what the model knows, farthest first"
        with suppress(ArtifactError):  # removed meanwhile
            _send("markdown", "strangest", _photographs(folder / look.sheet), words)


def look_in_words(look: LookRecord) -> str:
    """Write the figures of a look as tables."""
    head = ("test", "images", "p", "p for all tests and looks")
    tests = [
        (
            f"{NAMES[test.of]}, {test.window}",
            f"{test.images:,}",
            f"{test.p_value:.2g}",
            f"**{test.corrected:.2g}**"
            if test.corrected <= ALARM_RATE
            else f"{test.corrected:.2g}",
        )
        for test in look.tests
    ]
    facts = [
        ("new images, bad files", f"{look.images:,}, {look.bad:,}"),
        ("out of the domain", _out_of_domain(look)),
    ]
    medians = [
        (NAMES[fact.name], _short(fact.held_out), _short(fact.now)) for fact in look.appearance
    ]
    parts = [look.words, _table((f"look {look.number}", look.at), facts)]
    parts += [_table(head, tests)] if tests else []
    parts += [_table(("median", "held out", "new"), medians)]
    for what, shares in (("predicted class", look.classes), ("kind of file", look.kinds)):
        rows = [(share.name, f"{share.held_out:.1%}", f"{share.now:.1%}") for share in shares]
        parts += [_table((what, "held out", "new"), rows[:SHOWN_CLASSES])] if rows else []
    return "\n\n".join(parts)


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _out_of_domain(look: LookRecord) -> str:
    return (
        ""
        if look.out_of_domain is None
        else (f"{_show(look.out_of_domain)}, {look.expected:.3f} expected")
    )


def _changes(change: Verdict | None) -> tuple[str, str]:
    """Write a change in accuracy, in points, and in loss."""
    if change is None:
        return "other val images", "other val images"
    accuracy, loss = change.accuracy, change.loss
    points = [100 * (share or 0.0) for share in (accuracy.value, accuracy.low, accuracy.high)]
    return (
        f"{points[0]:+.1f} [{points[1]:+.1f}, {points[2]:+.1f}]",
        f"{loss.value:+.3f} [{loss.low:+.3f}, {loss.high:+.3f}]",
    )


# words and pictures ------------------------------------------------------------------------------


def _decision(root: Path) -> str:
    return read_bytes(root / "data/decide/decision.md").decode()


def _curves(root: Path) -> str:
    history = read_rows(root / "data/finetune/history.csv", HistoryRow)
    finetuned = read_record(root / FINETUNED, Finetuned)
    baseline = read_record(root / BASELINE, Baseline)
    if not history:
        raise ArtifactError("nothing was fine-tuned")
    drawings = [
        ("Loss", loss_curves(history, finetuned.phases, finetuned.baseline_val_loss)),
        ("Accuracy", accuracy_curves(history, finetuned.phases, baseline.val_accuracy.value)),
    ]
    return _image("svg+xml", picture(drawings).encode())


def _confusion(root: Path) -> str:
    classes = read_record(root / "data/ingest/health.json", Health).classes
    rows = read_rows(root / "data/evaluate/confusion.csv", ConfusionRow)
    counts = count_answers([(row.actual, row.predicted) for row in rows], classes)
    figure = ("Confusion of the shipped model on test", matrix(counts, classes))
    return _image("svg+xml", picture([figure]).encode())


def _contact_sheet(root: Path) -> str:
    return _photographs(root / "data/augment/contact_sheet.jpg")


def _photographs(file: Path) -> str:
    """Give a sheet as it is where it is small, else reduced: the server keeps it in a row."""
    content = read_bytes(file)
    if len(content) > LARGEST_PICTURE_BYTES:
        with Image.open(io.BytesIO(content)) as sheet:
            sheet.thumbnail((LARGEST_SIDE_PX, LARGEST_SIDE_PX))
            smaller = io.BytesIO()
            sheet.save(smaller, "JPEG", quality=75)
        content = smaller.getvalue()
    return _image("jpeg", content)


def _image(kind: str, content: bytes) -> str:
    """Write a picture as markdown. As an image, its whole data would stand below it as a link."""
    return f"![](data:image/{kind};base64,{base64.b64encode(content).decode()})"


# Stage -> key and description of an artifact, and how to write what the stage made.
SHOWN: dict[str, tuple[str, str, Callable[[Path], str]]] = {
    "augment": ("contact-sheet", "Training images and their augmented views", _contact_sheet),
    "decide": ("decision", "How to transfer, and why", _decision),
    "finetune": ("learning-curves", "Loss and accuracy over the epochs of all phases", _curves),
    "evaluate": ("confusion", "Rows are the labels, columns what was predicted", _confusion),
}


def _publish_link(root: Path) -> None:
    """Link to the report where a server beside this one shows it."""
    url = os.environ.get(REPORTS_URL)
    made = locked_outs(root, "report").get(REPORT)
    if url and made:
        link = f"{url}/{made['md5']}/report.html"
        _send("markdown", "report", f"[Open the report]({link})", "The report of this run")


# progress ----------------------------------------------------------------------------------------


class StageProgress:
    """A progress bar on the page of a stage's task run, moved by the lines of its log.

    It appears with the first line that tells progress; stages say so every ten seconds.
    """

    def __init__(self, stage: str) -> None:
        self._stage, self._started = stage, time.monotonic()
        self._id: Any = None

    def read(self, line: str) -> None:
        """Take a line of the log."""
        found = read_progress(line)
        if found is None:
            return
        taken = time.monotonic() - self._started
        left = found.seconds_left
        if left is None:
            left = taken * (1 - found.share) / found.share if found.share else None
        words = f"{self._stage}: {found.what}"
        self._show(100 * found.share, words if left is None else f"{words}, {in_time(left)} left")

    def finish(self) -> None:
        """Fill the bar, if there is one."""
        if self._id is not None:
            self._show(100.0, f"{self._stage}: done in {in_time(time.monotonic() - self._started)}")

    def _show(self, percent: float, words: str) -> None:
        if self._id is None:
            self._id = _send("progress", f"progress-{self._stage}", percent, words)
            return
        with suppress(httpx.HTTPError), get_client(sync_client=True) as client:
            client.update_artifact(self._id, ArtifactUpdate(data=percent, description=words))


# sending -----------------------------------------------------------------------------------------


def _send(
    kind: str,
    key: str,
    data: str | float,
    description: str,
    metadata: Mapping[str, str] | None = None,
) -> Any:
    """Send one artifact. A server in trouble costs the page, never the results of the run."""
    artifact = ArtifactCreate(
        type=kind,
        key=key,
        data=data,
        description=description,
        metadata_=dict(metadata or {}),
        flow_run_id=flow_run.id,
        task_run_id=task_run.id,
    )
    try:
        with get_client(sync_client=True) as client:
            return client.create_artifact(artifact).id
    except httpx.HTTPError as err:
        get_run_logger().warning("artifact %s was not stored: %s", key, err)
        return None


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
