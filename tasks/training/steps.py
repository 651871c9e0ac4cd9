"""The lowest rungs of training: one step of the optimizer, and one look at val."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from tasks.params import FinetuneParams
from tasks.training.classifier import BACKBONE, Classifier
from tasks.training.losses import distance_to_start
from tasks.training.mixing import Mix, blend_batch, blended_cross_entropy
from tasks.training.rows import Rows
from tasks.training.sampling import Indices
from tasks.training.state import Logits


@dataclass(frozen=True)
class TrainedPart:
    """The layers above a cut: activations to logits.

    Attributes:
        module: Shares its layers with the classifier.
        names: Names, in the classifier, of all parameters and buffers of these layers.
        rows: What the module reads.
    """

    module: nn.Module
    names: Sequence[str]
    rows: Rows


class Parts(Protocol):
    """Cuts the classifier; one cut is open at a time."""

    def open(self, unfrozen_from: int) -> TrainedPart:
        """Give the part from a layer group on."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step saw: mean loss over its images, how many were right, and the gradient's norm.

    A mixed image is right where the model names the label of which it shows more.
    """

    loss: float
    right: int
    images: int
    norm: float

    @property
    def is_finite(self) -> bool:
        """Whether the step made sense; if not, the weights were left alone."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


class Stepper:
    """Steps the optimizer of a classifier, and looks at val.

    Args:
        classifier: What is trained, in place.
        optimizer: Over all of its parameters.
        params: The `finetune` block.
        class_weights: Weight of an image by its class, (C,); None weighs all the same.
    """

    def __init__(
        self,
        classifier: Classifier,
        optimizer: AdamW,
        params: FinetuneParams,
        *,
        class_weights: Tensor | None,
    ) -> None:
        self._classifier, self._optimizer = classifier, optimizer
        self._smoothing, self._clip_norm = params.label_smoothing, params.clip_norm
        self._batch_size, self._l2_sp = params.batch_size, params.l2_sp
        self._device = next(classifier.parameters()).device
        self._class_weights = None if class_weights is None else class_weights.to(self._device)
        self._pretrained = _copy_backbone(classifier) if params.l2_sp else {}

    def train(
        self, part: TrainedPart, rows: Indices, labels: Indices, mix: Mix | None
    ) -> StepResult:
        """Take one step on some training rows, unless its loss or gradient is not finite.

        Args:
            part: What is trained, in training mode.
            rows: Rows of the part's source, int64 (n,).
            labels: Their classes, int64 (n,).
            mix: How they are mixed, if at all.
        """
        self._optimizer.zero_grad()
        loss, right = self._judge(part, rows, labels, mix)
        torch.autograd.backward(loss + self._pull(part))
        result = StepResult(float(loss.detach()), right, images=len(labels), norm=self._clip())
        if result.is_finite:
            self._optimizer.step()
        return result

    @torch.no_grad()
    def measure(
        self, part: TrainedPart, rows: Indices, labels: Indices, mix: Mix | None
    ) -> StepResult:
        """Give what `train` would see, but change nothing; the norm of no gradient is 0."""
        loss, right = self._judge(part, rows, labels, mix)
        return StepResult(float(loss), right, images=len(labels), norm=0.0)

    @torch.inference_mode()
    def predict_val(self, part: TrainedPart, count: int) -> Logits:
        """Give the logits of the val images, float32 (count, C), everything in eval mode."""
        self._classifier.eval()
        part.module.eval()
        images, size = np.arange(count), self._batch_size
        batches = [images[start : start + size] for start in range(0, count, size)]
        logits = [
            self._infer(part, part.rows.val.read(rows).to(self._device)).float().cpu()
            for rows in batches
        ]
        return torch.cat(logits).numpy()

    def _judge(
        self, part: TrainedPart, rows: Indices, labels: Indices, mix: Mix | None
    ) -> tuple[Tensor, int]:
        """Give the loss of some training rows and how many are right."""
        inputs = part.rows.train.read(rows).to(self._device)
        batch = blend_batch(inputs, torch.from_numpy(labels).to(self._device), mix)
        logits = self._infer(part, batch.inputs)
        loss = blended_cross_entropy(
            logits, batch, smoothing=self._smoothing, weights=self._class_weights
        )
        return loss, int((logits.argmax(dim=1) == batch.dominant).sum())

    def _infer(self, part: TrainedPart, inputs: Tensor) -> Tensor:
        if inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        on_gpu = self._device.type == "cuda"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=on_gpu):
            logits: Tensor = part.module(inputs)
        return logits

    def _pull(self, part: TrainedPart) -> Tensor | float:
        """Penalty for the distance of the trained backbone layers to the pretrained ones."""
        moved = [name for name in part.names if name in self._pretrained]
        if not moved:
            return 0.0
        now = [self._classifier.get_parameter(name) for name in moved]
        return self._l2_sp * distance_to_start(now, [self._pretrained[n] for n in moved])

    def _clip(self) -> float:
        """Limit the norm of the gradient; give what it was."""
        trained = [item for item in self._classifier.parameters() if item.grad is not None]
        limit = self._clip_norm or math.inf
        return float(nn.utils.clip_grad_norm_(trained, limit))


def _copy_backbone(classifier: Classifier) -> Mapping[str, Tensor]:
    return {
        BACKBONE + name: parameter.detach().clone()
        for name, parameter in classifier.backbone.named_parameters()
    }
