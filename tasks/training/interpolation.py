"""The final weights: between the start and the end of fine-tuning, or the average of its phases.

Val chooses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from tasks.training.gate import ValSet
from tasks.training.state import Logits, Tensors, load_tensors
from tasks.training.verdicts import val_loss


@dataclass(frozen=True, slots=True)
class Candidate:
    """Weights that val judges.

    Attributes:
        alpha: Share of the fine-tuned weights, in [0, 1]; 1 for the average.
        averaged: Whether they are the average of the kept phases.
    """

    alpha: float
    averaged: bool = False

    @property
    def name(self) -> str:
        """The share, or what the average is called."""
        return "the average of the phases" if self.averaged else f"{self.alpha:g}"


@dataclass(frozen=True)
class Chosen:
    """The candidate with the lowest val loss, its logits, and the val loss of every one."""

    best: Candidate
    val_logits: Logits
    val_losses: dict[Candidate, float]


def explain_choice(chosen: Chosen | None) -> list[str]:
    """Say in words what was chosen; None where no phase was kept."""
    if chosen is None:
        return ["Every phase was rolled back: the model is the frozen baseline."]
    if len(chosen.val_losses) == 1:
        return []
    tried = ", ".join(f"{one.name}: {loss:.4f}" for one, loss in chosen.val_losses.items())
    best = chosen.best.name if chosen.best.averaged else f"the share {chosen.best.name}"
    return [f"Of the fine-tuned weights tried on val, {best} has the lowest loss ({tried})."]


def interpolate(theta_0: Tensors, theta_1: Tensors, alpha: float) -> dict[str, Tensor]:
    """Give (1 - alpha) * theta_0 + alpha * theta_1; whole-number buffers are those of theta_1.

    Source: Wortsman et al. 2022, 2109.01903, equation 1 (WiSE-FT).
    """
    return {
        name: tensor if not tensor.is_floating_point() else theta_0[name].lerp(tensor, alpha)
        for name, tensor in theta_1.items()
    }


def choose_weights(
    classifier: nn.Module,
    theta_0: Tensors,
    theta_1: Tensors,
    *,
    shares: Sequence[float],
    average: Tensors | None,
    predict_val: Callable[[], Logits],
    val: ValSet,
) -> Chosen:
    """Try shares of the fine-tuned weights, then the average; the lowest val loss wins.

    Args:
        classifier: Is changed in place; ends with the chosen weights.
        theta_0: Its tensors before fine-tuning.
        theta_1: The same after it.
        shares: Values of alpha, in [0, 1]; of equally good candidates the first counts.
        average: The average of what kept phases ended with, of some of the same tensors; the
            others are as in theta_1. None where there is nothing to average.
        predict_val: Gives the logits of the classifier as it is.
        val: Labels and groups of the val images.
    """

    def load(candidate: Candidate) -> None:
        ends = interpolate(theta_0, theta_1, candidate.alpha)
        load_tensors(classifier, {**ends, **(average or {})} if candidate.averaged else ends)

    candidates = [Candidate(alpha) for alpha in shares]
    if average is not None:
        candidates.append(Candidate(1.0, averaged=True))
    tried: dict[Candidate, Logits] = {}
    for candidate in candidates:
        load(candidate)
        tried[candidate] = predict_val()
    losses = {candidate: val_loss(logits, val) for candidate, logits in tried.items()}
    best = min(losses, key=lambda candidate: losses[candidate])
    load(best)
    return Chosen(best, tried[best], losses)
