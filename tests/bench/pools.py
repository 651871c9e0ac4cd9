"""Pools: all images of a set, packed with their views and run through the frozen network once."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from bench.scratch import Copy
from PIL import Image

from tasks.artifacts.arrays import Features, Pixels, read_array
from tasks.artifacts.files import replacing_folder
from tasks.artifacts.pixels import PixelStore, store_info
from tasks.artifacts.records import BackboneInfo, Conversion, read_record, write_record
from tasks.artifacts.tables import ManifestRow
from tasks.augment import pack, render_file
from tasks.backbones.catalogue import load_backbone
from tasks.extract import extract
from tasks.runtime.machine import read_machine

VIEWS = 2
CORRUPT = "corrupt:"  # before a source: its images with noise, in four levels a channel
NOISE = 64.0  # standard deviation, of 255
LEVELS = 4
LIGHT_UNFLIPPED: dict[str, object] = {
    "augment.policy": "custom",
    "augment.custom.flip_horizontal": 0.0,
    "augment.custom.flip_vertical": 0.0,
    "augment.custom.quarter_turn": 0.0,
    "augment.custom.crop_scale_min": 0.8,
    "augment.custom.crop_ratio_max": 1.1,
    "augment.custom.brightness": 0.1,
    "augment.custom.contrast": 0.1,
}
VIEWS_OF: dict[str, dict[str, object]] = {  # views that keep the label, where light ones do not
    "elpv": {"augment.policy": "custom"},
    "omniglot": LIGHT_UNFLIPPED,
}
DONE = "backbone.json"


@dataclass(frozen=True)
class Pool:
    """All usable images of a set, of no split yet.

    Attributes:
        copy: The project in which ingest ran.
        rows: The images.
        pixels: Their clean views and augmented ones.
        features: Of the same rows, float32 (N, V, D).
        info: What made the features.
    """

    copy: Copy
    rows: list[ManifestRow]
    pixels: PixelStore
    features: Features
    info: BackboneInfo

    @classmethod
    def open(cls, copy: Copy) -> "Pool":
        """Open what `make_pool` wrote."""
        return cls(
            copy=copy,
            rows=copy.manifest().rows,
            pixels=PixelStore.open(copy.root / "pixels"),
            features=read_array(copy.root / "features/features.npy"),
            info=read_record(copy.root / DONE, BackboneInfo),
        )


def make_pool(
    name: str, source: str, folder: Path, python: str, *, values: Mapping[str, object]
) -> Pool:
    """List, pack and extract the images of a source, or open what an earlier run made of them.

    Args:
        name: Of the set; tells which views keep the label.
        source: A folder, csv or descriptor, after `corrupt:` if its images are to be corrupted.
        folder: Where the pool lies.
        python: Interpreter with Regraft's packages.
        values: Replace those of params.yaml, by key path.
    """
    if (folder / DONE).exists():
        return Pool.open(Copy(folder, python, {}))
    if source.startswith(CORRUPT):
        beside = folder.with_name(f"{folder.name}-clean")
        given = source.removeprefix(CORRUPT)
        clean = make_pool(name, given, beside, python, values={**values, "augment.views": 0})
        source = str(write_corrupted(clean, folder.with_name(f"{folder.name}-images")))
    copy = list_images(name, source, folder, python, values=values)
    _pack_and_extract(copy)
    return Pool.open(copy)


def list_images(
    name: str, source: str, folder: Path, python: str, *, values: Mapping[str, object]
) -> Copy:
    """Run ingest on a source in a new project, see `make_pool`."""
    own: dict[str, object] = {"augment.policy": "light", "augment.views": VIEWS}
    own |= {**VIEWS_OF.get(name, {}), **values, "ingest.small_class": "train_only"}
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
    copy = Copy.make(folder, own | {"ingest.source": source}, python=python, environment={})
    copy.run("ingest")
    return copy


def _pack_and_extract(copy: Copy) -> None:
    """Do what augment and extract do, to the images of all splits alike."""
    params, machine = copy.params(), read_machine()
    rows = copy.manifest().rows
    render = partial(
        render_file,
        root=copy.image_root(),
        params=params.augment,
        conversion=read_record(copy.root / "data/ingest/conversion.json", Conversion),
        seed=params.seed,
        views=params.augment.views,
    )
    px = params.augment.image_px
    info = store_info(len(rows), views=params.augment.views, image_px=px)
    pack(rows, copy.root / "pixels", render, info=info, workers=machine.decode_workers)
    weights = params.backbone
    backbone = load_backbone(weights.name, weights.weights, image_px=px, seed=params.seed)
    stores, folders = [PixelStore.open(copy.root / "pixels")], [copy.root / "features"]
    made = extract(stores, folders, backbone, params.extract, machine=machine)
    write_record(copy.root / DONE, made)


# corruption --------------------------------------------------------------------------------------


def write_corrupted(clean: Pool, folder: Path) -> Path:
    """Write the clean views of a pool corrupted, with a csv of labels and groups; give the csv."""
    path = folder / "images.csv"
    if path.exists():
        return path
    with replacing_folder(folder) as temporary:
        lines = ["path,label,group"]
        for number, row in enumerate(clean.rows):
            pixels = clean.pixels.rows([clean.pixels.row_of(number)])[0]
            image = Image.fromarray(corrupt(pixels, np.random.default_rng([17, number])))
            image.save(temporary / f"{number:06d}.png")
            lines.append(f"{number:06d}.png,{row.label},{row.group}")
        (temporary / path.name).write_text("\n".join(lines) + "\n")
    return path


def corrupt(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Add Gaussian noise and leave four levels a channel, uint8 of any shape."""
    noisy = np.clip(pixels + rng.normal(0.0, NOISE, pixels.shape), 0, 255)
    step = 256 // LEVELS
    return (noisy.astype(np.uint8) // step * (255 // (LEVELS - 1))).astype(np.uint8)
