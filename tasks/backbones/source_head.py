"""The classifier that a backbone was pretrained with: what it sees in pooled features.

Apart from the backbone, so that no stage after extract needs the network or its weights for it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from tasks.artifacts.arrays import Array, Features, Floats, Ints, blocks_of


@dataclass(frozen=True, slots=True)
class SourceHead:
    """One linear layer on pooled features.

    Attributes:
        weight: float32 (C, D).
        bias: float32 (C,).
        names: Of its classes, (C,).
        keys: The same as folders of images are called, such as `n01440764`, (C,).
        source: What these are the classes of, such as `imagenet-1k`.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    names: Sequence[str]
    keys: Sequence[str]
    source: str

    def probabilities(self, features: Features) -> NDArray[np.float32]:
        """What the head says about pooled features (N, D): float32 (N, C), rows sum to 1."""
        said: NDArray[np.float32] = softmax(features @ self.weight.T + self.bias, axis=1)
        return said

    def answers(self, features: Features) -> tuple[Ints, Floats]:
        """The class that it sees in each image (N, D), and its probability: (N,) both."""
        said = map(self.probabilities, blocks_of(features))
        best = [(block.argmax(axis=1), block.max(axis=1)) for block in said]
        seen, sure = (np.concatenate(column) for column in zip(*best, strict=True))
        return seen.astype(np.int64), sure.astype(np.float64)

    def accuracy(self, features: Features, keys: Sequence[str]) -> float | None:
        """Share of the images (N, D) whose class it names; None where one has no such key."""
        index = {key: number for number, key in enumerate(self.keys)}
        if not set(keys) <= index.keys():
            return None
        seen, _ = self.answers(features)
        return float(np.mean(seen == np.array([index[key] for key in keys])))


def read_source_head(tensors: Mapping[str, Array], note: Mapping[str, str]) -> SourceHead | None:
    """Take the head out of the probe's tensors and note; None where they have none."""
    if "head" not in note:
        return None
    told = json.loads(note["head"])
    return SourceHead(
        tensors["head.weight"], tensors["head.bias"], told["names"], told["keys"], told["source"]
    )
