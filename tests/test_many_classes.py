"""Four hundred classes with all that can be wrong: what is said stays short, and finite."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import draw_image
from made_run import Runs, make_exported, make_provenance
from test_ingest import run

from tasks.errors import DataError
from tasks.reporting.card import render_card
from tasks.reporting.explained import Explained
from tasks.reporting.findings import find_alerts
from tasks.reporting.html import render_report

CLASSES = 400
LONGEST_LINE, MOST_LINES = 500, 40


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Splits that leak, lack classes, and hold conflicting labels, broken files and like names."""
    root = tmp_path_factory.mktemp("many") / "source"
    for number in range(CLASSES):
        name = f"{'Kind' if number % 2 else 'kind'} of a long name {number // 2:03d}"
        folder = root / "train" / name
        folder.mkdir(parents=True)
        draw_image(number % 3, 1000 + number).save(folder / "a.png")
        (folder / "broken.png").write_bytes(b"")
        for split in ("val", "test")[: 3 - number % 4]:
            leaked = root / split / name
            leaked.mkdir(parents=True)
            shutil.copy(folder / "a.png", leaked / "b.png")
        draw_image((number - 1) % 3, 999 + number).save(folder / "of another.png")
    return root


def test_ingest_says_little_of_many_classes(
    many: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    result = run(many, tmp_path / "out", small_class="train_only", max_bad_fraction=0.6)
    assert len(result.health.classes) == CLASSES
    assert {len(line) <= LONGEST_LINE for line in caplog.text.splitlines()} == {True}
    assert len(caplog.text.splitlines()) <= MOST_LINES
    assert any("classes (" in line and " more" in line for line in result.health.warnings)


@pytest.mark.parametrize(
    "values", [{}, {"max_bad_fraction": 0.6}], ids=["bad files", "small classes"]
)
def test_an_error_about_many_classes_is_short(
    many: Path, tmp_path: Path, values: dict[str, float]
) -> None:
    with pytest.raises(DataError) as caught:
        run(many / "train", tmp_path / "out", small_class="fail", **values)
    lines = str(caught.value).splitlines()
    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= LONGEST_LINE


def test_report_and_card_say_little_of_many_classes(many: Path, tmp_path: Path, runs: Runs) -> None:
    findings = runs("many").findings
    health = run(many, tmp_path, small_class="train_only", max_bad_fraction=0.6).health
    provenance = make_provenance(tuple(f"tasks/{number}.py" for number in range(900)))
    alerts = find_alerts(replace(findings, health=health), provenance.code)
    assert len(alerts) <= 12
    assert max(len(alert.words) for alert in alerts) <= LONGEST_LINE
    card = render_card(findings, make_exported(), provenance)
    assert max(map(len, card.splitlines())) <= LONGEST_LINE
    assert len(card.splitlines()) < 300
    assert len(render_report(findings, make_exported(), Explained(), provenance)) < 1_000_000
