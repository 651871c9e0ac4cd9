"""Weights between the start and the end of fine-tuning; val chooses how far to go."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from tasks.training.gate import ValSet
from tasks.training.state import Logits, Tensors, load_tensors
from tasks.training.verdicts import val_loss


@dataclass(frozen=True)
class Interpolated:
    """Weights at the chosen share of the fine-tuned ones, and the val loss of every share tried."""

    alpha: float
    weights: Tensors
    val_logits: Logits
    val_losses: dict[float, float]


def interpolate(theta_0: Tensors, theta_1: Tensors, alpha: float) -> dict[str, Tensor]:
    """Give (1 - alpha) * theta_0 + alpha * theta_1; whole-number buffers are those of theta_1.

    Source: Wortsman et al. 2022, 2109.01903, equation 1 (WiSE-FT).
    """
    return {
        name: tensor if not tensor.is_floating_point() else theta_0[name].lerp(tensor, alpha)
        for name, tensor in theta_1.items()
    }


def choose_interpolation(
    classifier: nn.Module,
    theta_0: Tensors,
    theta_1: Tensors,
    *,
    shares: Sequence[float],
    predict_val: Callable[[], Logits],
    val: ValSet,
) -> Interpolated:
    """Try shares of the fine-tuned weights; the classifier gets those with the lowest val loss.

    Args:
        classifier: Is changed in place.
        theta_0: Its tensors before fine-tuning.
        theta_1: The same after it.
        shares: Values of alpha, in [0, 1]; of equally good ones the first counts.
        predict_val: Gives the logits of the classifier as it is.
        val: Labels and groups of the val images.
    """
    tried: dict[float, Logits] = {}
    for alpha in shares:
        load_tensors(classifier, interpolate(theta_0, theta_1, alpha))
        tried[alpha] = predict_val()
    losses = {alpha: val_loss(logits, val) for alpha, logits in tried.items()}
    best = min(losses, key=lambda alpha: losses[alpha])
    weights = interpolate(theta_0, theta_1, best)
    load_tensors(classifier, weights)
    return Interpolated(best, weights, tried[best], losses)
