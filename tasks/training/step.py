"""One step of the optimizer, and one look at val.

Several processes share each batch. Every one computes the gradient of its own images and then holds
the sum over all, so that all take the same step. One sum over one flat bucket does that. torch's
DistributedDataParallel would have to be built anew, with new hooks, for every phase and every cut,
because it cannot be told of layers that freeze and unfreeze.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase as StoredStatisticsNorm
from torch.optim import AdamW

from tasks.artifacts.arrays import Ints, Logits
from tasks.errors import TrainingError
from tasks.heads.classifier import Classifier
from tasks.params import FinetuneParams
from tasks.runtime.memory import MicroBatches, explaining_memory, remember_forward
from tasks.runtime.processes import ALONE, Processes
from tasks.training.feed.rows import TrainedPart
from tasks.training.shared_norm import SharedBatchNorm


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step saw: mean loss over its images, how many were right, and the gradient's norm."""

    loss: float
    right: int
    images: int
    norm: float

    @property
    def is_finite(self) -> bool:
        """Whether the step made sense; if not, the weights were left alone."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


def class_weights(labels: Ints, classes: int) -> Tensor:
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


def set_rates(optimizer: AdamW, peak_rates: Mapping[str, float], share: float) -> None:
    """Give each group its peak rate times `share`; groups without a peak rate get 0."""
    for options in optimizer.param_groups:
        options["lr"] = peak_rates.get(options["group"], 0.0) * share


def adapting_norms(trained: nn.Module) -> list[nn.Module]:
    """Norm layers that normalize by the batch and update their statistics, as they are set now."""
    layers = trained.modules()
    return [layer for layer in layers if isinstance(layer, StoredStatisticsNorm) and layer.training]


ADVICE = (
    "lower augment.image_px, unfreeze fewer layers (decide.depth, or decide.arm: "
    "feature_extraction), or use a machine with more memory"
)


class Stepper:
    """Steps the optimizer of a classifier, and looks at val.

    Args:
        classifier: What is trained, in place.
        optimizer: Over all of its parameters.
        params: The `finetune` block.
        class_weights: Weight of an image by its class, (C,); None weighs all the same.
        processes: Share the images of a batch; each has the same classifier.

    Attributes:
        micro_batches: How batches are cut where memory has run out.
    """

    def __init__(
        self,
        classifier: Classifier,
        optimizer: AdamW,
        params: FinetuneParams,
        *,
        class_weights: Tensor | None,
        processes: Processes = ALONE,
    ) -> None:
        self.processes = processes
        self._classifier, self._optimizer = classifier, optimizer
        self._smoothing, self._clip_norm = params.label_smoothing, params.clip_norm
        self._batch_size = params.batch_size
        self._device = next(classifier.parameters()).device
        self._class_weights = None if class_weights is None else class_weights.to(self._device)
        self.micro_batches = MicroBatches("training step", TrainingError, ADVICE)
        self._looks = MicroBatches("look at val", TrainingError, ADVICE)

    def train(self, part: TrainedPart, rows: Ints, labels: Ints) -> StepResult:
        """Take one step on some training rows, unless its loss or gradient is not finite.

        Where memory runs out, the gradient is summed over micro-batches: the same step but
        for rounding and the masks of dropout.

        Args:
            part: What is trained, in training mode.
            rows: Rows of the part's source, int64 (n,), of all processes together.
            labels: Their classes, int64 (n,).

        Raises:
            TrainingError: Memory runs out with the smallest micro-batch, or for the optimizer.
        """
        loss, right = self._run(part, rows, labels)
        result = StepResult(loss=loss, right=right, images=len(labels), norm=self._clip())
        if result.is_finite:
            with explaining_memory("optimizer step", TrainingError, ADVICE):
                self._optimizer.step()
        return result

    def _run(self, part: TrainedPart, rows: Ints, labels: Ints) -> tuple[float, int]:
        """Give mean loss and right images of a batch of all processes; the gradient is summed."""
        own, share = self._own_share(len(rows))
        rows, labels = rows[own], labels[own]
        norms = adapting_norms(part.module)
        with self._sharing_batch_norm(share):
            loss, right = self.micro_batches.run(
                lambda parts: self._accumulate(part, rows, labels, parts, share),
                len(rows),
                smallest=self._fewest_at_once(len(rows), adapting=bool(norms)),
                undo=remember_forward(norms, self._device),
                remark=", and norm layers normalize over so many" if norms else "",
            )
        return self._add_up(loss, right)

    def _accumulate(
        self,
        part: TrainedPart,
        rows: Ints,
        labels: Ints,
        micro_batches: Sequence[slice],
        share: float,
    ) -> tuple[float, int]:
        """Sum the gradient of this process's images, which weigh `share` in the mean of the batch.

        Returns:
            Their part of the batch's mean loss, and how many of them were right.
        """
        self._optimizer.zero_grad()
        loss, right = 0.0, 0
        for chosen in micro_batches:
            logits = self._infer(part, part.rows.train.read(rows[chosen]).to(self._device))
            wanted = torch.from_numpy(labels[chosen]).to(self._device)
            mean = smoothed_cross_entropy(
                logits, wanted, smoothing=self._smoothing, weights=self._class_weights
            )
            weighted = mean * (share * len(wanted) / len(rows))
            torch.autograd.backward(weighted)
            loss += float(weighted.detach())
            right += int((logits.argmax(dim=1) == wanted).sum()) if share else 0
        return loss, right

    def _fewest_at_once(self, images: int, *, adapting: bool) -> int:
        """Give the smallest micro-batch of this process.

        Norm layers that adapt need two images. Where they look at the images of all processes, one
        cannot cut its batch alone.
        """
        if adapting and self.processes.world > 1:
            return images
        return 2 if adapting else 1

    @torch.inference_mode()
    def predict_val(self, part: TrainedPart, count: int) -> Logits:
        """Give the logits of the val images, float32 (count, C), everything in eval mode.

        Raises:
            TrainingError: Memory runs out with a single image.
        """
        self._classifier.eval()
        part.module.eval()
        images, size = np.arange(count), self._batch_size
        batches = [images[start : start + size] for start in range(0, count, size)]
        # Every batch is some process's, whole: the logits are those that one process would give.
        own, share = self._own_share(len(batches))
        logits = [self._look(part, rows) for rows in batches[own]]
        everyone = torch.zeros(count, logits[0].shape[1])
        if share:
            everyone[own.start * size : own.stop * size] = torch.cat(logits)
        return self.processes.add(everyone).numpy()

    def _look(self, part: TrainedPart, rows: Ints) -> Tensor:
        """Give the logits of some val images, on the CPU."""

        def infer(micro_batches: Sequence[slice]) -> Tensor:
            inputs = (part.rows.val.read(rows[chosen]) for chosen in micro_batches)
            logits = [self._infer(part, one.to(self._device)) for one in inputs]
            return torch.cat(logits).float().cpu()

        return self._looks.run(infer, len(rows))

    def _own_share(self, count: int) -> tuple[slice, float]:
        """Give this process's part of the images of a batch, and its weight in their mean.

        Where there are fewer images than processes, those without run the first one at weight 0:
        layers that look at the whole batch find all processes there, and none sees an empty batch.
        """
        own = self.processes.share(count)
        mine = own.stop - own.start
        return (own, mine / count) if mine else (slice(0, 1), 0.0)

    @contextmanager
    def _sharing_batch_norm(self, share: float) -> Iterator[None]:
        """Let norm layers that adapt normalize by the batch of all processes."""
        if self.processes.world == 1:
            yield
            return
        with SharedBatchNorm(self.processes, weight=float(share > 0)):
            yield

    def _add_up(self, loss: float, right: int) -> tuple[float, int]:
        """Sum loss, right images and, in place, the gradients over all processes."""
        if self.processes.world == 1:
            return loss, right
        gradients = [p.grad for p in self._classifier.parameters() if p.grad is not None]
        seen = torch.tensor([loss, right], dtype=torch.float32, device=self._device)
        bucket = self.processes.add(torch.cat([seen, *(g.flatten() for g in gradients)]))
        sizes = [2, *(gradient.numel() for gradient in gradients)]
        seen, *pieces = torch.split(bucket, sizes)
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))
        mean_loss, all_right = seen.tolist()
        return mean_loss, round(all_right)

    def _infer(self, part: TrainedPart, inputs: Tensor) -> Tensor:
        if inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        on_gpu = self._device.type == "cuda"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=on_gpu):
            logits: Tensor = part.module(inputs)
        return logits

    def _clip(self) -> float:
        """Limit the norm of the gradient; give what it was."""
        trained = [item for item in self._classifier.parameters() if item.grad is not None]
        limit = self._clip_norm or math.inf
        return float(nn.utils.clip_grad_norm_(trained, limit))
