"""Averages of weights: moving, over the steps of a phase; uniform, over the ends of phases.

Our own: timm's ModelEmaV3 keeps a copy of the whole model and no state that could be saved. These
are plain tensors of the trained layers alone, which checkpoints hold; a test compares with timm.
"""

import math

import torch
from torch import Tensor, nn

from tasks.training.state import Tensors


@torch.no_grad()
def update_average(
    average: dict[str, Tensor], module: nn.Module, decay: float, *, step: int
) -> None:
    """Move every averaged tensor a bit towards the module's, in place; whole numbers are copied.

    Args:
        average: The averaged parameters and buffers by name; may be empty.
        module: What is trained.
        decay: Share of the old average that stays, in [0, 1).
        step: Steps done before this one, t.

    Source: Polyak and Juditsky 1992; the steps are those of timm's ModelEmaV3 with use_warmup.
    """
    state = module.state_dict() if average else {}
    kept = warm_decay(decay, step)
    for name, tensor in average.items():
        now = state[name].to(tensor.device)
        if tensor.is_floating_point():
            tensor.lerp_(now, 1 - kept)
        else:
            tensor.copy_(now)


def warm_decay(decay: float, step: int) -> float:
    """Give the share that stays at a step, t: min(decay, 1 - (1 + t)^(-2/3)), 0 at first.

    It starts low, so that the average forgets the weights of the start and follows the first steps.

    Source: timm's ModelEmaV3, warmup_gamma 1, warmup_power 2/3, after Crowson.
    """
    return min(decay, 1 - math.pow(1 + step, -2 / 3))


def average_in(
    average: Tensors, before: Tensors, after: Tensors, *, count: int
) -> dict[str, Tensor]:
    """Give the uniform average of what `count` phases ended with; whole numbers are the newest's.

    One running mean is kept however many phases there are. Layers that only the newest phase
    trained were in all earlier ones what they were before it.

    Args:
        average: Uniform average over the phases before the newest; empty where there are none.
        before: Tensors of the newest phase's layers as it began.
        after: The same as it ended.
        count: How many phases there are, the newest included.

    Source: Wortsman et al. 2022, 2203.05482 (uniform soup; here of phases instead of runs).
    """
    return {
        name: average.get(name, before[name]).lerp(tensor, 1 / count)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in after.items()
    }
