"""Runs the frozen backbone once over all packed images and views.

Writes pooled features of every split, and a probe: what the normalization layers see in training
images, and features of the same architecture with random weights. Several processes share the rows
and write the same bytes as one.
"""

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tasks.artifacts.pixels import PixelStore, open_pixels
from tasks.artifacts.records import BackboneChoice, BackboneInfo, read_record, write_record
from tasks.artifacts.tables import Manifest, read_manifest
from tasks.backbones.catalogue import Backbone, load_backbone
from tasks.backbones.engine import Engine, make_engine
from tasks.backbones.feature_files import count_own_rows, write_features
from tasks.backbones.groups import PooledFeatures, layer_groups
from tasks.backbones.normalization import norm_kind
from tasks.backbones.probe import choose_probe_images, measure_probe, sample_pixels, write_probe
from tasks.errors import ArtifactError
from tasks.params import ExtractParams
from tasks.runtime.entry import Read, StagePaths, Write, read_arguments
from tasks.runtime.launch import run_in_processes
from tasks.runtime.machine import Machine, read_machine
from tasks.runtime.processes import ALONE, Processes, join_processes
from tasks.runtime.progress import progress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Paths(StagePaths):
    """What the stage reads and writes."""

    manifest: Read
    choice: Read
    train: Read
    val: Read
    test: Read
    train_features: Write
    val_features: Write
    test_features: Write
    probe: Write
    backbone: Write


def extract(
    stores: Sequence[PixelStore],
    folders: Sequence[Path],
    backbone: Backbone,
    params: ExtractParams,
    *,
    machine: Machine,
    processes: Processes = ALONE,
) -> BackboneInfo:
    """Run the backbone over the rows of this process and say what made the features.

    They go to disk batch by batch, so that memory does not grow with the number of images.

    Args:
        stores: Packed pixels, those of train first.
        folders: Where the features of each store go; replaced whole.
        backbone: The frozen network.
        params: The `extract` block.
        machine: Device, threads and engine.
        processes: Write the same folders together.
    """
    module = PooledFeatures(backbone.model)
    rows = sum(store.info.count * (store.info.views + 1) for store in stores)
    engine = make_engine(module, backbone.input, machine, sample_pixels(stores[0]), rows=rows)
    started = time.monotonic()
    own = sum(count_own_rows(store, params.batch_size, processes) for store in stores)
    with progress("features", own) as meter:
        for folder, store in zip(folders, stores, strict=True):
            write_features(folder, store, engine, params, meter, processes)
    log.info(
        "%d features of %d rows from %s by %s (%s), %.0f rows a second",
        backbone.feature_dim,
        rows,
        backbone.name,
        engine.name,
        "exact" if engine.parity is None else f"within {engine.parity:.0e} of torch",
        rows / (time.monotonic() - started),
    )
    return describe_backbone(backbone, engine)


def describe_backbone(backbone: Backbone, engine: Engine) -> BackboneInfo:
    """Say what made the features."""
    return BackboneInfo(
        name=backbone.name,
        weights=backbone.weights,
        weights_sha256=backbone.weights_sha256,
        weights_license=backbone.license,
        weights_source=backbone.source,
        input=backbone.input,
        groups=layer_groups(backbone.model),
        feature_dim=backbone.feature_dim,
        norm=norm_kind(backbone.model),
        engine=engine.name,
        parity=engine.parity,
    )


def open_stores(manifest: Manifest, folders: Sequence[Path]) -> list[PixelStore]:
    """Open the pixel stores of all splits.

    Raises:
        ArtifactError: A store is missing or damaged, holds no images or others than the manifest
            lists, or their sizes differ.
    """
    stores = list(open_pixels(manifest, folders).values())
    for store in stores:
        if store.info.count == 0 or store.info.image_px != stores[0].info.image_px:
            raise ArtifactError(
                f"{store.folder}: {store.info.count} images of {store.info.image_px} px, expected "
                f"at least one of {stores[0].info.image_px} px; run the augment stage again"
            )
    return stores


def main(argv: Sequence[str] | None = None) -> None:
    """Read the pixel stores, run the backbone, write features, probe and description."""
    paths, params = read_arguments(Paths, "extract", __doc__ or "", argv)
    machine = read_machine()
    with join_processes(machine, seed=params.seed) as processes:
        choice = read_record(paths.choice, BackboneChoice)
        manifest = read_manifest(paths.manifest)
        stores = open_stores(manifest, [paths.train, paths.val, paths.test])
        load = partial(
            load_backbone,
            choice.name,
            image_px=stores[0].info.image_px,
            seed=params.seed,
        )
        backbone = load(choice.weights)
        folders = [paths.train_features, paths.val_features, paths.test_features]
        info = extract(
            stores, folders, backbone, params.extract, machine=machine, processes=processes
        )
        if processes.first:
            rows = manifest.of("train")
            images = choose_probe_images(stores[0], rows, params.extract, params.seed)
            probe = measure_probe(backbone, load("random"), images, machine)
            write_probe(paths.probe, probe)
            write_record(paths.backbone, info)
            log.info(
                "probe of %d images over %d %s layers",
                len(probe.rows),
                len(probe.layers),
                "batch-norm" if info.norm == "batch" else "normalization",
            )


if __name__ == "__main__":
    sys.exit(run_in_processes("extract", main))
