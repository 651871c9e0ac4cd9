"""history.csv: one row an epoch, with the rate of every group."""

from collections.abc import Sequence
from pathlib import Path

from tasks.artifacts import write_table
from tasks.training.freezing import HEAD_GROUP, TrainingGroup
from tasks.training.state import HistoryRow


def write_history(
    path: Path, history: Sequence[HistoryRow], groups: Sequence[TrainingGroup]
) -> None:
    """Write history.csv: one row an epoch, with the rate of every group, the head first."""
    names = [HEAD_GROUP, *(group.name for group in groups if group.name != HEAD_GROUP)]
    header = ["phase", "epoch", *(f"lr_{name}" for name in names)]
    header += ["train_loss", "train_accuracy", "val_loss", "val_accuracy"]
    rows = [
        [
            row.phase,
            row.epoch,
            *(row.rates.get(name, 0.0) for name in names),
            row.train_loss,
            row.train_accuracy,
            row.val_loss,
            row.val_accuracy,
        ]
        for row in history
    ]
    write_table(path, header, rows)
