"""Results in words, for the log and for people."""

from tasks.artifacts.records import Arm, DomainCheck, Estimate, Metrics, PredictionSets
from tasks.artifacts.words import FROZEN, name_trained, say_domain, say_sets, say_trained


def say_difference(gain: Estimate, confidence: float, arm: Arm) -> str:
    """Say in words what training did to the accuracy, and whether that is within noise."""
    assert gain.low is not None
    assert gain.high is not None
    images = "1 image" if gain.n == 1 else f"{gain.n:,} images"
    interval = (
        f"{100 * confidence:g} % interval {100 * gain.low:.1f} to {100 * gain.high:.1f}, {images}"
    )
    points = 100 * gain.value
    if arm == "scratch":
        return _say_from_scratch(gain, points, interval)
    if gain.low > 0:
        return f"Fine-tuning gains {points:.1f} points ({interval})."
    if gain.high < 0:
        return f"Fine-tuning loses {-points:.1f} points ({interval})."
    return f"Fine-tuning changes accuracy by {points:+.1f} points, within noise ({interval})."


def _say_from_scratch(gain: Estimate, points: float, interval: str) -> str:
    assert gain.low is not None
    assert gain.high is not None
    model = f"The {name_trained('scratch')} is"
    if gain.low > 0:
        return f"{model} {points:.1f} points better than the {FROZEN} ({interval})."
    if gain.high < 0:
        return f"{model} {-points:.1f} points worse than the {FROZEN} ({interval})."
    return f"{model} {points:+.1f} points from the {FROZEN}, within noise ({interval})."


def say_results(metrics: Metrics, arm: Arm) -> str:
    """Say in one line what the test images showed."""
    parts = [f"baseline {_words(metrics.baseline.accuracy)}"]
    if metrics.finetuned and metrics.difference:
        parts.append(f"{say_trained(arm)} {_words(metrics.finetuned.accuracy)}")
        parts.append(f"difference {_words(metrics.difference.accuracy, sign='+')}")
    shipped = say_trained(arm) if metrics.shipped == "finetuned" else "baseline"
    return (
        f"test accuracy: {', '.join(parts)} ({metrics.baseline.accuracy.n:,} images); "
        f"ships {shipped}"
    )


def headline(metrics: Metrics, arm: Arm) -> str:
    """Say in a few words which model ships and what test showed: accuracy, and the difference."""
    shipped = metrics.baseline
    names = {"baseline": f"the {FROZEN}", "finetuned": say_trained(arm)}
    if metrics.shipped == "finetuned" and metrics.finetuned is not None:
        shipped = metrics.finetuned
    accuracy = shipped.accuracy
    words = f"shipped {names[metrics.shipped]}: {100 * accuracy.value:.1f} %"
    if accuracy.low is not None and accuracy.high is not None:
        words += f" [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"
    if metrics.difference is None:
        return words
    gain = 100 * metrics.difference.accuracy.value
    if metrics.shipped == "finetuned":
        return f"{words}, {gain:+.1f} over frozen"
    return f"{words}, {say_trained(arm)} {gain:+.1f}"


def headline_on_val(metrics: Metrics, arm: Arm) -> str:
    """Say in a few words which model ships and how good both are on val; nothing of test."""
    frozen = f"frozen {100 * metrics.val_baseline:.1f} %"
    if metrics.val_finetuned is None:
        return f"ships the {FROZEN}; on val {frozen}"
    names = {"baseline": f"the {FROZEN}", "finetuned": say_trained(arm)}
    tuned = f"{say_trained(arm)} {100 * metrics.val_finetuned:.1f} %"
    return f"ships {names[metrics.shipped]}; on val {frozen}, {tuned}"


def warn_of_unknown(sets: PredictionSets, domain: DomainCheck) -> list[str]:
    """Say where sets hold less than asked, or too many images are called strange, beyond chance."""
    covered, strange = sets.kinds[0].coverage, domain.false_alarms
    warnings = []
    if covered.high is not None and covered.high < sets.asked:
        warnings.append(f"{say_sets(sets)} Test differs from val, which set their limits.")
    if strange.low is not None and strange.low > domain.asked:
        warnings.append(f"{say_domain(domain)} Test differs from val, which set the limit.")
    return warnings


def _words(estimate: Estimate, sign: str = "") -> str:
    return f"{estimate.value:{sign}.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
