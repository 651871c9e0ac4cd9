"""The model card."""

from dataclasses import replace
from typing import Any

import pytest
from conftest import HOSTILE, tells
from made_run import Runs, make_exported, make_provenance, reject
from ruamel.yaml import YAML

from tasks.reporting.card import escape_markdown, quote_yaml, render_card
from tasks.reporting.findings import Findings, conclude


@pytest.fixture(scope="module")
def findings(runs: Runs) -> Findings:
    return runs("fine-tuned").findings


def render(findings: Findings, *, whole: bool = True) -> str:
    return render_card(findings, make_exported(whole=whole), make_provenance())


def header(card: str) -> dict[str, Any]:
    _, block, _ = card.split("---\n", 2)
    loaded: dict[str, Any] = YAML(typ="safe").load(block)
    return loaded


def test_the_header_is_yaml_with_what_the_hub_asks(findings: Findings) -> None:
    weights = findings.backbone.model_copy(update={"weights_license": "Apache-2.0"})
    read = header(render(replace(findings, backbone=weights)))
    assert read["library_name"] == "timm"
    assert read["pipeline_tag"] == "image-classification"
    assert read["datasets"] == ["ELPV"]
    assert "CC BY-NC-SA 4.0" in read["license_name"]
    assert "Apache-2.0" in read["license_name"]
    results = read["model-index"][0]["results"][0]
    assert results["dataset"]["split"] == "test"
    assert [metric["value"] for metric in results["metrics"]] == [
        findings.shipped.accuracy.value,
        findings.shipped.balanced_accuracy.value,
        findings.shipped.macro_f1.value,
    ]


def test_results_stand_with_their_intervals_and_the_shipped_model_is_marked(
    findings: Findings,
) -> None:
    card = render(findings).replace("\N{NO-BREAK SPACE}", " ")
    _, baseline, tuned, majority = [line for line in card.splitlines() if line.startswith("| ")]
    metrics = findings.metrics
    assert metrics.finetuned is not None
    for row, accuracy in (
        (baseline, metrics.baseline.accuracy),
        (tuned, metrics.finetuned.accuracy),
        (majority, metrics.majority),
    ):
        assert accuracy.low is not None
        assert f"| {100 * accuracy.value:.1f} % ({100 * accuracy.low:.1f} to" in row
    assert ["(shipped)" in row for row in (baseline, tuned, majority)] == [False, True, False]


def test_the_first_sentence_is_the_verdict_and_doubts_follow(findings: Findings) -> None:
    card = render(findings)
    verdict = card.index(conclude(findings).value)
    assert verdict < card.index("**Within noise.**") < card.index("\n## ")


def test_limits_name_the_weakest_class(findings: Findings) -> None:
    good, bad = (
        replace(row, recall=recall)
        for row, recall in zip(findings.classes, (0.9, 0.5), strict=True)
    )
    for rows in ([good, bad], [bad, good]):
        told = [
            line
            for line in render(replace(findings, classes=rows)).splitlines()
            if "weakest class" in line
        ]
        assert [bad.class_ in line for line in told] == [True]
    same = [replace(row, recall=0.9) for row in findings.classes]
    assert "weakest" not in render(replace(findings, classes=same))


def test_the_card_prints_the_code_of_its_own_model(findings: Findings) -> None:
    assert "timm loads the folder by itself" in render(findings)
    apart = render(findings, whole=False)
    assert "the head is a file of its own" in apart
    assert "head.safetensors" in apart


def test_licenses_of_data_and_weights_are_told_or_said_to_be_missing(findings: Findings) -> None:
    assert "- Data: CC BY-NC-SA 4.0" in render(findings)
    origin = findings.origin.model_copy(update={"license": None, "citation": None})
    backbone = findings.backbone.model_copy(
        update={"weights_license": None, "weights_source": None}
    )
    card = render(replace(findings, origin=origin, backbone=backbone))
    lines = [line for line in card.splitlines() if line.startswith("- Data: ")]
    assert any(tells(line, "not stated", "ask its owner") for line in lines)
    assert "- Pretrained weights: not stated\n" in card
    assert header(card)["license_name"] == "data: not stated; pretrained weights: not stated"


def test_many_classes_are_cut(runs: Runs) -> None:
    card = render(runs("many").findings)
    assert "species 049" in card
    assert "- species 050" not in card
    assert "and 70 more" in card


def test_hostile_names_stay_text(runs: Runs) -> None:
    found = runs("scratch").findings
    origin = found.origin.model_copy(update={"name": f'x": {HOSTILE}'})
    card = render(replace(found, origin=origin))
    assert HOSTILE in found.health.classes
    assert "<script" not in card
    assert "\n# heading" not in card
    assert "- \\[x\\](javascript" in card  # no link
    assert header(card)["datasets"] == [f'x": {HOSTILE}']


@pytest.mark.parametrize(
    ("text", "escaped"),
    [("a_b*c", "a\\_b\\*c"), ("1 < 2 & 3", "1 &lt; 2 &amp; 3"), ("a\nb", "a\\\\nb")],
)
def test_markdown_is_escaped(text: str, escaped: str) -> None:
    assert escape_markdown(text) == escaped


@pytest.mark.parametrize("text", ["plain", 'a "b": c', "#x", "- y", "<b>", "é", "no", "1e3"])
def test_quoted_yaml_reads_back_as_the_same_text(text: str) -> None:
    assert YAML(typ="safe").load(quote_yaml(text)) == text


def test_the_same_findings_give_the_same_card(findings: Findings) -> None:
    assert render(findings) == render(findings)


def test_where_nothing_was_fine_tuned_one_model_stands_in_the_table(runs: Runs) -> None:
    card = render(runs("frozen").findings)
    assert "| frozen baseline (shipped) |" in card
    assert "| fine-tuned" not in card


FINAL_WEIGHTS = ("The final weights", "Val chose none of the fine-tuned weights")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"interpolation": 0.75}, "75 % fine-tuned and 25 % start weights"),
        ({"interpolation": 1.0, "averaged": True}, "average of what the kept phases"),
        ({"interpolation": 0.0}, "those of the start"),
        ({"interpolation": 1.0}, None),
    ],
    ids=["interpolated", "averaged", "start", "end"],
)
def test_the_card_says_what_the_final_weights_are(
    findings: Findings, changes: dict[str, Any], words: str | None
) -> None:
    tuned = replace(findings, finetuned=findings.finetuned.model_copy(update=changes))
    card = render(tuned).replace("\N{NO-BREAK SPACE}", " ")
    assert any(start in card for start in FINAL_WEIGHTS) == (words is not None)
    assert words is None or words in card
    frozen = replace(tuned, metrics=tuned.metrics.model_copy(update={"shipped": "baseline"}))
    assert not any(start in render(frozen) for start in FINAL_WEIGHTS)


def test_the_card_says_that_fine_tuning_was_rejected_and_why(findings: Findings) -> None:
    rejected = reject(findings)
    words = rejected.finetuned.rejection
    assert words is not None
    card = render(rejected).replace("\\", "")
    assert words in card[: card.index("## What it is")]
    assert words in card[card.index("## Training") : card.index("## Results")]
    assert "| frozen baseline (shipped) |" in card


def test_macro_figures_say_over_how_many_classes_they_are(runs: Runs) -> None:
    card = render(runs("many").findings)
    assert (
        "| Balanced accuracy over 119 of 120 classes | Macro-F1 over 119 of 120 classes |" in card
    )
    assert "1 of 120 classes has no test image" in card.replace("\N{NO-BREAK SPACE}", " ")
