"""Averages of weights are what their formulas, and timm, say."""

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from tasks.training.averaging import average_in, update_average, warm_decay
from tasks.training.state import Tensors, copy_tensors


def make_module() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_the_moving_average_takes_the_steps_of_timm(decay: float):
    module = make_module()
    theirs = ModelEmaV3(module, decay=decay, use_warmup=True)
    ours = copy_tensors(module, list(module.state_dict()))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in range(12):
        optimizer.zero_grad()
        torch.autograd.backward(
            nn.functional.mse_loss(module(torch.randn(5, 3)), torch.randn(5, 4))
        )
        optimizer.step()
        theirs.update(module, step=step + 1)
        update_average(ours, module, decay, step=step)
    for name, tensor in theirs.module.state_dict().items():
        torch.testing.assert_close(ours[name], tensor)
    assert ours["1.num_batches_tracked"] == 12
    assert not torch.allclose(ours["0.weight"], module.state_dict()["0.weight"])


def test_the_decay_rises_from_nothing_to_what_was_asked_for():
    decays = [warm_decay(0.9, step) for step in range(50)]
    assert decays[:2] == pytest.approx([0.0, 1 - 2 ** (-2 / 3)])
    assert decays == sorted(decays)
    assert decays[-1] == 0.9


def test_nothing_is_averaged_where_no_average_is_kept():
    average: dict[str, torch.Tensor] = {}
    update_average(average, make_module(), 0.9, step=3)
    assert average == {}


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
