"""A fine-tuning task small enough for a test: made images, a random backbone, a fitted head."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tasks.artifacts.pixels import PixelStore, StoreWriter, store_info
from tasks.artifacts.records import (
    Arm,
    BackboneInfo,
    Baseline,
    Estimate,
    InputSpec,
    Phase,
    Split,
    Transfer,
)
from tasks.artifacts.tables import Manifest, ManifestRow
from tasks.backbones.catalogue import load_backbone
from tasks.backbones.groups import layer_groups
from tasks.backbones.normalization import norm_kind
from tasks.heads.registry import HeadKind, find_head
from tasks.params import FinetuneParams
from tasks.training.feed.rows import Stores
from tasks.training.inputs import FinetuneInputs
from tasks.training.phases import PhasePlan, TrainingGroup, next_phase

SIDE = 32
CLASSES = ["blue", "green", "red"]
BACKBONE = "test_efficientnet"
COUNTS: dict[Split, int] = {"train": 30, "val": 12, "test": 0}


def draw(label: int, number: int, view: int) -> np.ndarray:
    """Noise with one bright channel: uint8 (SIDE, SIDE, 3)."""
    rng = np.random.default_rng([label, number, view])
    pixels = rng.integers(0, 120, (SIDE, SIDE, 3))
    pixels[..., 2 - label] += 100
    return pixels.astype(np.uint8)


def make_manifest() -> Manifest:
    """Classes in turn, every image its own group."""
    rows = [
        ManifestRow(
            path=f"{split}/{number}.png",
            label=CLASSES[number % 3],
            split=split,
            group=f"{split}-{number}",
            sha256="0" * 64,
            width=SIDE,
            height=SIDE,
            mode="RGB",
        )
        for split, count in COUNTS.items()
        for number in range(count)
    ]
    return Manifest(rows)


def make_store(folder: Path, split: Split, views: int) -> PixelStore:
    """Pack made images."""
    folder.mkdir(parents=True)
    count = COUNTS[split]
    with StoreWriter(folder, store_info(count, views=views, image_px=SIDE)) as writer:
        for number in range(count):
            start = 1000 if split == "val" else 0
            rows = [draw(number % 3, start + number, view) for view in range(views + 1)]
            writer.append(np.stack(rows))
    return PixelStore.open(folder)


def make_info(name: str = BACKBONE) -> tuple[BackboneInfo, int]:
    """Describe a backbone with random weights; also give its number of groups."""
    backbone = load_backbone(name, "random", image_px=SIDE, seed=17)
    info = BackboneInfo(
        name=name,
        weights="random",
        weights_sha256=backbone.weights_sha256,
        weights_license=None,
        weights_source=None,
        input=InputSpec(image_px=SIDE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        groups=layer_groups(backbone.model),
        feature_dim=backbone.feature_dim,
        norm=norm_kind(backbone.model),
        engine="torch",
        parity=None,
    )
    return info, len(info.groups)


def record_of(plan: PhasePlan, *, kept: bool = True) -> Phase:
    """The record of a phase that took one epoch."""
    return Phase(
        name=plan.name, unfrozen_from=plan.unfrozen_from, epochs=1, best_epoch=1,
        stopped="finished", val_loss=0.5,
        val_accuracy=0.5, rate_share=plan.share,
        change_in_val_accuracy=Estimate(value=0.0, low=-0.1, high=0.1, n=10), kept=kept, reason="",
    )  # fmt: skip


def phases_if_kept(
    transfer: Transfer, groups: Sequence[TrainingGroup], params: FinetuneParams
) -> list[PhasePlan]:
    """The phases that follow each other where each is kept and none is worth a repetition."""
    plans: list[PhasePlan] = []
    while plan := next_phase(transfer, groups, params, [record_of(one) for one in plans]):
        plans.append(plan)
    return plans


def make_inputs(
    folder: Path,
    *,
    arm: Arm = "fine_tune",
    phases: list[int] | None = None,
    views: int = 1,
    head: HeadKind = "linear",
    backbone: str = BACKBONE,
) -> FinetuneInputs:
    """Everything that finetune reads; by default the top group and then the top two are trained."""
    info, groups = make_info(backbone)
    torch.manual_seed(5)
    hidden, dropout = (8, 0.2) if head == "mlp" else (0, 0.0)
    baseline = Baseline(
        head=head,
        hidden=hidden,
        dropout=dropout,
        feature_dim=info.feature_dim,
        classes=CLASSES,
        candidates=[],
        val_accuracy=Estimate(value=0.3, low=0.1, high=0.5, n=12),
        val_loss=1.1,
        majority_accuracy=1 / 3,
        l2_strength=0.1,
        notes=[],
    )
    default = {"fine_tune": [groups - 1, groups - 2], "scratch": [0], "feature_extraction": []}
    return FinetuneInputs(
        manifest=make_manifest(),
        stores=Stores(
            make_store(folder / "train", "train", views), make_store(folder / "val", "val", 0)
        ),
        transfer=Transfer(arm=arm, phases=default[arm] if phases is None else phases),
        backbone=info,
        baseline=baseline,
        head=find_head(head).build(info.feature_dim, 3, hidden=hidden, dropout=dropout).eval(),
        baseline_logits=np.zeros((COUNTS["val"], 3), dtype=np.float32),
    )
