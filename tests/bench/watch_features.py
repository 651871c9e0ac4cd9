"""Features of image sets, as they are and changed, for `bench.watch`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench.planted import Backbone, read_images
from PIL import Image, ImageEnhance, ImageFilter

from tasks.artifacts.arrays import Array, Features, Floats, Ints, read_tensors, write_tensors
from tasks.artifacts.tables import FactRow
from tasks.delivery.appearance import FACTS, measure_appearance

BLUR_PX, DARKER = 1.2, 0.6  # radius at 128 px; share of the light that is left
OF_PIXELS = ("brightness", "border", "sharpness")
NO_FILE = FactRow("", 1, 1, "", "", 0.0, 1, "", 0.0, 0.0, 0.0, 0.0)
Change = Callable[[Image.Image], Image.Image]
CHANGES: Mapping[str, Change] = {
    "clean": lambda image: image,
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(BLUR_PX * image.width / 128)),
    "darkened": lambda image: ImageEnhance.Brightness(image).enhance(DARKER),
}


@dataclass(frozen=True)
class StreamSet:
    """A set whose images come in.

    Attributes:
        name: Of the source.
        features: Name of a change -> float32 (N, D).
        looks: Name of a change -> facts of the pixels, float64 (N, 7); what files tell is NaN.
        labels: int64 (N,).
        groups: int64 (N,).
    """

    name: str
    features: Mapping[str, Features]
    looks: Mapping[str, Floats]
    labels: Ints
    groups: Ints


def read_sets(
    sources: Sequence[Path], backbone: Backbone, px: int, *, images: int, seed: int, scratch: Path
) -> list[StreamSet]:
    """Make the features of every set, or read those that a folder keeps from before."""
    return [_read_set(source, backbone, px, images, seed, scratch) for source in sources]


def _read_set(
    source: Path, backbone: Backbone, px: int, images: int, seed: int, scratch: Path
) -> StreamSet:
    kept = scratch / f"{source.stem}-{px}-{images}-{seed}.safetensors"
    if not kept.exists():
        write_tensors(kept, _make(source, backbone, px, images, seed))
    arrays = read_tensors(kept)
    features = {name: arrays[name] for name in CHANGES}
    looks = {name: arrays[f"looks of {name}"] for name in CHANGES}
    return StreamSet(source.stem, features, looks, arrays["labels"], arrays["groups"])


def _make(source: Path, backbone: Backbone, px: int, images: int, seed: int) -> dict[str, Array]:
    found = read_images(source, images, seed)
    small = [
        image.convert("RGB").resize((px, px), Image.Resampling.BICUBIC) for image in found.images
    ]
    arrays: dict[str, Array] = {"labels": found.labels, "groups": found.groups}
    for name, change in CHANGES.items():
        changed = [change(image) for image in small]
        looks = np.stack([measure_appearance(np.asarray(one), NO_FILE) for one in changed])
        looks[:, [FACTS.index(fact) for fact in FACTS if fact not in OF_PIXELS]] = np.nan
        arrays[name], arrays[f"looks of {name}"] = backbone.features(changed), looks
    return arrays
