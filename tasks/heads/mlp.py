"""The MLP head: trained step by step on frozen features, with early stopping on val."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW

from tasks.artifacts.words import name_head
from tasks.errors import TrainingError
from tasks.heads.features import Labeled, measure_moments
from tasks.heads.registry import HeadPath, TrainedHead, apply_head
from tasks.heads.schedule import count_steps, epoch_batches, warmup_cosine
from tasks.judging.rule import EpochLosses, describe_overfitting
from tasks.params import BaselineParams
from tasks.runtime.progress import progress

PHASE = 0  # of the random numbers: fine-tuning counts its phases from 1
WARMUP_FRACTION = 0.1
PARAMETERS_AN_IMAGE = 256  # of an MLP whose width follows the data
NARROWEST, WIDEST = 16, 1024
NAME = name_head("mlp")


def build(feature_dim: int, classes: int, *, hidden: int, dropout: float) -> nn.Module:
    """Build batch norm, linear, ReLU, dropout, linear.

    The batch norm standardizes: its stored statistics are those of the training features.
    """
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm1d(feature_dim),
            hidden=nn.Linear(feature_dim, hidden),
            act=nn.ReLU(),
            dropout=nn.Dropout(dropout),
            out=nn.Linear(hidden, classes),
        )
    )


def train(
    train: Labeled, val: Labeled, params: BaselineParams, *, classes: int, seed: int
) -> HeadPath:
    """Train one MLP and say what befell it."""
    fit = fit_mlp(train, val, params, classes=classes, seed=seed)
    setting = f"{fit.hidden} hidden units, epoch {fit.best_epoch} of {len(fit.epochs)}"
    outcome = f"epoch {fit.best_epoch} was kept"
    overfits = describe_overfitting(f"The {NAME}", fit.epochs, fit.best_epoch, outcome)
    broke = f"The {NAME} broke down in {fit.breakdown}; {outcome}." if fit.breakdown else None
    notes = [note for note in (overfits, broke) if note]
    head = TrainedHead(fit.head, setting, fit.hidden, params.mlp_dropout, notes)
    return HeadPath([head], head)


@dataclass(frozen=True)
class HeadFit:
    """The head with the lowest val loss, the width of its hidden layer, and how it got there.

    `breakdown` says in which epoch after that a loss was not a number any more, if one was.
    """

    head: nn.Module
    hidden: int
    best_epoch: int
    epochs: Sequence[EpochLosses]
    breakdown: str | None


def fit_mlp(
    train: Labeled, val: Labeled, params: BaselineParams, *, classes: int, seed: int
) -> HeadFit:
    """Train an MLP head of width `mlp_width` with AdamW; give it as of its best epoch on val.

    An epoch shows every image once, in one of its views. The batch norm at the input keeps its
    statistics: a batch of one image is no special case.

    Raises:
        TrainingError: It breaks down in its first epoch.
    """
    torch.manual_seed(seed)
    images, _, dim = train.features.shape
    hidden = mlp_width(params, images=images, feature_dim=dim, classes=classes)
    head = build(dim, classes, hidden=hidden, dropout=params.mlp_dropout)
    _standardize(head, train)
    optimizer = AdamW(head.parameters(), lr=params.mlp_lr, weight_decay=params.mlp_weight_decay)
    best, best_epoch = deepcopy(head), 0
    epochs: list[EpochLosses] = []
    breakdown = None
    with progress(NAME, params.mlp_epochs, "epochs") as meter:
        while len(epochs) < params.mlp_epochs and len(epochs) - best_epoch < params.mlp_patience:
            train_loss = _run_epoch(head, optimizer, train, params, seed=seed, epoch=len(epochs))
            val_loss = val.judge.loss(apply_head(head, val.features[:, 0]))
            if not np.isfinite([train_loss, val_loss]).all():
                breakdown = (
                    f"epoch {len(epochs) + 1} (train loss {train_loss:.3g}, val loss "
                    f"{val_loss:.3g}); lower baseline.mlp_lr"
                )
                break
            lowest = min((one.val_loss for one in epochs), default=np.inf)
            epochs.append(EpochLosses(train_loss, val_loss))
            meter.advance()
            if val_loss < lowest:
                best, best_epoch = deepcopy(head), len(epochs)
    if not epochs:
        raise TrainingError(f"the {NAME} broke down in {breakdown}")
    return HeadFit(best.eval(), hidden, best_epoch, epochs, breakdown)


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


def _standardize(head: nn.Module, train: Labeled) -> None:
    """Let the batch norm at the input keep the statistics of all training rows."""
    moments = measure_moments(train, np.arange(len(train.labels)))
    norm = head.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm1d)
    norm.running_mean = torch.from_numpy(moments.mean).float()
    variance = np.where(moments.deviation > 0, np.square(moments.deviation), 1.0)
    norm.running_var = torch.from_numpy(variance).float()


def _run_epoch(
    head: nn.Module,
    optimizer: AdamW,
    train: Labeled,
    params: BaselineParams,
    *,
    seed: int,
    epoch: int,
) -> float:
    """Train one epoch; give the mean loss over its images."""
    head.train().get_submodule("norm").eval()
    steps = count_steps(len(train.labels), params.batch_size)
    weights = _class_weights(train)
    total = 0.0
    for step, (rows, labels) in enumerate(_batches(train, params, seed=seed, epoch=epoch)):
        share = warmup_cosine(
            epoch * steps + step,
            steps=params.mlp_epochs * steps,
            warmup_fraction=WARMUP_FRACTION,
        )
        for group in optimizer.param_groups:
            group["lr"] = params.mlp_lr * share
        optimizer.zero_grad()
        losses = functional.cross_entropy(head(rows), labels, reduction="none")
        loss = losses.mean() if weights is None else (losses * weights[labels]).mean()
        torch.autograd.backward(loss)
        optimizer.step()
        total += float(loss.detach()) * len(labels)
    return total / len(train.labels)


def _class_weights(train: Labeled) -> Tensor | None:
    """What an image of each class counts, float32 (C,); None: all the same."""
    everyone = np.arange(len(train.labels))
    weights = train.weights(everyone)
    if weights is None:
        return None
    by_class = np.zeros(train.labels.max() + 1, np.float32)
    by_class[train.labels] = weights
    return torch.from_numpy(by_class)


def _batches(
    train: Labeled, params: BaselineParams, *, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    views = train.features.shape[1] - 1
    images = len(train.labels)
    for batch in epoch_batches(
        images, views, params.batch_size, seed=seed, phase=PHASE, epoch=epoch
    ):
        view = batch.rows - batch.images * (views + 1)
        rows = np.asarray(train.features[batch.images, view], dtype=np.float32)
        yield torch.from_numpy(rows), torch.from_numpy(train.labels[batch.images])
