"""What fine-tuning reads from the stages before it, checked to fit together."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tasks.artifacts.arrays import Ints, Logits, read_array
from tasks.artifacts.pixels import open_pixels
from tasks.artifacts.records import BackboneInfo, Baseline, Transfer, read_record
from tasks.artifacts.tables import Manifest, read_manifest
from tasks.errors import ArtifactError
from tasks.heads.classifier import Classifier, start_classifier
from tasks.heads.registry import load_head, soften_head
from tasks.judging.rule import ValSet
from tasks.runtime.device import find_device
from tasks.runtime.entry import Read, StagePaths
from tasks.runtime.machine import Machine
from tasks.training.feed.rows import Stores


@dataclass(frozen=True)
class Examples:
    """What is learned, and what judges.

    Attributes:
        labels: Class of each training image, int64 (N,).
        names: Path of each training image, for messages.
        val: Labels and groups of the val images.
        classes: Number of classes.
    """

    labels: Ints
    names: Sequence[str]
    val: ValSet
    classes: int


@dataclass(frozen=True)
class InputPaths(StagePaths):
    """What fine-tuning reads."""

    manifest: Read
    train: Read
    val: Read
    transfer: Read
    backbone: Read
    head: Read
    baseline: Read
    baseline_logits: Read


@dataclass(frozen=True)
class FinetuneInputs:
    """What earlier stages found and made."""

    manifest: Manifest
    stores: Stores
    transfer: Transfer
    backbone: BackboneInfo
    baseline: Baseline
    head: nn.Module
    baseline_logits: Logits

    def start(self, *, seed: int, balanced: bool, machine: Machine) -> Classifier:
        """Make the classifier that training starts from, where the machine computes.

        A head that is too sure of itself on val, judged as `examples` says, is softened.

        Raises:
            ArtifactError: The backbone's weights are not those that made the features.
        """
        classifier = start_classifier(
            self.backbone, self.baseline, deepcopy(self.head), arm=self.transfer.arm, seed=seed
        )
        if self.transfer.arm == "fine_tune":
            temperature = self.examples(balanced=balanced).val.temperature(self.baseline_logits)
            soften_head(classifier.head, temperature)
        return classifier.to(find_device(machine)).to(memory_format=torch.channels_last)

    def examples(self, *, balanced: bool = False) -> Examples:
        """What is learned, and what judges; `balanced`: all classes count the same in judging."""
        manifest = self.manifest
        return Examples(
            labels=manifest.labels("train"),
            names=[row.path for row in manifest.of("train")],
            val=ValSet(manifest.labels("val"), manifest.groups("val"), balanced=balanced),
            classes=len(manifest.class_names),
        )


def read_finetune_inputs(paths: InputPaths) -> FinetuneInputs:
    """Read what earlier stages made and check that it fits together.

    Raises:
        ArtifactError: A file is missing, damaged or from another run.
    """
    manifest = read_manifest(paths.manifest)
    stores = Stores(*open_pixels(manifest, [paths.train, paths.val]).values())
    backbone = read_record(paths.backbone, BackboneInfo)
    baseline = read_record(paths.baseline, Baseline)
    logits = read_array(paths.baseline_logits)
    for store in (stores.train, stores.val):
        if store.info.image_px != backbone.input.image_px:
            raise ArtifactError(
                f"{store.folder}: images of {store.info.image_px} px, expected "
                f"{backbone.input.image_px} px; rerun augment and extract"
            )
    expected = (stores.val.info.count, len(manifest.class_names))
    if baseline.classes != manifest.class_names or logits.shape != expected:
        raise ArtifactError(
            f"{paths.baseline}: is of other classes or images than {paths.manifest}; rerun baseline"
        )
    return FinetuneInputs(
        manifest=manifest,
        stores=stores,
        transfer=read_record(paths.transfer, Transfer),
        backbone=backbone,
        baseline=baseline,
        head=load_head(paths.head, baseline),
        baseline_logits=np.array(logits),
    )
