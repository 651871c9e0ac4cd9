"""Mixed batches: mixup and cutmix of what the trained part reads, and of the labels alike.

Where no layer is frozen the trained part reads images. Above a cut it reads the activations of the
frozen layers: there mixup mixes activations and cutmix swaps boxes of the activation map.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tasks.errors import TrainingError
from tasks.params import FinetuneParams
from tasks.training.losses import smoothed_cross_entropy
from tasks.training.rows import RowSource
from tasks.training.sampling import Indices

MIXING = 0x4D58  # purpose of the random numbers drawn here
SMALLEST_MAP = 4  # side of maps for cutmix
CUTMIX_SHARE = 0.5  # of the steps, where both are on


@dataclass(frozen=True, slots=True)
class Mix:
    """How the images of a step are mixed, each with the one before it in the batch.

    Attributes:
        kind: mixup blends all values; cutmix takes a box from the other image.
        share: Of the image itself, lambda, in [0, 1].
        center: Of the box, as shares of height and width, each in [0, 1).
    """

    kind: Literal["mixup", "cutmix"]
    share: float
    center: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Blend:
    """A batch and what it shows: `share` of `labels`, the rest of `partners`, both int64 (N,)."""

    inputs: Tensor
    labels: Tensor
    partners: Tensor
    share: float

    @property
    def dominant(self) -> Tensor:
        """The label of which an image shows more, int64 (N,)."""
        return self.labels if self.share >= 0.5 else self.partners


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """What a step shows: rows, their classes, int64 (n,) both, and how they are mixed.

    Each row is mixed with the one before it in the batch of all processes; so a part of the batch
    is mixed as the whole is.
    """

    rows: Indices
    labels: Indices
    other_rows: Indices
    other_labels: Indices
    mix: Mix | None

    @classmethod
    def of(cls, rows: Indices, labels: Indices, mix: Mix | None) -> "TrainBatch":
        """Pair the rows of a whole batch."""
        return cls(rows, labels, np.roll(rows, 1), np.roll(labels, 1), mix)

    def at(self, chosen: slice) -> "TrainBatch":
        """Give a part of the batch."""
        return TrainBatch(
            self.rows[chosen],
            self.labels[chosen],
            self.other_rows[chosen],
            self.other_labels[chosen],
            self.mix,
        )

    def read(self, source: RowSource, device: torch.device) -> Blend:
        """Read every row that is needed once, and mix."""
        labels = torch.from_numpy(self.labels).to(device)
        if self.mix is None:
            return Blend(source.read(self.rows).to(device), labels, labels, 1.0)
        pairs = np.concatenate([self.rows, self.other_rows])
        needed, places = np.unique(pairs, return_inverse=True)
        inputs = source.read(needed).to(device)[torch.from_numpy(places).to(device)]
        partners = torch.from_numpy(self.other_labels).to(device)
        own, others = inputs.chunk(2)
        return blend_batch(own, others, labels, partners, self.mix)


def draw_mix(params: FinetuneParams, *, seed: int, phase: int, epoch: int, step: int) -> Mix | None:
    """Draw how a step is mixed; None where both options are off.

    Where both are on, every other step on average is a cutmix.

    Args:
        params: The `finetune` block.
        seed: The run's seed.
        phase: Number of the phase.
        epoch: Number of the epoch within the phase.
        step: Number of the step within the epoch.

    Source: Zhang et al. 2018, 1710.09412 (mixup); Yun et al. 2019, 1905.04899 (cutmix): lambda is
    drawn from Beta(alpha, alpha) once a batch.
    """
    mixup, cutmix = params.mixup_alpha, params.cutmix_alpha
    if not mixup and not cutmix:
        return None
    rng = np.random.default_rng([seed, MIXING, phase, epoch, step])
    which, row, column = rng.random(3)
    cuts = which < CUTMIX_SHARE if mixup and cutmix else cutmix > 0
    alpha = cutmix if cuts else mixup
    share = float(rng.beta(alpha, alpha))
    return Mix("cutmix" if cuts else "mixup", share, (float(row), float(column)))


def blend_batch(
    inputs: Tensor, others: Tensor, labels: Tensor, partners: Tensor, mix: Mix
) -> Blend:
    """Mix a batch as drawn.

    Args:
        inputs: Images or activations, (N, ...); for cutmix maps, (N, C, H, W).
        others: What each is mixed with, (N, ...).
        labels: Classes of the inputs, int64 (N,).
        partners: Classes of the others, int64 (N,).
        mix: What was drawn.

    Source: Verma et al. 2019, 1806.05236 (manifold mixup: inputs may be activations; here they are
    always those at the cut, not of a layer drawn anew in every step).
    """
    if mix.kind == "mixup":
        return Blend(torch.lerp(others, inputs, mix.share), labels, partners, mix.share)
    height, width = inputs.shape[2:]
    top, bottom, left, right = find_box(height, width, mix.share, mix.center)
    mixed = inputs.clone()
    mixed[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return Blend(mixed, labels, partners, share)


def blended_cross_entropy(
    logits: Tensor, blend: Blend, *, smoothing: float, weights: Tensor | None
) -> Tensor:
    """Cross-entropy with both labels of every image, by the shares that it shows of them.

    Cross-entropy is linear in the label: this is the loss of the mixed soft label. Smoothing and
    class weights act on each of the two labels as they would alone.

    Args:
        logits: (N, C).
        blend: The batch.
        smoothing: Share of a label that is spread over all classes, in [0, 1).
        weights: Weight of an image by its class, (C,); None weighs all the same.

    Source: Zhang et al. 2018, 1710.09412, section 2.
    """
    loss = smoothed_cross_entropy(logits, blend.labels, smoothing=smoothing, weights=weights)
    if blend.share == 1:
        return loss
    other = smoothed_cross_entropy(logits, blend.partners, smoothing=smoothing, weights=weights)
    return blend.share * loss + (1 - blend.share) * other


def find_box(
    height: int, width: int, share: float, center: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Give top, bottom, left and right of a box of about 1 - share of the area, clipped at borders.

    What it covers after clipping, in whole rows and columns, is what the labels are mixed by.
    """
    side = np.sqrt(1 - share)
    top, bottom = _clip_span(height, int(height * side), int(height * center[0]))
    left, right = _clip_span(width, int(width * side), int(width * center[1]))
    return top, bottom, left, right


def _clip_span(size: int, length: int, middle: int) -> tuple[int, int]:
    return max(middle - length // 2, 0), min(middle + (length + 1) // 2, size)


def check_mixing(shape: Sequence[int], params: FinetuneParams) -> None:
    """Refuse cutmix where the trained part reads something else than maps.

    Args:
        shape: Of what it reads of one image; square images make maps of equal height and width.
        params: The `finetune` block.

    Raises:
        TrainingError: It reads token sequences, pooled features, maps with channels last or maps
            on which a box of whole cells is mostly empty.
    """
    is_map = len(shape) == 3 and shape[1] == shape[2] >= SMALLEST_MAP
    if params.cutmix_alpha and not is_map:
        raise TrainingError(
            f"finetune.cutmix_alpha is {params.cutmix_alpha:g}, but the layers that are trained "
            f"read values of shape {tuple(shape)} an image; cutmix needs maps (channels, height, "
            f"width) of at least {SMALLEST_MAP} x {SMALLEST_MAP}. Set finetune.cutmix_alpha to 0; "
            "finetune.mixup_alpha works on any shape"
        )
