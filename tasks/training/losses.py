"""What training minimizes: cross-entropy."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor
from torch.nn import functional

from tasks.training.sampling import Indices


def class_weights(labels: Indices, classes: int) -> Tensor:
    """Weights inverse to class frequency, float32 (C,); over the images they average 1.

    A class without images gets weight 0: nothing can be learned about it.
    """
    counts = np.bincount(labels, minlength=classes)
    present = np.count_nonzero(counts)
    weights = np.divide(len(labels), present * counts, out=np.zeros(classes), where=counts > 0)
    return torch.from_numpy(weights.astype(np.float32))


def smoothed_cross_entropy(
    logits: Tensor, labels: Tensor, *, smoothing: float, weights: Tensor | None
) -> Tensor:
    """Mean over images of the cross-entropy with smoothed labels, each image weighed by its class.

    Args:
        logits: (N, C).
        labels: int64 (N,).
        smoothing: Share of a label that is spread over all classes, in [0, 1).
        weights: Weight of an image by its class, (C,); None weighs all the same.

    Source: Szegedy et al. 2016, 1512.00567, section 7 (label smoothing).
    """
    losses = functional.cross_entropy(
        logits.float(), labels, label_smoothing=smoothing, reduction="none"
    )
    return losses.mean() if weights is None else (losses * weights[labels]).mean()


def image_losses(logits: NDArray[np.float32], labels: Indices) -> NDArray[np.float64]:
    """Cross-entropy of every image, float64 (N,), in nats, from logits (N, C) and labels (N,)."""
    wide = logits.astype(np.float64)
    losses: NDArray[np.float64] = logsumexp(wide, axis=1) - wide[np.arange(len(labels)), labels]
    return losses


def right_images(logits: NDArray[np.float32], labels: Indices) -> NDArray[np.bool_]:
    """Whether the largest logit of every image is its label's, bool (N,)."""
    right: NDArray[np.bool_] = logits.argmax(axis=1) == labels
    return right
