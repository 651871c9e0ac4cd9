"""What a reader must know first."""

from pathlib import Path
from typing import Any

import pytest
from fake_run import Shape, fake_findings, number

from tasks.artifacts.records import Record
from tasks.params import Params
from tasks.reporting.findings import Alert, Findings, conclude, find_alerts
from tasks.reporting.provenance import CodeState

CLEAN = CodeState("0" * 40)


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory, default_params: Params) -> Findings:
    return fake_findings(tmp_path_factory.mktemp("verdict"), Shape(), default_params)


def changed(findings: Findings, **records: dict[str, Any]) -> Findings:
    """Give findings with other values in some records."""
    values = dict(vars(findings))
    for name, update in records.items():
        record: Record = values[name]
        values[name] = record.model_copy(update=update)
    return Findings(**values)


def titles(findings: Findings, code: CodeState = CLEAN) -> list[str]:
    return [alert.title for alert in find_alerts(findings, code)]


def test_the_sentence_names_model_data_classes_result_interval_and_gain(
    findings: Findings,
) -> None:
    sentence = conclude(findings).sentence.replace("\N{NO-BREAK SPACE}", " ")
    assert sentence.startswith(
        "Fine-tuned test_efficientnet classifies ELPV images into 2 classes with 90.0 % test "
        "accuracy (95 % interval 87.3 to 92.7 %, 60 test images). Fine-tuning changes accuracy by"
    )


def test_unequal_classes_put_balanced_accuracy_first(findings: Findings) -> None:
    verdict = conclude(changed(findings, health={"imbalance": 30.0}))
    assert verdict.value.startswith("88.8")
    assert verdict.measure == "balanced test accuracy"


@pytest.mark.parametrize(
    ("shape", "start"),
    [
        (Shape(arm="feature_extraction", shipped="baseline"), "A linear head on frozen"),
        (Shape(shipped="baseline", head="mlp"), "An MLP head on frozen"),
        (Shape(arm="scratch"), "test_efficientnet trained from scratch"),
    ],
    ids=["frozen", "rejected fine-tuning", "scratch"],
)
def test_the_sentence_names_what_ships(
    shape: Shape, start: str, tmp_path: Path, default_params: Params
) -> None:
    found = fake_findings(tmp_path, shape, default_params)
    assert conclude(found).sentence.startswith(start)


def test_a_model_that_is_not_shipped_is_said_to_be_so(findings: Findings) -> None:
    verdict = conclude(changed(findings, metrics={"shipped": "baseline"}))
    assert verdict.gain.startswith("The fine-tuned model is not shipped.")
    alone = changed(findings, metrics={"difference": None, "finetuned": None})
    assert conclude(alone).gain == "Nothing was fine-tuned."


def test_a_clean_result_has_no_alert(findings: Findings) -> None:
    assert findings.metrics.difference is not None
    sure = findings.metrics.difference.model_copy(update={"accuracy": number(0.05, 0.02)})
    assert find_alerts(changed(findings, metrics={"difference": sure}), CLEAN) == []


def test_a_leak_is_serious_and_comes_first(findings: Findings) -> None:
    leaking = changed(
        findings,
        health={"warnings": ["something else", "LEAK: 3 pictures stand in several splits."]},
    )
    first, *others = find_alerts(leaking, CLEAN)
    assert first == Alert("serious", "The given splits leak", "3 pictures stand in several splits.")
    assert all(alert.level == "caution" for alert in others)


def test_what_the_source_warns_of_is_serious(findings: Findings) -> None:
    caution = "Cells of one module stand in all splits."
    first = find_alerts(changed(findings, origin={"caution": caution}), CLEAN)[0]
    assert first == Alert("serious", "What these results do not show", caution)


def test_a_model_no_better_than_the_majority_is_serious(findings: Findings) -> None:
    first = find_alerts(changed(findings, metrics={"warnings": ["No better."]}), CLEAN)[0]
    assert (first.level, first.words) == ("serious", "No better.")


@pytest.mark.parametrize(
    ("records", "title"),
    [
        ({"health": {"label_conflicts": [["a.png", "b.png"]]}}, "Labels disagree"),
        ({"health": {"imbalance": 12.0}}, "Unequal classes"),
        ({"decision": {"confidence": "low"}}, "Low confidence"),
        ({"decision": {"forced": True, "recommended": "scratch"}}, "Forced choice"),
    ],
    ids=["labels", "imbalance", "confidence", "forced"],
)
def test_every_doubt_has_its_alert(
    findings: Findings, records: dict[str, dict[str, Any]], title: str
) -> None:
    assert title not in titles(findings)
    assert title in titles(changed(findings, **records))


def test_a_difference_within_noise_is_said(findings: Findings) -> None:
    assert "Within noise" in titles(findings)


def test_few_test_images_are_said(findings: Findings) -> None:
    wide = findings.shipped.model_copy(update={"accuracy": number(0.9, 0.08)})
    alerts = find_alerts(changed(findings, metrics={"finetuned": wide}), CLEAN)
    assert any("16.0 points wide" in alert.words for alert in alerts)


def test_a_diverged_phase_is_said(findings: Findings) -> None:
    phase = findings.finetuned.phases[1].model_copy(update={"stopped": "diverged"})
    alerts = find_alerts(changed(findings, finetuned={"phases": [phase]}), CLEAN)
    assert any("unfrozen from blocks.4" in alert.words for alert in alerts)


def test_a_forced_choice_that_the_rules_share_is_no_alert(findings: Findings) -> None:
    agreed = changed(findings, decision={"forced": True, "recommended": "fine_tune"})
    assert "Forced choice" not in titles(agreed)


def test_uncommitted_code_is_said_but_no_checkout_is_not_dirty(findings: Findings) -> None:
    dirty = CodeState("1" * 40, ("tasks/report.py",), "ab")
    assert "Written before its commit" in titles(findings, dirty)
    assert "Written before its commit" not in titles(findings, CodeState(None))
