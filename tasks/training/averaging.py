"""A moving average of the weights over the steps of a phase."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def update_average(
    average: dict[str, Tensor], module: nn.Module, decay: float, *, step: int
) -> None:
    """Move every averaged tensor a bit towards the module's, in place; whole numbers are copied.

    The decay starts low, so that the first steps are followed: min(decay, (1 + t) / (10 + t)).

    Args:
        average: The averaged parameters and buffers by name; may be empty.
        module: What is trained.
        decay: Share of the old average that stays, in [0, 1).
        step: Steps done before this one, t.

    Source: Polyak and Juditsky 1992; the warm-up is that of TensorFlow's ExponentialMovingAverage.
    """
    state = module.state_dict() if average else {}
    kept = min(decay, (1 + step) / (10 + step))
    for name, tensor in average.items():
        now = state[name].to(tensor.device)
        if tensor.is_floating_point():
            tensor.lerp_(now, 1 - kept)
        else:
            tensor.copy_(now)
