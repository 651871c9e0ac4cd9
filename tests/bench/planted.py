"""Image sets in memory for the audits' pages, their features, and second pictures of one thing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from tasks.artifacts.arrays import Features, Ints, Pixels
from tasks.backbones.catalogue import load_backbone
from tasks.backbones.engine import make_engine
from tasks.images.decoding.decode import decode_image
from tasks.images.listing.sources import list_images, resolve_root
from tasks.runtime.device import configure_torch
from tasks.runtime.machine import read_machine

BATCH, SIDE = 32, 400  # images; px that a photograph is kept at


@dataclass(frozen=True)
class ImageSet:
    """Some images of a source, upright.

    Attributes:
        name: Of the source.
        images: At most SIDE px a side.
        paths: Of their files.
        labels: int64 (N,).
        groups: int64 (N,); every image is one where the source names none.
    """

    name: str
    images: list[Image.Image]
    paths: list[str]
    labels: Ints
    groups: Ints


def read_images(source: Path, most: int, seed: int) -> ImageSet:
    """Read at most about `most` images of a source, whole groups of them, drawn by chance."""
    listing = list_images(source)
    names = [image.group or image.path for image in listing.images]
    groups = np.unique(np.array(names, dtype=object), return_inverse=True)[1]
    labels = np.unique([image.label for image in listing.images], return_inverse=True)[1]
    order = np.random.default_rng(seed).permutation(groups.max() + 1)
    sizes = np.bincount(groups)[order]
    kept = np.flatnonzero(np.isin(groups, order[np.cumsum(sizes) <= most]))
    root = resolve_root(listing.origin)
    paths = [listing.images[row].path for row in kept]
    pictures = []
    for path in paths:
        decoded = decode_image((root / path).read_bytes(), max_pixels=10**9, draft_px=SIDE)
        picture = decoded.image
        picture.thumbnail((SIDE, SIDE))
        pictures.append(picture)
    return ImageSet(source.stem, pictures, paths, labels[kept].astype(np.int64), groups[kept])


class Backbone:
    """The packaged backbone at some size: images in, pooled features out."""

    def __init__(self, name: str, image_px: int, seed: int) -> None:
        loaded = load_backbone(name, "packaged", image_px=image_px, seed=seed)
        loaded.model.reset_classifier(0)  # type: ignore[operator]
        machine = read_machine()
        configure_torch(machine, seed)
        blank = np.zeros((BATCH, image_px, image_px, 3), np.uint8)
        self._engine = make_engine(loaded.model, loaded.input, machine, blank)
        self._px = image_px

    def features(self, images: Sequence[Image.Image]) -> Features:
        """Give float32 (N, D)."""
        size = (self._px, self._px)
        parts = []
        for start in range(0, len(images), BATCH):
            some = images[start : start + BATCH]
            pixels: Pixels = np.stack(
                [np.asarray(image.resize(size, Image.Resampling.BICUBIC)) for image in some]
            )
            parts.append(self._engine(pixels)[0])
        return np.concatenate(parts)


# second pictures of one thing --------------------------------------------------------------------


def crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Keep 60 to 85 % of the area, anywhere."""
    side = rng.uniform(0.6, 0.85) ** 0.5
    width, height = (int(length * side) for length in image.size)
    left = int(rng.integers(0, image.width - width + 1))
    top = int(rng.integers(0, image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def expose(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Darken or brighten by a gamma of 0.5 to 2, and shift the colors."""
    gamma = rng.choice([0.5, 0.65, 1.5, 2.0])
    gains = rng.uniform(0.7, 1.2) * rng.uniform(0.85, 1.15, 3)
    return _from_unit((np.asarray(image) / 255) ** gamma * gains)


def move(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Turn by 4 to 10 degrees either way and shift by up to 6 %."""
    fill = tuple(int(value) for value in np.asarray(image)[0].mean(0))
    shift = rng.uniform(-0.06, 0.06, 2)
    return image.rotate(
        float(rng.uniform(4, 10) * rng.choice([-1, 1])),
        Image.Resampling.BICUBIC,
        translate=(int(shift[0] * image.width), int(shift[1] * image.height)),
        fillcolor=fill,
    )


def rephotograph(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Take it again from another place: perspective, exposure, noise and a little blur."""
    (width, height), inset = image.size, rng.uniform(0.02, 0.1, 8)
    corners = (
        inset[0] * width,
        inset[1] * height,
        inset[2] * width,
        height - inset[3] * height,
        width - inset[4] * width,
        height - inset[5] * height,
        width - inset[6] * width,
        inset[7] * height,
    )
    seen = image.transform(
        image.size, Image.Transform.QUAD, corners, resample=Image.Resampling.BICUBIC
    )
    values = (np.asarray(seen) / 255) ** rng.uniform(0.75, 1.35) * rng.uniform(0.8, 1.15, 3)
    noisy = _from_unit(values + rng.normal(0, 0.03, values.shape))
    return noisy.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))


def _from_unit(values: "np.ndarray") -> Image.Image:  # type: ignore[type-arg]
    return Image.fromarray((np.clip(values, 0, 1) * 255).astype(np.uint8))


PICTURES: Mapping[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "crop": crop,
    "exposure, color": expose,
    "turn, shift": move,
    "photographed again": rephotograph,
}
