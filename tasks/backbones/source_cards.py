"""Source cards: features of what a backbone was pretrained on, against which new data is compared.

A card holds features and where they are from, no pixels. `tasks.backbones.cards` makes one.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from tasks.artifacts.arrays import read_tensors, read_tensors_note, write_tensors
from tasks.artifacts.records import Fit, InputSpec, Record
from tasks.artifacts.words import listed
from tasks.errors import ArtifactError

log = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True)
class SourceCard:
    """Features of source images and where they are from.

    Attributes:
        features: float32 (n, D), pooled, one row an image; stored as float16.
        provenance: How they were made.
    """

    features: NDArray[np.float32]
    provenance: CardOrigin

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


def write_card(path: Path, card: SourceCard) -> None:
    """Write a card as safetensors with float16 features."""
    features = card.features.astype(np.float16)
    write_tensors(path, {"features": features}, {"card": card.provenance.model_dump_json()})


def read_card(path: Path) -> SourceCard:
    """Read a card.

    Raises:
        ArtifactError: The file is missing, damaged or no card.
    """
    features = read_tensors(path).get("features")
    try:
        provenance = CardOrigin.model_validate_json(read_tensors_note(path).get("card", ""))
    except ValidationError as err:
        problem = err.errors()[0]["msg"]
        raise ArtifactError(f"{path}: is no source card ({problem}); make it again") from err
    if features is None or features.ndim != 2 or len(features) != provenance.images:
        raise ArtifactError(f"{path}: its features are missing or not whole; make the card again")
    return SourceCard(features.astype(np.float32), provenance)


def find_card(folder: Path, weights_sha256: str) -> SourceCard | None:
    """Find the card of a backbone's weights in a folder; None where there is none.

    Of several, the first by file name is taken and the log says so.

    Raises:
        ArtifactError: A file of the folder is no card.
    """
    cards = [(path, read_card(path)) for path in sorted(folder.glob("*.safetensors"))]
    fitting = [(path, card) for path, card in cards if card.weights_sha256 == weights_sha256]
    if not fitting:
        return None
    if len(fitting) > 1:
        others = listed([path.name for path, _ in fitting[1:]])
        log.warning("%s is used as source card, not %s", fitting[0][0].name, others)
    return fitting[0][1]
