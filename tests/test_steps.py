"""A step in micro-batches is the step of the whole batch; a look at val in parts the whole look."""

import copy
import logging
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import tells, with_values
from torch import Tensor, nn

from tasks.errors import TrainingError
from tasks.heads.classifier import Classifier
from tasks.params import FinetuneParams, Params
from tasks.training.feed.rows import Rows
from tasks.training.phases import TrainingGroup, build_optimizer
from tasks.training.step import Stepper, StepResult, TrainedPart, class_weights

IMAGES, CLASSES = 11, 3
LABELS = np.random.default_rng(3).permutation(np.array([0] * 7 + [1] * 3 + [2]))


class MadeRows:
    """Small images that are drawn, not read."""

    views = 0

    def __init__(self) -> None:
        self.images = torch.randn(IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def read(self, rows: np.ndarray) -> Tensor:
        return self.images[torch.from_numpy(rows)]

    def remove(self) -> None:
        """Nothing was stored."""


class Setup:
    """A stepper and what it trains, all from one seed."""

    def __init__(
        self,
        params: FinetuneParams,
        *,
        balanced: bool = False,
        adapt_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        torch.manual_seed(5)
        backbone = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.classifier = Classifier(
            backbone, nn.Sequential(nn.Dropout(dropout), nn.Linear(6, CLASSES))
        )
        names = list(self.classifier.state_dict())
        optimizer = build_optimizer(
            self.classifier, [TrainingGroup("all", tuple(names))], weight_decay=0.0
        )
        for options in optimizer.param_groups:
            options["lr"] = 0.01
        module = nn.Sequential(self.classifier.backbone, self.classifier.head).train()
        backbone[1].train(adapt_norm)
        rows = MadeRows()
        self.part = TrainedPart(module, names, Rows(rows, rows))
        weights = class_weights(LABELS, CLASSES) if balanced else None
        self.stepper = Stepper(self.classifier, optimizer, params, class_weights=weights)

    def step(self, seed: int = 9) -> StepResult:
        torch.manual_seed(seed)
        return self.stepper.train(self.part, np.arange(IMAGES), LABELS)

    def gradients(self) -> dict[str, Tensor]:
        named = self.classifier.named_parameters()
        return {name: item.grad.clone() for name, item in named if item.grad is not None}


def limit(module: nn.Module, room: int, where: str = "forward") -> list[int]:
    """Let a layer run out of memory with more images than there is room for."""
    seen: list[int] = []

    def refuse(count: int) -> None:
        seen.append(count)
        if count > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def forward(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if where == "forward":
            refuse(len(output))
        elif output.requires_grad:
            output.register_hook(lambda gradient: refuse(len(gradient)))

    module.register_forward_hook(forward)
    return seen


@pytest.fixture
def setting(default_params: Params) -> Callable[..., FinetuneParams]:
    """Make a `finetune` block: `setting(clip_norm=0.5)`."""

    def make(**values: object) -> FinetuneParams:
        plain = {"clip_norm": 0.0, "label_smoothing": 0.0, "batch_size": IMAGES, **values}
        return with_values(default_params, {f"finetune.{k}": v for k, v in plain.items()}).finetune

    return make


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("room", [6, 4, 1])
def test_a_step_in_micro_batches_is_the_step_of_the_whole_batch(
    setting: Callable[..., FinetuneParams], room: int, where: str
):
    params = setting(label_smoothing=0.1, clip_norm=0.5)
    whole, cut = Setup(params, balanced=True), Setup(params, balanced=True)
    expected = whole.step()
    seen = limit(cut.classifier.backbone[1], room, where)
    found = cut.step()
    assert max(seen) == IMAGES > room
    assert found.right == expected.right
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert found.norm == pytest.approx(expected.norm, rel=1e-5)
    for name, gradient in cut.gradients().items():
        torch.testing.assert_close(gradient, whole.gradients()[name], rtol=1e-5, atol=1e-7)
    for name, tensor in cut.classifier.state_dict().items():
        torch.testing.assert_close(tensor, whole.classifier.state_dict()[name], atol=1e-5, rtol=0)


def test_the_micro_batch_is_kept_for_the_next_step_and_logged_once(
    setting: Callable[..., FinetuneParams], caplog: pytest.LogCaptureFixture
):
    setup = Setup(setting())
    seen = limit(setup.classifier.backbone[0], room=6)
    setup.step()
    setup.step()
    assert seen == [11, 5, 6, 5, 6]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert tells(caplog.text, "training step", "memory", "11 images")


def test_a_failed_attempt_draws_no_dropout_masks(setting: Callable[..., FinetuneParams]):
    setup, reference = Setup(setting(), dropout=0.5), Setup(setting(), dropout=0.5)
    limit(setup.classifier.head, room=6)
    reference.stepper.micro_batches.largest = 6  # as if it had been known before
    assert setup.step() == reference.step()
    assert torch.equal(setup.classifier.head[1].weight, reference.classifier.head[1].weight)


def test_norm_layers_that_adapt_never_see_a_single_image_and_the_log_says_so(
    setting: Callable[..., FinetuneParams], caplog: pytest.LogCaptureFixture
):
    setup = Setup(setting(), adapt_norm=True)
    reference = copy.deepcopy(setup.classifier.backbone)
    seen = limit(setup.classifier.head, room=3)
    setup.step()
    assert seen == [11, 5, 2, 3, 3, 3]
    assert tells(caplog.text, "norm layers", "so many")
    images, edges = setup.part.rows.train.read(np.arange(IMAGES)), [0, 2, 5, 8, 11]
    for start, stop in pairwise(edges):
        reference(images[start:stop])
    statistics = setup.classifier.backbone[1]
    assert statistics.num_batches_tracked == 4
    torch.testing.assert_close(statistics.running_mean, reference[1].running_mean)


def test_a_single_image_that_does_not_fit_says_what_to_do(setting: Callable[..., FinetuneParams]):
    setup = Setup(setting())
    before = copy.deepcopy(setup.classifier.state_dict())
    limit(setup.classifier.head, room=0)
    with pytest.raises(TrainingError, match=r"1 image at once.*augment\.image_px.*unfreeze fewer"):
        setup.step()
    after = setup.classifier.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_no_room_for_the_optimizer_says_what_to_do(
    setting: Callable[..., FinetuneParams], monkeypatch: pytest.MonkeyPatch
):
    def step(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    setup = Setup(setting())
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(TrainingError, match=r"optimizer step: .*more memory"):
        setup.step()


def test_a_look_at_val_in_parts_sees_the_same(
    setting: Callable[..., FinetuneParams], caplog: pytest.LogCaptureFixture
):
    setup = Setup(setting(batch_size=8))
    expected = setup.stepper.predict_val(setup.part, IMAGES)
    seen = limit(setup.classifier.head, room=3)
    found = setup.stepper.predict_val(setup.part, IMAGES)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert seen == [8, 4, 2, 2, 2, 2, 1, 2]
    assert tells(caplog.text, "look at val", "memory", "8 images")
    limit(setup.classifier.head, room=0)
    with pytest.raises(TrainingError, match=r"look at val: .* 1 image at once.*augment\.image_px"):
        setup.stepper.predict_val(setup.part, IMAGES)
