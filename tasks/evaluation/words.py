"""Results in words, for the log and for people."""

from tasks.records import Arm, Estimate, Metrics


def name_trained(arm: Arm) -> str:
    """Name the model that stage finetune made."""
    return "model trained from scratch" if arm == "scratch" else "fine-tuned model"


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
    model = "The model trained from scratch is"
    if gain.low > 0:
        return f"{model} {points:.1f} points better than the frozen baseline ({interval})."
    if gain.high < 0:
        return f"{model} {-points:.1f} points worse than the frozen baseline ({interval})."
    return f"{model} {points:+.1f} points from the frozen baseline, within noise ({interval})."


def summarize(metrics: Metrics, arm: Arm) -> str:
    """Say in one line what the test images showed."""
    parts = [f"baseline {_words(metrics.baseline.accuracy)}"]
    if metrics.finetuned and metrics.difference:
        parts.append(f"{_short(arm)} {_words(metrics.finetuned.accuracy)}")
        parts.append(f"difference {_words(metrics.difference.accuracy, sign='+')}")
    shipped = _short(arm) if metrics.shipped == "finetuned" else "baseline"
    return (
        f"test accuracy: {', '.join(parts)} ({metrics.baseline.accuracy.n:,} images); "
        f"ships {shipped}"
    )


def _short(arm: Arm) -> str:
    return "from scratch" if arm == "scratch" else "fine-tuned"


def _words(estimate: Estimate, sign: str = "") -> str:
    return f"{estimate.value:{sign}.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
