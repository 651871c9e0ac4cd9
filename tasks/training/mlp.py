"""A head with one hidden layer, trained on frozen features with early stopping on val."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW

from tasks.params import BaselineParams
from tasks.training.heads import apply_head, build_head
from tasks.training.logistic import Labelled, Moments
from tasks.training.losses import image_losses
from tasks.training.sampling import count_steps, epoch_batches
from tasks.training.schedule import warmup_cosine

PHASE = 0  # of the random numbers: fine-tuning counts its phases from 1
WARMUP_FRACTION = 0.1

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class MlpEpoch:
    """Losses after one epoch; the train loss is with dropout, while it trained."""

    train_loss: float
    val_loss: float


@dataclass(frozen=True)
class MlpFit:
    """The head with the lowest val loss, and how it got there."""

    head: nn.Module
    best_epoch: int
    epochs: Sequence[MlpEpoch]


def fit_mlp(
    train: Labelled,
    val: Labelled,
    moments: Moments,
    params: BaselineParams,
    *,
    classes: int,
    seed: int,
) -> MlpFit:
    """Train an MLP head with AdamW; the head of the epoch with the lowest val loss is given back.

    An epoch shows every image once, in one of its views. The batch norm at the input keeps the
    statistics of all training rows (`moments`): a batch of one image is no special case.
    """
    torch.manual_seed(seed)
    head = _initial_head(moments, params, classes)
    optimizer = AdamW(head.parameters(), lr=params.mlp_lr, weight_decay=params.mlp_weight_decay)
    best, best_epoch = deepcopy(head), 0
    epochs: list[MlpEpoch] = []
    while len(epochs) < params.mlp_epochs and len(epochs) - best_epoch < params.mlp_patience:
        train_loss = _run_epoch(head, optimizer, train, params, seed=seed, epoch=len(epochs))
        val_loss = float(image_losses(apply_head(head, val.features[:, 0]), val.labels).mean())
        lowest = min((one.val_loss for one in epochs), default=np.inf)
        epochs.append(MlpEpoch(train_loss, val_loss))
        if val_loss < lowest:
            best, best_epoch = deepcopy(head), len(epochs)
    return MlpFit(best.eval(), best_epoch, epochs)


def _initial_head(moments: Moments, params: BaselineParams, classes: int) -> nn.Module:
    dim = len(moments.mean)
    head = build_head("mlp", dim, classes, hidden=params.mlp_hidden, dropout=params.mlp_dropout)
    norm = head.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm1d)
    norm.running_mean = torch.from_numpy(moments.mean).float()
    variance = np.where(moments.deviation > 0, np.square(moments.deviation), 1.0)
    norm.running_var = torch.from_numpy(variance).float()
    return head


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
        optimizer.param_groups[0]["lr"] = params.mlp_lr * share
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
