"""The report: one html page that needs no network, no script and no other file."""

import base64
import io
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from markupsafe import Markup, escape
from PIL import Image, UnidentifiedImageError

from tasks.artifacts.records import Health, Scores
from tasks.artifacts.tables import HistoryRow, LikenessRow, SuspectRow
from tasks.artifacts.words import FROZEN
from tasks.errors import ArtifactError
from tasks.reporting.confusion import matrix, mistakes
from tasks.reporting.explained import Explained
from tasks.reporting.export import Exported
from tasks.reporting.figures import (
    accuracy_curves,
    class_bars,
    loss_curves,
    projection,
    ruler,
    shift_profile,
)
from tasks.reporting.findings import (
    LEAK,
    Findings,
    Picture,
    SuspectLabels,
    conclude,
    find_alerts,
    name_shipped,
)
from tasks.reporting.pages import make_environment
from tasks.reporting.provenance import Provenance
from tasks.reporting.results import (
    MOST_CLASSES,
    class_recalls,
    comparison,
    gains,
    reliability,
    texture_rows,
    weakest,
)
from tasks.reporting.svg import Drawing
from tasks.reporting.text import sentence

SHEET_BYTES = 1_200_000  # of the embedded contact sheet, at most
HARDEST_BYTES = 2_000_000  # of all embedded hardest images together
EXPLAINED_BYTES = 2_000_000  # of all heatmaps and right answers together
PAIR_BYTES = 60_000  # of each embedded pair of twins
LIKEST_BYTES = 30_000  # of each embedded picture near to or far from the source
SUSPECTS_BYTES = 1_000_000  # of the embedded suspects of train and val, and of those of test
SMALLEST_PX = 48
TABLE_CLASSES = 500  # rows of the table of classes


def render_report(
    findings: Findings, exported: Exported, explained: Explained, provenance: Provenance
) -> str:
    """Give the page; the same arguments give the same text."""
    template = make_environment({"sentence": set_sentence}, autoescape=True).get_template(
        "report.html.jinja"
    )
    share = HARDEST_BYTES // max(len(findings.hardest), 1)
    return template.render(
        f=findings,
        exported=exported,
        provenance=provenance,
        conclusion=conclude(findings),
        alerts=find_alerts(findings, provenance.code),
        passed=_passed_checks(findings.health),
        drawings=_draw(findings),
        rates=_peak_rates(findings.history),
        scores=_score_rows(findings),
        mistakes=mistakes(findings.confusion, findings.health.classes),
        most_classes=MOST_CLASSES,
        classes=weakest(findings.classes, TABLE_CLASSES),
        table_classes=TABLE_CLASSES,
        sheet=_embed(findings.sheet, SHEET_BYTES),
        hardest=[(row, _embed(picture, share)) for row, picture in findings.hardest],
        explained=explained,
        **_embed_explained(explained),
        pairs=[(row, _embed(picture, PAIR_BYTES)) for row, picture in findings.pairs],
        ends=_embed_ends(findings),
        textures=texture_rows(findings.similarity.look),
        suspects=_embed_suspects(findings.suspects),
        test_suspects=_embed_suspects(findings.test_suspects),
        shipped_name=name_shipped(findings),
    )


def set_sentence(words: str) -> Markup:
    """Escape a sentence of a stage and set what stands between backticks as code."""
    parts = sentence(words).split("`")
    if len(parts) % 2 == 0:
        return escape(sentence(words))
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else escape(part)
        for number, part in enumerate(parts)
    )


def _draw(findings: Findings) -> Mapping[str, Drawing]:
    """Draw every figure that there is something to show in."""
    similarity, baseline, metrics = findings.similarity, findings.baseline, findings.metrics
    drawings = {
        "classes": class_bars(findings.health.class_counts),
        "comparison": comparison(metrics, findings.tuned_name),
        "recalls": class_recalls(findings.classes),
        "confusion": matrix(findings.confusion, findings.health.classes),
        "reliability": reliability([row for row in findings.bins if row.model == metrics.shipped]),
    }
    if similarity.mmd and similarity.known:
        drawings["ruler"] = ruler(similarity.known, findings.origin.name, similarity.mmd.matched)
    if findings.layers:
        moments = similarity.moments
        name = "Moment shift" if moments else "Batch-norm shift"
        groups = moments.groups if moments else similarity.shift_groups
        drawings["shift"] = shift_profile(name, findings.layers, groups)
    if findings.places:
        drawings["projection"] = projection(findings.places, findings.health.classes)
    if findings.history:
        phases, history = findings.finetuned.phases, findings.history
        drawings["loss"] = loss_curves(history, phases, findings.finetuned.baseline_val_loss)
        drawings["accuracy"] = accuracy_curves(history, phases, baseline.val_accuracy.value)
    if metrics.difference:
        drawings["gains"] = gains(metrics.difference)
    return drawings


def _passed_checks(health: Health) -> list[str]:
    """Say what was looked for in the data and not found; what was found is in `health.warnings`."""
    checks: list[tuple[object, str]] = [
        (
            any(words.startswith(LEAK) for words in health.warnings),
            "No copy or near copy stands in more than one split",
        ),
        (health.label_conflicts or health.mixed_copies, "No picture has more than one label"),
        (health.rejected, "Every image file could be read"),
    ]
    return [words for found, words in checks if not found]


def _peak_rates(history: list[HistoryRow]) -> list[tuple[int, dict[str, float]]]:
    """Give the highest rate of an epoch of every group in every phase; 0 where it was frozen."""
    rates = []
    for phase, members in groupby(history, key=lambda epoch: epoch.phase):
        peak: dict[str, float] = {}
        for epoch in members:
            for name, rate in epoch.rates.items():
                peak[name] = max(rate, peak.get(name, 0.0))
        rates.append((phase, peak))
    return rates


def _score_rows(findings: Findings) -> list[tuple[str, Scores]]:
    rows = [(FROZEN, findings.metrics.baseline)]
    if findings.metrics.finetuned:
        rows.append((findings.tuned_name, findings.metrics.finetuned))
    return rows


def _embed_ends(findings: Findings) -> dict[str, list[tuple[LikenessRow, dict[str, Any]]]]:
    """Embed the pictures by the side that they are on, the nearest first."""
    return {
        side: [(row, _embed(picture, LIKEST_BYTES)) for row, picture in members]
        for side, members in groupby(findings.likest, key=lambda shown: shown[0].side)
    }


def _embed_explained(explained: Explained) -> dict[str, Any]:
    pictures = len(explained.hardest) + 2 * len(explained.right)
    share = EXPLAINED_BYTES // max(pictures, 1)
    return {
        "heatmaps": [_embed(picture, share) for picture in explained.hardest],
        "right": [
            (row, _embed(picture, share), _embed(heatmap, share))
            for row, picture, heatmap in explained.right
        ],
    }


def _embed_suspects(suspects: SuspectLabels) -> list[tuple[SuspectRow, dict[str, Any]]]:
    share = SUSPECTS_BYTES // max(len(suspects.shown), 1)
    return [(row, _embed(picture, share)) for row, picture in suspects.shown]


def _embed(picture: Picture, most_bytes: int) -> dict[str, Any]:
    """Give a JPEG file as a data address with its size in pixels, made smaller if it is too large.

    Raises:
        ArtifactError: It is no such image.
    """
    content = picture.content
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as opened:
            image = opened.convert("RGB")
    except (OSError, UnidentifiedImageError) as err:
        raise ArtifactError(
            f"{picture.path}: cannot be read ({err}); run the stage that writes it"
        ) from err
    while len(content) > most_bytes and min(image.size) > SMALLEST_PX:
        image = image.resize((image.width * 4 // 5, image.height * 4 // 5))
        smaller = io.BytesIO()
        image.save(smaller, format="JPEG", quality=85)
        content = smaller.getvalue()
    address = base64.b64encode(content).decode("ascii")
    return {
        "src": f"data:image/jpeg;base64,{address}",
        "width": image.width,
        "height": image.height,
    }
