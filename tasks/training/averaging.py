"""The uniform average of the weights that phases ended with."""

from torch import Tensor

from tasks.training.state import Tensors


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
