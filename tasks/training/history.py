"""history.csv: one row an epoch, with the rate of every group."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tasks.artifacts import write_rows
from tasks.records import HistoryRow
from tasks.training.freezing import HEAD_GROUP, TrainingGroup


def write_history(
    path: Path, history: Sequence[HistoryRow], groups: Sequence[TrainingGroup]
) -> None:
    """Write history.csv: one row an epoch, with the rate of every group, the head first."""
    names = [HEAD_GROUP, *(group.name for group in groups if group.name != HEAD_GROUP)]
    rows = [
        replace(row, rates={name: row.rates.get(name, 0.0) for name in names}) for row in history
    ]
    write_rows(path, HistoryRow, rows, names)
