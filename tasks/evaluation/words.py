"""Results in words, for the log and for people."""

from tasks.records import Estimate, Metrics


def say_difference(gain: Estimate, confidence: float) -> str:
    """Say in words what fine-tuning did to the accuracy, and whether that is within noise."""
    assert gain.low is not None
    assert gain.high is not None
    images = "1 image" if gain.n == 1 else f"{gain.n:,} images"
    interval = (
        f"{100 * confidence:g} % interval {100 * gain.low:.1f} to {100 * gain.high:.1f}, {images}"
    )
    points = 100 * gain.value
    if gain.low > 0:
        return f"Fine-tuning gains {points:.1f} points ({interval})."
    if gain.high < 0:
        return f"Fine-tuning loses {-points:.1f} points ({interval})."
    return f"Fine-tuning changes accuracy by {points:+.1f} points, within noise ({interval})."


def summarize(metrics: Metrics) -> str:
    """Say in one line what the test images showed."""
    parts = [f"baseline {_words(metrics.baseline.accuracy)}"]
    if metrics.finetuned and metrics.difference:
        parts.append(f"fine-tuned {_words(metrics.finetuned.accuracy)}")
        parts.append(f"difference {_words(metrics.difference.accuracy, sign='+')}")
    shipped = "fine-tuned" if metrics.shipped == "finetuned" else "baseline"
    return (
        f"test accuracy: {', '.join(parts)} ({metrics.baseline.accuracy.n:,} images); "
        f"ships {shipped}"
    )


def _words(estimate: Estimate, sign: str = "") -> str:
    return f"{estimate.value:{sign}.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
