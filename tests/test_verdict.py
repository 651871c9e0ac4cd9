"""What a reader must know first."""

from collections.abc import Iterator
from typing import Any

import pytest
from conftest import number, share, tells
from made_run import Runs

from tasks.artifacts.records import CleanScores, Record
from tasks.reporting.findings import Alert, Findings, conclude, find_alerts
from tasks.reporting.provenance import CodeState

CLEAN = CodeState("0" * 40)


@pytest.fixture(scope="module")
def findings(runs: Runs) -> Findings:
    sure = {"forced": False, "confidence": "high"}  # val of so few images tells too little
    return changed(runs("fine-tuned").findings, decision=sure)


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
    accuracy, difference = findings.shipped.accuracy, findings.metrics.difference
    assert accuracy.low is not None
    assert accuracy.high is not None
    assert difference is not None
    for fact in (
        "Fine-tuned test_efficientnet",
        "ELPV images",
        "2 classes",
        f"{100 * accuracy.value:.1f} % test accuracy",
        f"95 % interval {100 * accuracy.low:.1f} to {100 * accuracy.high:.1f} %",
        "40 test images",
        difference.sentence,
    ):
        assert fact in sentence


def test_unequal_classes_put_balanced_accuracy_first(findings: Findings) -> None:
    verdict = conclude(changed(findings, health={"imbalance": 30.0}))
    assert verdict.estimate == findings.shipped.balanced_accuracy
    assert verdict.measure == "balanced test accuracy"


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ({"metrics": {"shipped": "baseline"}}, ("linear head", "frozen")),
        ({"metrics": {"shipped": "baseline"}, "baseline": {"head": "mlp"}}, ("MLP", "frozen")),
        ({"finetuned": {"arm": "scratch"}}, ("from scratch",)),
    ],
    ids=["linear", "mlp", "scratch"],
)
def test_the_sentence_names_what_ships(
    findings: Findings, records: dict[str, dict[str, Any]], words: tuple[str, ...]
) -> None:
    model = conclude(changed(findings, **records)).model
    assert all(word in model for word in ("test_efficientnet", *words))


def test_a_model_that_is_not_shipped_is_said_to_be_so(findings: Findings) -> None:
    verdict = conclude(changed(findings, metrics={"shipped": "baseline"}))
    assert tells(verdict.gain, "fine-tuned model", "not shipped")
    alone = changed(findings, metrics={"difference": None, "finetuned": None})
    assert "Nothing was fine-tuned" in conclude(alone).gain


def sure(findings: Findings) -> Findings:
    """Findings of many test images on which the fine-tuned model is better beyond doubt."""
    difference, finetuned = findings.metrics.difference, findings.metrics.finetuned
    assert difference is not None
    assert finetuned is not None
    narrow = {"accuracy": number(0.05, 0.02)}
    metrics = {
        "difference": difference.model_copy(update=narrow),
        "finetuned": finetuned.model_copy(update={"accuracy": number(0.95, 0.02)}),
    }
    return changed(findings, metrics=metrics)


def test_a_clean_result_has_no_alert(findings: Findings) -> None:
    assert find_alerts(sure(findings), CLEAN) == []


def test_a_leak_is_serious_and_comes_first(findings: Findings) -> None:
    leaking = changed(
        findings,
        health={"warnings": ["something else", "LEAK: 3 pictures stand in several splits."]},
    )
    first, *others = find_alerts(leaking, CLEAN)
    assert first == Alert("serious", "The given splits leak", "3 pictures stand in several splits.")
    assert {alert.level for alert in others} == {"caution"}


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
    assert "Within noise" not in titles(sure(findings))


def test_few_test_images_are_said(findings: Findings) -> None:
    wide = findings.shipped.model_copy(update={"accuracy": number(0.9, 0.08)})
    alerts = find_alerts(changed(findings, metrics={"finetuned": wide}), CLEAN)
    assert any("16.0 points" in alert.words for alert in alerts)


def test_a_diverged_phase_is_said(findings: Findings) -> None:
    phase = findings.finetuned.phases[1].model_copy(update={"stopped": "diverged"})
    alerts = find_alerts(changed(findings, finetuned={"phases": [phase]}), CLEAN)
    assert any(phase.name in alert.words for alert in alerts)


def test_a_forced_choice_that_the_rules_share_is_no_alert(findings: Findings) -> None:
    agreed = changed(findings, decision={"forced": True, "recommended": "fine_tune"})
    assert "Forced choice" not in titles(agreed)


def test_uncommitted_code_is_said_but_no_checkout_is_not_dirty(findings: Findings) -> None:
    dirty = CodeState("1" * 40, ("tasks/report.py",), "ab")
    assert "Written before its commit" in titles(findings, dirty)
    assert "Written before its commit" not in titles(findings, CodeState(None))


def test_classes_without_test_images_are_serious_and_named(findings: Findings) -> None:
    counts = {"cat": {"train": 9, "val": 3, "test": 3}, "fox": {"train": 9, "val": 0, "test": 0}}
    found = changed(findings, health={"class_counts": {**counts, "dog": counts["cat"]}})
    first = next(a for a in find_alerts(found, CLEAN) if "never tested" in a.title)
    assert first.level == "serious"
    assert tells(first.words, "1 of 3 classes has no test image", "fox", "other 2", "macro-F1")


def find_twins(found: Findings) -> Iterator[Alert]:
    return (one for one in find_alerts(found, CLEAN) if one.title == "Twins in train")


@pytest.mark.parametrize(("low", "level"), [(0.3, "serious"), (0.05, "caution")])
def test_twins_are_told_with_accuracy_on_both_kinds(
    findings: Findings, low: float, level: str
) -> None:
    shares = {"test": share(low + 0.1, 0.1)}
    twins = findings.audit.twins.model_copy(update={"shares": shares})
    scores = CleanScores(with_relative=share(0.9, 0.1, 24), without_relative=share(0.7, 0.1, 16))
    found = changed(
        findings,
        audit={"twins": twins, "twin_words": "24 of 40 have a twin."},
        metrics={"twins": scores},
    )
    alert = next(find_twins(found))
    assert alert.level == level
    words = alert.words.replace("\N{NO-BREAK SPACE}", " ")
    assert tells(words, "24 of 40 have a twin. Accuracy is 90.0 % on the 24", "70.0 % on the 16")
    of_some = scores.model_copy(update={"classes": 2})
    alert = next(find_twins(changed(found, metrics={"twins": of_some})))
    assert "Over 2 classes with both kinds, in the same mix, accuracy is 90.0" in alert.words


def test_what_files_give_away_is_serious(findings: Findings) -> None:
    found = changed(findings, audit={"file_words": "The mode tells covid."})
    assert Alert("serious", "The files give the label away", "The mode tells covid.") in (
        find_alerts(found, CLEAN)
    )


@pytest.mark.parametrize(("gain", "title"), [(0.1, "A lucky split"), (-0.1, "An unlucky split")])
def test_a_test_figure_outside_of_the_folds_is_told(
    findings: Findings, gain: float, title: str
) -> None:
    folds = findings.metrics.folds
    assert folds is not None
    told = {"difference": number(gain, 0.05), "outside": True}
    outside = changed(findings, metrics={"folds": folds.model_copy(update=told)})
    (alert,) = [one for one in find_alerts(outside, CLEAN) if one.title == title]
    assert alert.level == ("serious" if gain > 0 else "caution")
    for accuracy in (findings.metrics.baseline.accuracy, folds.accuracy):
        assert f"{100 * accuracy.value:.1f}" in alert.words
    inside = changed(findings, metrics={"folds": folds.model_copy(update={"outside": False})})
    assert not {"A lucky split", "An unlucky split"} & set(titles(inside))
