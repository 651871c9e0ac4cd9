"""Variants of fine-tuning: one change each, trained in a study that has come as far as ingest."""

from dataclasses import dataclass

import numpy as np
import torch
from bench.arms import code_of, transfer_by
from bench.studies import Study
from PIL import Image
from torchvision.transforms import v2

from tasks.artifacts.arrays import Logits, read_array
from tasks.artifacts.files import replacing_folder
from tasks.artifacts.pixels import PixelStore, StoreWriter
from tasks.artifacts.records import (
    Baseline,
    Finetuned,
    read_record,
    write_record,
)
from tasks.evaluate import run_model
from tasks.heads.classifier import load_finetuned
from tasks.judging.rule import ValSet

ARM = "most"  # how deep all of them fine-tune


@dataclass(frozen=True)
class Variant:
    """What is changed.

    Attributes:
        views: Stored views of an image, beside its clean one.
        smoothing: Of labels.
        operations: Of torchvision, after those of the policy.
        backbone_lr: Peak rate of the topmost backbone group; the head's is half as much again.
        epochs: Most epochs of the last phase; None: as params.yaml.
        flip: Whether prediction averages the logits of an image and its mirror image; such a
            variant trains nothing, it takes the model of the base.
    """

    views: int = 2
    smoothing: float = 0.0
    operations: str | None = None
    backbone_lr: float = 0.0002
    epochs: int | None = None
    flip: bool = False

    @property
    def values(self) -> dict[str, object]:
        """Values of params.yaml, by key path."""
        return {
            "augment.views": self.views,
            "finetune.label_smoothing": self.smoothing,
            "finetune.backbone_lr": self.backbone_lr,
            "finetune.head_lr": HEAD_SHARE * self.backbone_lr,
            **({} if self.epochs is None else {"finetune.epochs": self.epochs}),
        }


BASE = "base"
HEAD_SHARE = 1.5  # rate of the head as a multiple of the backbone's
VARIANTS: dict[str, Variant] = {
    BASE: Variant(),
    "flips averaged at prediction": Variant(flip=True),
    "label smoothing 0.05": Variant(smoothing=0.05),
    "half the epochs": Variant(epochs=5),
    "twice the epochs": Variant(epochs=20),
    "twice the rates": Variant(backbone_lr=0.0004),
    "twice the rates, 5 epochs": Variant(backbone_lr=0.0004, epochs=5),
    "twice the rates, 3 epochs": Variant(backbone_lr=0.0004, epochs=3),
    "1 stored view": Variant(views=1),
    "3 stored views": Variant(views=3),
    "12 stored views": Variant(views=12),
    "policy, then TrivialAugment": Variant(operations="TrivialAugmentWide"),
    "policy, then RandAugment": Variant(operations="RandAugment"),
}


@dataclass(frozen=True, slots=True)
class Result:
    """What a variant brought on val.

    Attributes:
        set: Name of the set.
        seed: Of split, subset and training.
        px: Side of the images.
        variant: What was changed.
        code: Fingerprint of what trains.
        train_images: How many; so of val.
        val_images: See there.
        frozen_accuracy: Of the frozen head on val.
        frozen_loss: Its calibrated loss, nats.
        overfit: That on val over that on train; NaN where an earlier version did not measure it.
        accuracy: Of the fine-tuned model on val.
        loss: Its calibrated loss, nats.
        epochs: Of all phases.
        seconds: Processor time of pixels, features, head and fine-tuning.
    """

    set: str
    seed: int
    px: int
    variant: str
    code: str
    train_images: int
    val_images: int
    frozen_accuracy: float
    frozen_loss: float
    overfit: float
    accuracy: float
    loss: float
    epochs: int
    seconds: float

    @property
    def pair(self) -> tuple[str, int, int]:
        """What is compared on the same images: set, seed and size."""
        return self.set, self.seed, self.px


# one variant -------------------------------------------------------------------------------------


def train_variant(study: Study, set_name: str, name: str) -> Result:
    """Run the stages from augment to finetune and measure on val."""
    variant = VARIANTS[name]
    seconds = study.run("augment")
    if variant.operations:
        change_views(study, variant.operations)
    seconds += sum(study.run(stage) for stage in ("select", "extract", "baseline"))
    transfer = transfer_by(ARM, study).model_copy(update={"raised": False})
    write_record(study.path("decide/transfer.json"), transfer)
    seconds += study.run("finetune")
    logits = np.array(read_array(study.path("finetune/val_logits.npy")))
    return describe(study, set_name, name, logits, seconds)


def average_flips(study: Study, set_name: str, name: str) -> Result:
    """Average the logits of the val images and of their mirror images, by the model of the base."""
    summary = read_record(study.path("finetune/finetune.json"), Finetuned)
    model = load_finetuned(study.path("finetune/model.safetensors"), summary)
    store, folder = study.pixels("val"), study.path("flipped")
    with replacing_folder(folder) as temporary, StoreWriter(temporary, store.info) as writer:
        writer.append(store.rows(store.clean_rows())[:, :, ::-1])
    seed = study.params.seed
    both = [
        run_model(model, summary.input, pixels, seed=seed, what="val")
        for pixels in (store, PixelStore.open(folder))
    ]
    return describe(study, set_name, name, np.mean(both, axis=0), 0.0)


def describe(study: Study, set_name: str, name: str, logits: Logits, seconds: float) -> Result:
    """Measure logits on val, (N, C)."""
    manifest, params = study.manifest, study.params
    val = ValSet(manifest.labels("val"), manifest.groups("val"))
    frozen = read_record(study.path("baseline/baseline.json"), Baseline)
    phases = read_record(study.path("finetune/finetune.json"), Finetuned).phases
    return Result(
        set=set_name,
        seed=params.seed,
        px=params.augment.image_px,
        variant=name,
        code=code_of(params),
        train_images=len(manifest.of("train")),
        val_images=len(manifest.of("val")),
        frozen_accuracy=round(frozen.val_accuracy.value, 4),
        frozen_loss=round(frozen.val_loss, 4),
        overfit=round(frozen.overfit or np.nan, 2),
        accuracy=round(val.accuracy(logits), 4),
        loss=round(val.loss(logits), 4),
        epochs=sum(phase.epochs for phase in phases),
        seconds=round(seconds, 1),
    )


def change_views(study: Study, operations: str) -> None:
    """Put the augmented views of the training images through operations of torchvision."""
    store, rows = study.pixels("train"), study.manifest.of("train")
    change = getattr(v2, operations)(interpolation=v2.InterpolationMode.BILINEAR)
    with (
        replacing_folder(study.path("augment/train")) as temporary,
        StoreWriter(temporary, store.info) as writer,
    ):
        for image, row in enumerate(rows):
            clean, *views = store.rows(
                [store.row_of(image, v) for v in range(store.info.views + 1)]
            )
            torch.manual_seed(int(row.sha256[:12], 16) + study.params.seed)
            changed = [np.asarray(change(Image.fromarray(view))) for view in views]
            writer.append(np.stack([clean, *changed]))
