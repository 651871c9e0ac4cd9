"""Makes a source card from any folder of images: `python -m tasks.backbones.cards --help`."""

import argparse
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tasks.artifacts.arrays import Floats, Pixels
from tasks.artifacts.records import Fit
from tasks.artifacts.words import first_of
from tasks.backbones.catalogue import Backbone, load_backbone
from tasks.backbones.engine import make_engine
from tasks.backbones.groups import PooledFeatures
from tasks.backbones.normalization import norm_kind
from tasks.backbones.probe import find_source_head, measure_layers
from tasks.backbones.source_cards import (
    CardOrigin,
    LayerMoments,
    SourceCard,
    name_by_size,
    write_card,
)
from tasks.errors import DataError, ImageError
from tasks.images.decoding.formats import SUFFIXES
from tasks.images.texture import (
    STATISTICS,
    gray_share,
    measure_texture,
    mostly_even_share,
    tabulate,
    unpadded,
)
from tasks.images.views import read_view
from tasks.params import Params
from tasks.params_file import load_params
from tasks.runtime.device import configure_torch, normalize
from tasks.runtime.entry import run_stage
from tasks.runtime.machine import Machine, read_machine
from tasks.runtime.parallel import map_in_order
from tasks.runtime.progress import progress

log = logging.getLogger(__name__)

FITS: tuple[Fit, ...] = ("crop", "squash", "pad")
BATCH_SIZE = 32
SAMPLE_IMAGES = 8  # on which the engine is compared with torch


def list_source_images(folder: Path) -> list[Path]:
    """List image files below a folder, sorted by code point of their relative path.

    Raises:
        DataError: There are none.
    """
    files = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    ]
    if not files:
        raise DataError(
            f"{folder}: holds no image files ({', '.join(sorted(SUFFIXES))}); "
            "name a folder of images"
        )
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def read_views(
    files: Sequence[Path], *, image_px: int, fit: Fit, max_pixels: int, workers: int
) -> Iterator[Pixels]:
    """Decode images in several threads and yield them in order: uint8 (image_px, image_px, 3).

    Raises:
        DataError: Some cannot be decoded; names the first few.
    """
    bad: list[str] = []
    read = partial(_read_view, image_px=image_px, fit=fit, max_pixels=max_pixels)
    for path, view in zip(files, map_in_order(read, files, workers=workers), strict=True):
        if isinstance(view, str):
            bad.append(f"{path}: {view}")
        elif not bad:
            yield view
    if bad:
        raise DataError(
            f"{len(bad)} of {len(files)} images cannot be used; remove or repair "
            f"them:{first_of(bad)}"
        )


def _read_view(path: Path, *, image_px: int, fit: Fit, max_pixels: int) -> Pixels | str:
    """Give the pixels of a file, or the reason why there are none."""
    try:
        return read_view(
            path.read_bytes(), image_px=image_px, fit=fit, max_pixels=max_pixels
        ).pixels
    except ImageError as err:
        return str(err)
    except OSError as err:
        return err.strerror or str(err)


def extract_source_features(
    backbone: Backbone, views: Iterator[Pixels], total: int, machine: Machine
) -> NDArray[np.float32]:
    """Run a backbone over single images: float32 (n, D)."""
    features: list[NDArray[np.float32]] = []
    engine = None
    with progress("card", total) as meter:
        for batch in _batches(views):
            engine = engine or make_engine(
                PooledFeatures(backbone.model), backbone.input, machine, batch[:SAMPLE_IMAGES]
            )
            features.append(engine(batch)[0])
            meter.advance(len(batch))
    return np.concatenate(features)


def measure_source_moments(
    backbone: Backbone, views: Iterator[Pixels], total: int, machine: Machine
) -> dict[str, LayerMoments]:
    """Measure what the normalization layers see in single images, by layer.

    Empty, without a look at the images, for a network whose weights tell it.
    """
    if norm_kind(backbone.model) == "batch":
        return {}
    with progress("moments", total) as meter:

        def images() -> Iterator[torch.Tensor]:
            for batch in _batches(views):
                yield normalize(torch.from_numpy(batch), backbone.input)
                meter.advance(len(batch))

        layers = measure_layers(backbone, [images()], machine)
    return {
        layer.name: LayerMoments(layer.mean.astype(np.float32), layer.var.astype(np.float32))
        for layer in layers
    }


def _batches(views: Iterator[Pixels]) -> Iterator[Pixels]:
    waiting: list[Pixels] = []
    for view in views:
        waiting.append(view)
        if len(waiting) == BATCH_SIZE:
            yield np.stack(waiting)
            waiting = []
    if waiting:
        yield np.stack(waiting)


def main(argv: Sequence[str] | None = None) -> None:
    """Make a card of a folder of images, or one for each of several image sizes."""
    options = _parse(argv)
    params = load_params(options.params)
    machine = read_machine()
    configure_torch(machine, params.seed)
    files = list_source_images(options.images)
    sizes = options.image_px or [params.augment.image_px]
    for image_px in sizes:
        out = name_by_size(options.out, image_px) if len(sizes) > 1 else options.out
        card = make_card(files, image_px, options, params, machine)
        write_card(out, card)
        log.info(
            "%s: %d features of %d images, for %s with weights %s",
            out,
            card.features.shape[1],
            len(files),
            card.provenance.backbone,
            card.weights_sha256[:12],
        )


def make_card(
    files: Sequence[Path],
    image_px: int,
    options: argparse.Namespace,
    params: Params,
    machine: Machine,
) -> SourceCard:
    """Make the card of one image size; `options` are those of the command."""
    backbone = load_backbone(
        options.backbone or params.backbone.name,
        options.weights or params.backbone.weights,
        image_px=image_px,
        seed=params.seed,
    )
    read = partial(
        read_views,
        files,
        image_px=image_px,
        fit=options.fit,
        max_pixels=params.ingest.max_pixels,
        workers=machine.decode_workers,
    )
    looked: list[Floats] = []
    watched = _watched(read(), files, options.fit, looked)
    features = extract_source_features(backbone, watched, len(files), machine)
    own = [] if _are_enlarged(files, image_px, options.fit) else looked
    textures = np.reshape(own, (-1, len(STATISTICS)))
    head = find_source_head(backbone)
    keys = [path.parent.name for path in files]
    provenance = CardOrigin(
        name=options.name,
        source=options.source,
        license=options.license,
        images=len(files),
        backbone=backbone.name,
        weights_sha256=backbone.weights_sha256,
        weights_license=backbone.license,
        input=backbone.input,
        fit=options.fit,
        command=_command(backbone, options),
        textures=tabulate(textures),
        gray=gray_share(textures) if len(own) else None,
        even=mostly_even_share(textures) if len(own) else None,
        head_accuracy=head.accuracy(features, keys) if head else None,
    )
    moments = measure_source_moments(backbone, read(), len(files), machine)
    return SourceCard(features, provenance, moments)


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def _are_enlarged(files: Sequence[Path], image_px: int, fit: Fit) -> bool:
    """Whether most images are smaller than the card's: enlarged, none has its own texture."""
    filling = max if fit == "pad" else min  # the side that fills the square
    return float(np.median([filling(_size(path)) for path in files])) < image_px


def _watched(
    views: Iterator[Pixels], files: Sequence[Path], fit: Fit, looked: list[Floats]
) -> Iterator[Pixels]:
    """Yield images and note what they look like, of padded ones what was not padded."""
    for path, view in zip(files, views, strict=True):
        shown = unpadded(view, *_size(path)) if fit == "pad" else view
        if shown is not None:
            looked.append(measure_texture(shown))
        yield view


def _command(backbone: Backbone, options: argparse.Namespace) -> str:
    """Give the command that makes the card again, without paths."""
    values = {
        "images": "IMAGES",
        "out": "CARD",
        "name": options.name,
        "backbone": backbone.name,
        "weights": Path(backbone.weights).name,
        "fit": options.fit,
    }
    named = [part for key, value in values.items() for part in (f"--{key}", value)]
    sizes = map(str, options.image_px or [backbone.input.image_px])
    return shlex.join(["python", "-m", "tasks.backbones.cards", *named, "--image-px", *sizes])


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tasks.backbones.cards", description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder, read recursively")
    parser.add_argument("--name", required=True, help="what reports call the source")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--source", default="", help="one sentence: which images, how chosen")
    parser.add_argument("--license", help="license or terms of the images")
    parser.add_argument("--backbone", help="timm name; else that of the parameters")
    parser.add_argument("--weights", help="as backbone.weights; else that of the parameters")
    parser.add_argument(
        "--image-px",
        type=int,
        nargs="+",
        help="side, pixels; else that of the parameters. Several make a card each, with the size "
        "added to the file's name",
    )
    parser.add_argument("--fit", choices=FITS, default="crop", help="how images become square")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the parameters")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_stage("cards", main, timed=False))
