"""What every peer shares: its arguments, the images of a split, the weights, its answer.

Runs in the environment of the peers, which does not have Regraft.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, Dataset


@dataclass(frozen=True)
class Task:
    """What is to be learned, and how."""

    backbone: str
    weights: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_px: int
    batch_size: int
    threads: int
    classes: list[str]
    images: list[tuple[str, int, str]]
    rate: float
    epochs: int
    seed: int

    def of(self, split: str) -> list[tuple[str, int]]:
        """Path and label of the images of a split."""
        return [(path, label) for path, label, found in self.images if found == split]


@dataclass(frozen=True)
class Answer:
    """What a peer found: val accuracy, test classes, and how long training took."""

    val_accuracy: float
    predictions: list[int]
    images_shown: int
    train_seconds: float


class Images(Dataset):
    """Images of one split, decoded each time as the libraries do."""

    def __init__(self, listed: Sequence[tuple[str, int]], transform: Callable) -> None:
        self.listed, self.transform = listed, transform

    def __len__(self) -> int:
        return len(self.listed)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        path, label = self.listed[number]
        with Image.open(path) as image:
            return self.transform(image.convert("RGB")), label


def load_loaders(task: Task) -> dict[str, DataLoader]:
    """Make a loader of each split with timm's own transforms."""
    config = {
        "input_size": (3, task.image_px, task.image_px),
        "mean": tuple(task.mean),
        "std": tuple(task.std),
    }
    loaders = {}
    for split in ("train", "val", "test"):
        training = split == "train"
        transform = timm.data.create_transform(**config, is_training=training)
        loaders[split] = DataLoader(
            Images(task.of(split), transform),
            batch_size=task.batch_size,
            shuffle=training,
            num_workers=task.threads,
            persistent_workers=True,
        )
    return loaders


def load_backbone(task: Task, model: nn.Module) -> None:
    """Fill a timm model with the task's weights; its new classifier keeps its own."""
    own = model.state_dict()
    given = {
        name: tensor
        for name, tensor in load_file(task.weights).items()
        if name in own and own[name].shape == tensor.shape
    }
    missing = [name for name in own if name not in given]
    if any(not name.startswith(("classifier", "head", "fc")) for name in missing):
        raise SystemExit(f"weights do not fit: {missing[:3]}")
    model.load_state_dict(given, strict=False)


@torch.no_grad()
def predict(model: nn.Module, loader: DataLoader) -> tuple[list[int], float]:
    """Give the class of every image, and the accuracy."""
    model.eval()
    found, labels = [], []
    for images, wanted in loader:
        found += model(images).argmax(dim=1).tolist()
        labels += wanted.tolist()
    return found, float(np.mean(np.array(found) == np.array(labels)))


def run_peer(train: Callable[[Task], Answer]) -> None:
    """Read the task, train, write the answer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("task", type=Path)
    parser.add_argument("answer", type=Path)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args()
    content = json.loads(given.task.read_text())
    task = Task(**content, rate=given.rate, epochs=given.epochs, seed=given.seed)
    torch.set_num_threads(task.threads)
    random.seed(task.seed)
    np.random.seed(task.seed)
    torch.manual_seed(task.seed)
    answer = train(task)
    rate = answer.images_shown / answer.train_seconds
    given.answer.write_text(
        json.dumps(
            {
                "val_accuracy": answer.val_accuracy,
                "predictions": answer.predictions,
                "images_per_second": rate,
            }
        )
    )


def seconds_since(started: float) -> float:
    """Seconds of wall time since a value of time.monotonic()."""
    return time.monotonic() - started
