"""The average of phases counts their ends the same."""

import pytest
import torch

from tasks.training.resume.checkpoints import Tensors
from tasks.training.verdicts import average_in


def phase(value: float, batches: int, deeper: float | None = None) -> Tensors:
    """Weights of a head, and of a deeper layer where the phase trains it."""
    tensors = {"head": torch.tensor([value, -value]), "batches": torch.tensor(batches)}
    return tensors if deeper is None else {**tensors, "deeper": torch.tensor([deeper])}


def test_the_ends_of_phases_count_the_same_and_untrained_layers_as_they_were():
    average = average_in({}, phase(0.0, 0), phase(1.0, 5), count=1)
    average = average_in(average, phase(1.0, 5, 8.0), phase(3.0, 6, 2.0), count=2)
    average = average_in(average, phase(3.0, 6, 2.0), phase(5.0, 9, 5.0), count=3)
    assert average["head"].tolist() == pytest.approx([3.0, -3.0])
    assert average["deeper"].tolist() == pytest.approx([(8.0 + 2.0 + 5.0) / 3])
    assert average["batches"] == 9
    assert average["batches"].dtype == torch.int64


def test_the_average_of_one_phase_is_its_end_to_the_last_bit():
    end = {"head": torch.tensor([1 / 3, 2 / 7])}
    assert torch.equal(average_in({}, {"head": torch.ones(2)}, end, count=1)["head"], end["head"])
