"""Heatmaps of single answers: where the network's evidence for a class lay (Grad-CAM).

torch is needed, which takes seconds to import: `tasks.predict` comes here only where it is asked.
"""

import copy
import hashlib
import io
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from tasks.artifacts.arrays import Ints, Pixels
from tasks.artifacts.records import InputSpec
from tasks.errors import ArtifactError, EngineError, first_line
from tasks.runtime.device import normalize

Heat = NDArray[np.float32]

# Of heat from 0 to 1: dark red to pale yellow, lighter as it grows, also to the color-blind.
COLORS = np.array([(87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float64)
LUMA = np.array([0.299, 0.587, 0.114])
DIMMED, COVERED = 0.75, 0.6  # brightness of the image below; share of the color where heat is 1
JPEG_QUALITY = 90
KEPT_OF_NAME, DIGITS = 80, 12  # characters of a path and of its sha256 in the name of a picture


class GradCam:
    """Says where an image speaks for a class: Grad-CAM on one of the last maps of places.

    A place's evidence is the sum of its features, each weighed by the mean slope of the class's
    logit in that feature over all places. The places are those that enter the last of the network's
    `blocks`. Where it has none they are those of its last feature map, as published: in tokens,
    the slope there is 0 where a class token alone is read, and in EfficientNet that map points
    worse (docs/benchmarks/explanations.md).

    Args:
        backbone: timm model without classifier, normalized images to pooled features; it is copied.
        head: Features to logits (N, C); it is copied.
        spec: The images that the backbone expects.
        device: Where it computes.

    Attributes:
        side: The map has side x side places.

    Raises:
        EngineError: The network has no such map, or one of a single place.

    Source: Selvaraju et al. 2017, Grad-CAM (1610.02391), equations 1 and 2.
    """

    def __init__(
        self, backbone: nn.Module, head: nn.Module, spec: InputSpec, device: torch.device
    ) -> None:
        self._backbone: Any = copy.deepcopy(backbone).eval().requires_grad_(False).to(device)
        self._head = copy.deepcopy(head).eval().requires_grad_(False).to(device)
        self._spec, self._device = spec, device
        blank = np.zeros((1, spec.image_px, spec.image_px, 3), np.uint8)
        try:
            _, self.side, _ = self.evidence(blank, np.zeros(1, np.int64)).shape
        except (EngineError, MemoryError):
            raise
        except Exception as err:  # networks whose parts are others raise errors of many kinds
            raise EngineError(f"{self._name} has no map of places ({first_line(err)})") from err
        if self.side < 2:
            raise EngineError(
                f"the map of {self._name} has a single place at {spec.image_px} px; larger images "
                "(augment.image_px) have more"
            )

    def evidence(self, pixels: Pixels, classes: Ints) -> Heat:
        """Give what speaks for a class, and where it is negative against it, before the ReLU.

        Args:
            pixels: uint8 (N, R, R, 3).
            classes: The class asked about in each image, int64 (N,).

        Returns:
            float32 (N, side, side), in units of the logit by place.
        """
        images = normalize(torch.tensor(pixels, device=self._device), self._spec)
        with torch.enable_grad():
            places, logits = self._watch(images)
            asked = logits.gather(1, torch.tensor(classes, device=self._device)[:, None])
            (slopes,) = torch.autograd.grad(asked.sum(), places)
        features, slopes = self._in_grid(places.detach()), self._in_grid(slopes)
        found = (features * slopes.mean(dim=(2, 3), keepdim=True)).sum(dim=1)
        return np.asarray(found.to("cpu", torch.float32).numpy())

    def heatmaps(self, pixels: Pixels, classes: Ints) -> Heat:
        """Give what speaks for a class, from 0 to 1 where that is most; 0 where nothing does.

        Arguments and shape are those of `evidence`.
        """
        heat = np.maximum(self.evidence(pixels, classes), 0)
        most = heat.max(axis=(1, 2), keepdims=True)
        return np.asarray(heat / np.where(most > 0, most, 1), dtype=np.float32)

    @property
    def _name(self) -> str:
        return type(self._backbone).__name__

    def _watch(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Run the network; give its map of places, whose slopes are recorded, and the logits."""
        inputs: list[Tensor] = []

        def keep(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            inputs.append(given[0].detach().requires_grad_())
            return (inputs[-1].clone(), *given[1:])  # blocks may write into what they are given

        blocks = getattr(self._backbone, "blocks", None)
        hook = blocks[-1].register_forward_pre_hook(keep) if blocks else None
        try:
            last = self._backbone.forward_features(images)
        finally:
            if hook:
                hook.remove()
        ndim = last.ndim if isinstance(last, Tensor) else 0
        if not inputs or inputs[-1].ndim != ndim:  # or tokens in an order of their own
            if ndim != 4:
                raise EngineError(
                    f"{self._name} has no map of places: neither a last feature map nor tokens in "
                    "`blocks`"
                )
            inputs = [last.detach().requires_grad_()]
            last = inputs[-1].clone()
        features = self._backbone.forward_head(last, pre_logits=True)
        return inputs[-1], self._head(features)

    def _in_grid(self, places: Tensor) -> Tensor:
        """Arrange places as (N, D, side, side).

        Args:
            places: (N, D, side, side), (N, side, side, D), or tokens (N, prefix + places, D); some
                networks add the prefix, which stands for no place, only after the block.
        """
        if places.ndim == 4:
            return places if places.shape[2] == places.shape[3] else places.permute(0, 3, 1, 2)
        declared = getattr(self._backbone, "num_prefix_tokens", 0)
        for prefix in (declared, 0):
            patches = places[:, prefix:].transpose(1, 2)
            side = math.isqrt(patches.shape[2])
            if side**2 == patches.shape[2]:
                return patches.reshape(*patches.shape[:2], side, side)
        raise EngineError(f"the {places.shape[1]} tokens of {self._name} are no square of places")


# pictures ----------------------------------------------------------------------------------------


def enlarge(heat: Heat, image_px: int) -> Heat:
    """Enlarge a heatmap (side, side) to the size of its image, bilinear: (R, R) in [0, 1]."""
    large = Image.fromarray(heat).resize((image_px, image_px), Image.Resampling.BILINEAR)
    return np.asarray(large, dtype=np.float32)


def lay_over(pixels: Pixels, heat: Heat) -> Pixels:
    """Lay a heatmap over its image in gray.

    Args:
        pixels: uint8 (R, R, 3).
        heat: float32 (side, side), in [0, 1].

    Returns:
        uint8 (R, R, 3).
    """
    large = enlarge(heat, len(pixels))
    steps = np.linspace(0, 1, len(COLORS))
    color = np.stack([np.interp(large, steps, channel) for channel in COLORS.T], axis=-1)
    cover = COVERED * large[..., None]
    below = DIMMED * (pixels @ LUMA)[..., None]
    mixed: Pixels = np.rint((1 - cover) * below + cover * color).astype(np.uint8)
    return mixed


def name_picture(path: str) -> str:
    """Name the picture of a row: the end of its path, and the first digits of the path's sha256.

    So names that differ in what file systems refuse, or are absolute, do not meet.
    """
    plain = re.sub(r"[^\w.-]+", "_", path, flags=re.ASCII)[-KEPT_OF_NAME:].lstrip("._-")
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:DIGITS]
    return f"{plain}.{digest}.jpg".lstrip(".")


def write_picture(folder: Path, path: str, pixels: Pixels) -> None:
    """Write the picture of a row as JPEG.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    file = folder / name_picture(path)
    temporary = file.with_name(f".{file.name}.tmp")
    try:  # not by `write_bytes`, which looks through the whole folder each time
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(encode(pixels))
        os.replace(temporary, file)
    except OSError as err:
        raise ArtifactError(f"{file}: cannot be written ({err.strerror})") from err


def encode(pixels: Pixels) -> bytes:
    """Give pixels as the bytes of a JPEG file."""
    jpeg = io.BytesIO()
    Image.fromarray(pixels).save(jpeg, format="JPEG", quality=JPEG_QUALITY)
    return jpeg.getvalue()
