"""How long stages took here, and how a duration is written."""

from pathlib import Path

from tasks.artifacts.records import read_json
from tasks.errors import ArtifactError
from tasks.runtime.machine import read_machine


def last_seconds(root: Path, stage: str) -> float | None:
    """Give how long a stage took when it ran last on this machine; None where nobody knows."""
    try:
        timing = read_json(root / read_machine().scratch / f"timings/{stage}.json")
        return float(timing["seconds"])
    except (ArtifactError, ValueError, KeyError, TypeError):
        return None


def in_time(seconds: float) -> str:
    """Write a duration for people: "40 s", "7 min", "2 h 5 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
