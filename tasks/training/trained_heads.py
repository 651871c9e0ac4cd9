"""Heads that are trained step by step on frozen features, with early stopping on val."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW

from tasks.errors import TrainingError
from tasks.params import BaselineParams
from tasks.training.heads import CosineHead, apply_head, build_head
from tasks.training.logistic import Labelled, Moments
from tasks.training.losses import image_losses
from tasks.training.overfitting import EpochLosses
from tasks.training.sampling import count_steps, epoch_batches
from tasks.training.schedule import warmup_cosine

PHASE = 0  # of the random numbers: fine-tuning counts its phases from 1
WARMUP_FRACTION = 0.1
SCALE_RATE = 10.0  # rate of a cosine head's scale, as a multiple of that of its directions
PARAMETERS_AN_IMAGE = 256  # of an MLP whose width follows the data
NARROWEST, WIDEST = 16, 1024
IMAGES_AT_ONCE = 1024

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class HeadFit:
    """The head with the lowest val loss, how it got there, and the width of its hidden layer.

    `breakdown` says in which epoch after that a loss was not a number any more, if one was.
    """

    head: nn.Module
    best_epoch: int
    epochs: Sequence[EpochLosses]
    breakdown: str | None = None
    hidden: int = 0


def fit_mlp(
    train: Labelled,
    val: Labelled,
    moments: Moments,
    params: BaselineParams,
    *,
    classes: int,
    seed: int,
) -> HeadFit:
    """Train an MLP head; its width is `mlp_width`.

    Raises:
        TrainingError: It breaks down in its first epoch.
    """
    torch.manual_seed(seed)
    dim = len(moments.mean)
    hidden = mlp_width(params, images=len(train.labels), feature_dim=dim, classes=classes)
    head = build_head("mlp", dim, classes, hidden=hidden, dropout=params.mlp_dropout)
    _standardize(head, moments)
    options = [{"params": list(head.parameters()), "scale": 1.0}]
    return replace(_fit(head, options, train, val, params, seed=seed), hidden=hidden)


def fit_cosine(
    train: Labelled,
    val: Labelled,
    moments: Moments,
    params: BaselineParams,
    *,
    classes: int,
    seed: int,
) -> HeadFit:
    """Train a cosine head, with the rate, the weight decay, the epochs and the batches of the MLP.

    Its directions start at the mean directions of the classes. Its scale learns ten times as fast
    and does not decay: few steps must suffice to find it.

    Raises:
        TrainingError: It breaks down in its first epoch.

    Source: Qi et al. 2018, 1712.07136 (imprinted weights).
    """
    torch.manual_seed(seed)
    head = build_head("cosine", len(moments.mean), classes, hidden=0, dropout=0.0)
    assert isinstance(head, CosineHead)
    _standardize(head, moments)
    _imprint(head.eval(), train)
    options: list[dict[str, object]] = [
        {"params": [head.weight], "scale": 1.0},
        {"params": [head.log_scale], "scale": SCALE_RATE, "weight_decay": 0.0},
    ]
    return _fit(head, options, train, val, params, seed=seed)


def mlp_width(params: BaselineParams, *, images: int, feature_dim: int, classes: int) -> int:
    """Width of the MLP's hidden layer: as given, or by the number of training images.

    `auto` is the largest power of two, from 16 to 1024, with at most 256 weights an image. A rule
    of thumb: dropout, weight decay and early stopping do the rest.
    """
    if params.mlp_hidden != "auto":
        return params.mlp_hidden
    affordable = PARAMETERS_AN_IMAGE * images / (feature_dim + classes)
    power = 1 << int(np.log2(max(affordable, 1)))
    return min(max(power, NARROWEST), WIDEST)


def _standardize(head: nn.Module, moments: Moments) -> None:
    """Let the batch norm at the input keep the statistics of all training rows."""
    norm = head.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm1d)
    norm.running_mean = torch.from_numpy(moments.mean).float()
    variance = np.where(moments.deviation > 0, np.square(moments.deviation), 1.0)
    norm.running_var = torch.from_numpy(variance).float()


@torch.no_grad()
def _imprint(head: CosineHead, train: Labelled) -> None:
    """Set the directions to the classes' mean directions, over all views; without images: random.

    Features may be memory-mapped: they are read in blocks.
    """
    sums = torch.zeros_like(head.weight)
    for start in range(0, len(train.labels), IMAGES_AT_ONCE):
        rows = np.array(train.features[start : start + IMAGES_AT_ONCE], dtype=np.float32)
        labels = torch.from_numpy(train.labels[start : start + IMAGES_AT_ONCE])
        units = functional.normalize(head.norm(torch.from_numpy(rows).flatten(0, 1)), dim=1)
        sums.index_add_(0, labels.repeat_interleave(rows.shape[1]), units)
    seen = sums.any(dim=1, keepdim=True)
    head.weight.copy_(functional.normalize(torch.where(seen, sums, head.weight), dim=1))


def _fit(
    head: nn.Module,
    options: list[dict[str, object]],
    train: Labelled,
    val: Labelled,
    params: BaselineParams,
    *,
    seed: int,
) -> HeadFit:
    """Train with AdamW; the head of the epoch with the lowest val loss is given back.

    An epoch shows every image once, in one of its views. The batch norm at the input keeps its
    statistics: a batch of one image is no special case.
    """
    optimizer = AdamW(options, lr=params.mlp_lr, weight_decay=params.mlp_weight_decay)
    best, best_epoch = deepcopy(head), 0
    epochs: list[EpochLosses] = []
    breakdown = None
    while len(epochs) < params.mlp_epochs and len(epochs) - best_epoch < params.mlp_patience:
        train_loss = _run_epoch(head, optimizer, train, params, seed=seed, epoch=len(epochs))
        val_loss = float(image_losses(apply_head(head, val.features[:, 0]), val.labels).mean())
        if not np.isfinite([train_loss, val_loss]).all():
            breakdown = (
                f"epoch {len(epochs) + 1} (train loss {train_loss:.3g}, val loss {val_loss:.3g}); "
                "lower baseline.mlp_lr"
            )
            break
        lowest = min((one.val_loss for one in epochs), default=np.inf)
        epochs.append(EpochLosses(train_loss, val_loss))
        if val_loss < lowest:
            best, best_epoch = deepcopy(head), len(epochs)
    if not epochs:
        raise TrainingError(f"the {type(head).__name__} broke down in {breakdown}")
    return HeadFit(best.eval(), best_epoch, epochs, breakdown)


def _run_epoch(
    head: nn.Module,
    optimizer: AdamW,
    train: Labelled,
    params: BaselineParams,
    *,
    seed: int,
    epoch: int,
) -> float:
    """Train one epoch; give the mean loss over its images."""
    head.train().get_submodule("norm").eval()
    steps = count_steps(len(train.labels), params.batch_size)
    total = 0.0
    for step, (rows, labels) in enumerate(_batches(train, params, seed=seed, epoch=epoch)):
        share = warmup_cosine(
            epoch * steps + step,
            steps=params.mlp_epochs * steps,
            warmup_fraction=WARMUP_FRACTION,
        )
        for group in optimizer.param_groups:
            group["lr"] = params.mlp_lr * group["scale"] * share
        optimizer.zero_grad()
        loss = functional.cross_entropy(head(rows), labels)
        torch.autograd.backward(loss)
        optimizer.step()
        total += float(loss.detach()) * len(labels)
    return total / len(train.labels)


def _batches(
    train: Labelled, params: BaselineParams, *, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    views = train.features.shape[1] - 1
    images = len(train.labels)
    for batch in epoch_batches(
        images, views, params.batch_size, seed=seed, phase=PHASE, epoch=epoch
    ):
        view = batch.rows - batch.images * (views + 1)
        rows = np.asarray(train.features[batch.images, view], dtype=np.float32)
        yield torch.from_numpy(rows), torch.from_numpy(train.labels[batch.images])
