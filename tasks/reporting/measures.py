"""The table of what the features are worth: measures in words, with their intervals."""

from collections.abc import Iterator
from dataclasses import dataclass

from tasks.artifacts.records import Similarity
from tasks.reporting.text import amount, amount_interval, percent, percent_interval

WORDS = {  # key in similarity.json -> name and remark, in the order of the table
    "ridge_accuracy": ("Ridge accuracy", "leave-one-out, pretrained features"),
    "random_ridge_accuracy": ("Ridge accuracy, random weights", ""),
    "knn_accuracy": ("Nearest-neighbor accuracy", "leave-one-out"),
    "logme": ("LogME", "evidence of the labels, higher is better"),
    "h_score": ("H-score", "higher is better, at most classes minus one"),
}


@dataclass(frozen=True, slots=True)
class MeasureRow:
    """A row of the table: what is measured, a remark or nothing, the value and its interval."""

    name: str
    remark: str
    value: str
    interval: str


def measure_rows(similarity: Similarity) -> Iterator[MeasureRow]:
    """Yield every measure; one without words goes by its key, and `_accuracy` marks a share."""
    known = {key: getattr(similarity, key) for key in WORDS}
    for key, estimate in (known | similarity.__pydantic_extra__).items():
        name, remark = WORDS.get(key, (key.replace("_", " ").capitalize(), ""))
        if key.endswith("_accuracy"):
            yield MeasureRow(name, remark, percent(estimate.value), percent_interval(estimate))
        else:
            yield MeasureRow(name, remark, amount(estimate.value), amount_interval(estimate))
