"""What a benchmark run measured, as plain values; raw json beside the page that is made of it."""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

ENGINE = "frozen backbone on pixels in memory, images"
HEAD = "linear head at all strengths of params.yaml, rows of 1,280 features"
TIMM_LOOP = "plain timm loop on the same, images"
FLOW = "from image files to features, decoding and rendering included, views"
FILES = "the same as stages augment and extract, with their start and the probe, views"


@dataclass(frozen=True)
class Trial:
    """One method, trained once on one split at one rate.

    Attributes:
        method: Regraft or a peer.
        seed: Of split and training.
        rate: Learning rate; None where the method chooses its own.
        val_accuracy: What rates are chosen by.
        predictions: Class of each test image, in the order of the manifest.
        seconds: Wall time, the start of the process included.
        peak_bytes: Memory of the process tree.
        images_per_second: Training images shown in each second of training; for a frozen head,
            views that go from files to features.
    """

    method: str
    seed: int
    rate: float | None
    val_accuracy: float
    predictions: list[int]
    seconds: float
    peak_bytes: int
    images_per_second: float


@dataclass(frozen=True)
class Answers:
    """Label and group of each test image of one split."""

    labels: list[int]
    groups: list[str]


@dataclass(frozen=True)
class Results:
    """Everything that the page is made of."""

    command: str
    machine: dict[str, str]
    data: str
    options: dict[str, str]
    note: str = ""
    test_sets: dict[str, Answers] = field(default_factory=dict)  # by seed
    trials: list[Trial] = field(default_factory=list)
    speeds: dict[str, float] = field(default_factory=dict)


def choose_best(trials: list[Trial]) -> Trial:
    """Choose the rate with the highest val accuracy; of equal ones the lowest rate."""
    return max(trials, key=lambda trial: (trial.val_accuracy, -(trial.rate or 0.0)))


def write_results(path: Path, results: Results) -> None:
    """Write everything as json, a list of numbers on one line."""
    text = json.dumps(asdict(results), indent=1)
    dense = re.sub(r"\[[^][{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text)
    path.write_text(dense + "\n")


def read_results(path: Path) -> Results:
    """Read what `write_results` wrote."""
    content = json.loads(path.read_text())
    content["test_sets"] = {seed: Answers(**one) for seed, one in content["test_sets"].items()}
    content["trials"] = [Trial(**one) for one in content["trials"]]
    return Results(**content)
