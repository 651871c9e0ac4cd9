"""Data that is hard to learn from: few, many, rare, grey, tiny, odd numbers; and absurd rates."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tells, with_values
from tiny_finetune import make_info

from tasks.artifacts.pixels import PixelStore, StoreWriter, store_info
from tasks.artifacts.records import SPLITS, Arm, BackboneInfo, InputSpec, Split, Transfer
from tasks.artifacts.tables import Manifest, ManifestRow
from tasks.backbones.catalogue import load_backbone
from tasks.backbones.engine import TorchEngine
from tasks.backbones.groups import PooledFeatures
from tasks.baseline import FrozenBaseline, train_baseline
from tasks.errors import TrainingError
from tasks.finetune import FinetunedModel, describe_finetuned, finetune
from tasks.heads.features import Labeled
from tasks.params import Params
from tasks.runtime.machine import Machine
from tasks.training.feed.rows import Stores
from tasks.training.inputs import FinetuneInputs
from tasks.training.resume.workspace import Workspace

MACHINE = Machine(device="cpu", threads=1, engine="torch")
FAST = {
    "seed": 17,
    "baseline.heads": ["linear"],
    "baseline.l2_strengths": [0.1, 1.0],
    "finetune.epochs": 1,
    "finetune.batch_size": 8,
    "finetune.scratch_epochs": 1,
}


class Task:
    """Made images of some classes, packed, with their features.

    Args:
        folder: Where pixels go.
        train: Class of each training image.
        val: Class of each val image.
        side: Of the images, pixels.
        grey: Whether they have no color.
    """

    def __init__(
        self,
        folder: Path,
        train: Sequence[int],
        val: Sequence[int],
        *,
        side: int = 32,
        grey: bool = False,
        views: int = 0,
    ) -> None:
        self.folder, self.side, self.grey = folder, side, grey
        self.labels: dict[Split, Sequence[int]] = {"train": train, "val": val, "test": []}
        rows = [
            ManifestRow(f"{split}/{n}.png", f"{label:04d}", split, f"{split}{n}", "0", 9, 9, "RGB")
            for split in SPLITS
            for n, label in enumerate(self.labels[split])
        ]
        self.manifest = Manifest(rows)
        self.stores = Stores(self._pack("train", views), self._pack("val", 0))

    def draw(self, label: int, key: Sequence[int]) -> np.ndarray:
        """Noise over the pattern of the class: uint8 (side, side, 3)."""
        channels = 1 if self.grey else 3
        pattern = np.random.default_rng([9, label]).integers(0, 200, (4, 4, channels))
        noise = np.random.default_rng(key).integers(0, 50, (self.side, self.side, channels))
        repeats = -(-self.side // 4)
        whole = np.kron(pattern, np.ones((repeats, repeats, 1), int))[: self.side, : self.side]
        return np.broadcast_to(whole + noise, (self.side, self.side, 3)).astype(np.uint8)

    def _pack(self, split: Split, views: int) -> PixelStore:
        labels = self.labels[split]
        (self.folder / split).mkdir(parents=True)
        info = store_info(len(labels), views=views, image_px=self.side)
        with StoreWriter(self.folder / split, info) as writer:
            for number, label in enumerate(labels):
                keys = [[SPLITS.index(split), number, view] for view in range(views + 1)]
                writer.append(np.stack([self.draw(label, key) for key in keys]))
        return PixelStore.open(self.folder / split)

    def labeled(self, split: Split, info: BackboneInfo) -> Labeled:
        """Features of random weights; tiny networks tell such images apart."""
        model = load_backbone(info.name, "random", image_px=self.side, seed=17).model
        engine = TorchEngine(PooledFeatures(model), info.input, torch.device("cpu"))
        store = self.stores.train if split == "train" else self.stores.val
        count, views = store.info.count, store.info.views + 1
        batches = store.batches(range(count * views), 128)
        features = np.concatenate([engine(pixels)[0] for pixels in batches])
        labels, groups = self.manifest.labels(split), self.manifest.groups(split)
        return Labeled(features.reshape(count, views, -1), labels, groups)


def learn(
    task: Task, params: Params, *, arm: Arm = "fine_tune", phases: Sequence[int] = (5, 4)
) -> tuple[FrozenBaseline, FinetunedModel]:
    """Train the baseline and fine-tune from it."""
    spec = InputSpec(image_px=task.side, mean=(0.4, 0.4, 0.4), std=(0.25, 0.25, 0.25))
    info = make_info()[0].model_copy(update={"input": spec})
    train, val = (
        replace(task.labeled(split, info), balanced=params.class_balanced)
        for split in ("train", "val")
    )
    names = task.manifest.class_names
    baseline = train_baseline(train, val, params.baseline, class_names=names, seed=params.seed)
    inputs = FinetuneInputs(
        manifest=task.manifest, stores=task.stores, transfer=Transfer(arm=arm, phases=list(phases)),
        backbone=info, baseline=baseline.summary, head=baseline.head,
        baseline_logits=baseline.val_logits,
    )  # fmt: skip
    workspace = Workspace(task.folder / "checkpoints", task.folder / "activations")
    model = finetune(
        inputs,
        params.finetune,
        seed=params.seed,
        balanced=params.class_balanced,
        machine=MACHINE,
        workspace=workspace,
    )
    assert np.isfinite(model.val_logits).all()
    assert model.val_logits.shape == (len(val.labels), len(names))
    assert describe_finetuned(model, inputs, seed=params.seed).classes == names
    return baseline, model


def accuracy(logits: np.ndarray, labels: Sequence[int]) -> float:
    return float(np.mean(logits.argmax(axis=1) == np.asarray(labels)))


def params_with(default_params: Params, **values: object) -> Params:
    named = {f"finetune.{key}": value for key, value in values.items()}
    return with_values(default_params, {**FAST, **named})


def repeat(classes: int, times: int) -> list[int]:
    return list(range(classes)) * times


def test_five_images_a_class_are_learned_by_cross_validation(
    tmp_path: Path, default_params: Params
):
    task = Task(tmp_path, repeat(3, 5), repeat(3, 2), views=1)
    params = with_values(params_with(default_params), {"baseline.heads": ["linear", "mlp"]})
    baseline, model = learn(task, params)
    assert "5-fold cross-validation over train" in " ".join(baseline.summary.notes)
    assert accuracy(baseline.val_logits, repeat(3, 2)) == 1
    assert accuracy(model.val_logits, repeat(3, 2)) == 1
    low, high = baseline.summary.val_accuracy.low, baseline.summary.val_accuracy.high
    assert low is not None
    assert high == 1
    assert low < 0.7  # six images prove little


def test_a_class_with_a_thousandth_of_the_images_is_not_forgotten(
    tmp_path: Path, default_params: Params
):
    task = Task(tmp_path, [0] * 1000 + [1], [0] * 100 + [1] * 3, side=16)
    params = with_values(params_with(default_params, batch_size=64), {"class_balanced": True})
    _, model = learn(task, params, phases=[5])
    assert model.phases[-1].kept  # rates that are too high for such weights are tried lower
    assert model.phases[-1].stopped == "finished"
    rare = model.val_logits[100:]
    assert accuracy(model.val_logits[:100], [0] * 100) > 0.95
    assert rare.argmax(axis=1).tolist() == [1, 1, 1]


@pytest.mark.slow
def test_a_thousand_classes_of_two_images(tmp_path: Path, default_params: Params):
    task = Task(tmp_path, repeat(1000, 2), repeat(1000, 1), side=16)
    params = with_values(
        params_with(default_params, batch_size=64), {"baseline.l2_strengths": [0.01]}
    )
    baseline, model = learn(task, params, phases=[5])
    assert len(baseline.summary.classes) == 1000
    assert accuracy(baseline.val_logits, repeat(1000, 1)) > 0.1  # guessing: 0.001
    assert accuracy(model.val_logits, repeat(1000, 1)) > 0.1


@pytest.mark.parametrize("side", [28, 33])
def test_grey_images_of_odd_sizes(tmp_path: Path, default_params: Params, side: int):
    task = Task(tmp_path, repeat(3, 6), repeat(3, 2), side=side, grey=True)
    baseline, model = learn(task, params_with(default_params))
    assert accuracy(baseline.val_logits, repeat(3, 2)) == 1
    assert accuracy(model.val_logits, repeat(3, 2)) == 1


@pytest.mark.parametrize("images", [17, 9, 20, 2], ids="{} images".format)
@pytest.mark.parametrize(("arm", "phases"), [("fine_tune", [5, 4]), ("scratch", [0])])
def test_batches_that_do_not_divide_the_images(
    tmp_path: Path, default_params: Params, images: int, arm: Arm, phases: list[int]
):
    train = [number % 2 for number in range(images)]
    _, model = learn(Task(tmp_path, train, [0, 1]), params_with(default_params), arm=arm,
                     phases=phases)  # fmt: skip
    assert {row.phase for row in model.history} == set(range(1, len(phases) + 1))
    assert all(np.isfinite(row.train_loss) for row in model.history)


def test_rates_far_too_high_leave_the_baseline_and_say_what_to_lower(
    tmp_path: Path, default_params: Params, caplog: pytest.LogCaptureFixture
):
    params = params_with(
        default_params, head_lr=1.0, backbone_lr=1.0, warmup_fraction=0.0, epochs=2
    )
    baseline, model = learn(Task(tmp_path, repeat(3, 16), repeat(3, 6)), params)
    assert not any(phase.kept for phase in model.phases)
    assert model.phases[0].stopped == "diverged"
    assert tells(caplog.text, "lower finetune.backbone_lr", "finetune.head_lr")
    np.testing.assert_array_equal(model.val_logits, baseline.val_logits)
    (note,) = model.notes
    assert tells(note, "rejected", "every phase", "rolled back")


def test_a_rate_far_too_high_from_scratch_is_an_error_that_says_what_to_lower(
    tmp_path: Path, default_params: Params
):
    params = params_with(default_params, scratch_lr=1.0, warmup_fraction=0.0, clip_norm=0.0)
    with pytest.raises(TrainingError, match=r"nothing .*lower finetune\.scratch_lr"):
        learn(Task(tmp_path, repeat(3, 16), repeat(3, 6)), params, arm="scratch", phases=[0])
