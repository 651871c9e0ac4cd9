"""Source cards: features of what a backbone was pretrained on, against which new data is compared.

A card holds features at one image size and where they are from, no pixels; of a network whose
layers keep no statistics, what these layers see. `tasks.backbones.cards` makes cards.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, field_validator

from tasks.artifacts.arrays import Array, read_tensors, read_tensors_note, write_tensors
from tasks.artifacts.records import Fit, InputSpec, Record
from tasks.errors import ArtifactError

STEPS = 256  # that a stored feature can take
QUANTILES = 21  # of a statistic of the images
LARGEST_FACTOR = 1.25  # between two image sizes whose features are compared


class CardOrigin(Record):
    """How a card was made; without any path of the machine that made it."""

    name: str
    source: str
    license: str | None  # of the images
    images: int
    backbone: str
    weights_sha256: str
    weights_license: str | None
    input: InputSpec
    fit: Fit
    command: str
    # Quantiles of `tasks.images.texture` over the images; empty in cards that were made before, and
    # where most images are smaller than `input.image_px`.
    textures: dict[str, list[float]] = Field(default_factory=dict)
    # Shares of these images without color, and of mostly even ones; None where `textures` is empty.
    gray: float | None = None
    even: float | None = None
    # Share of the images whose class the head of the pretraining names; None where the folders of
    # the images are not called as its classes.
    head_accuracy: float | None = None

    @field_validator("textures")
    @classmethod
    def _are_quantiles(cls, textures: dict[str, list[float]]) -> dict[str, list[float]]:
        for name, values in textures.items():
            if len(values) != QUANTILES or values != sorted(values):
                raise ValueError(f"{name} of its images needs {QUANTILES} ascending values")
        return textures


@dataclass(frozen=True, slots=True)
class LayerMoments:
    """Mean and population variance of a layer's input over images and positions: float32 (C,)."""

    mean: NDArray[np.float32]
    var: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SourceCard:
    """Features of source images and where they are from.

    Attributes:
        features: float32 (n, D), pooled, one row an image.
        provenance: How they were made.
        moments: Of every normalization layer by its name, in the source images. Empty where the
            network has batch norm, whose weights tell them, and in cards that were made before.
    """

    features: NDArray[np.float32]
    provenance: CardOrigin
    moments: Mapping[str, LayerMoments] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the source is called in reports."""
        return self.provenance.name

    @property
    def weights_sha256(self) -> str:
        """The backbone whose features these are."""
        return self.provenance.weights_sha256

    @property
    def image_px(self) -> int:
        """Side of the source images when the features were made, pixels."""
        return self.provenance.input.image_px


class HasSize(Protocol):
    """What was measured at one image size."""

    @property
    def image_px(self) -> int:
        """Side of the images, pixels."""
        ...


Sized = TypeVar("Sized", bound=HasSize)


def name_by_size(path: Path, image_px: int) -> Path:
    """Add an image size to the name of a file."""
    return path.with_stem(f"{path.stem}_{image_px:03d}px")


def write_card(path: Path, card: SourceCard) -> None:
    """Write a card as safetensors, each feature in 256 steps from its least to its largest value.

    That moves a feature by less than a hundredth of its deviation and an MMD^2 by less than its
    last digit that is shown.
    """
    least = card.features.min(axis=0)
    step = (card.features.max(axis=0) - least) / (STEPS - 1)
    codes = np.round((card.features - least) / np.where(step > 0, step, 1)).astype(np.uint8)
    tensors: dict[str, Array] = {"codes": codes, "least": least, "step": step}
    note = {"card": card.provenance.model_dump_json()}
    for number, layer in enumerate(card.moments.values()):
        tensors[f"moments.{number:03d}"] = np.stack([layer.mean, layer.var])
    if card.moments:
        note["moments"] = json.dumps(list(card.moments))
    write_tensors(path, tensors, note)


def read_card(path: Path) -> SourceCard:
    """Read a card.

    Raises:
        ArtifactError: The file is missing, damaged or no card.
    """
    tensors, note = read_tensors(path), read_tensors_note(path)
    try:
        provenance = CardOrigin.model_validate_json(note.get("card", ""))
    except ValidationError as err:
        problem = err.errors()[0]["msg"]
        raise ArtifactError(f"{path}: is no source card ({problem}); make it again") from err
    codes = tensors.get("codes")
    if codes is None or codes.ndim != 2 or len(codes) != provenance.images:
        raise ArtifactError(f"{path}: its features are missing or not whole; make the card again")
    features = codes.astype(np.float32) * tensors["step"] + tensors["least"]
    moments = {
        name: LayerMoments(*tensors[f"moments.{number:03d}"])
        for number, name in enumerate(json.loads(note.get("moments", "[]")))
    }
    return SourceCard(features, provenance, moments)


def find_cards(folder: Path, weights_sha256: str) -> list[SourceCard]:
    """Find the cards of a backbone's weights in a folder, by file name.

    Raises:
        ArtifactError: A file of the folder is no card.
    """
    cards = (read_card(path) for path in sorted(folder.glob("*.safetensors")))
    return [card for card in cards if card.weights_sha256 == weights_sha256]


def nearest_size(cards: Sequence[Sized], image_px: int) -> Sized | None:
    """Give the card or ruler of the nearest image size, None where all are off by over a quarter.

    Features of the same images at other sizes differ: measured on EfficientNet-Lite0, sizes that
    are off by 1.2 add .005 to the MMD^2, by 1.4 .02, by 1.7 .08, more than other photographs do.
    """
    nearest = min(cards, key=lambda card: _factor(card.image_px, image_px), default=None)
    if nearest is None or _factor(nearest.image_px, image_px) > LARGEST_FACTOR:
        return None
    return nearest


def _factor(one_px: int, other_px: int) -> float:
    return max(one_px, other_px) / min(one_px, other_px)
