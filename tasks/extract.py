"""Runs the frozen backbone once over all packed images and views.

Writes pooled features and source logits of every split, and a probe: what the batch-norm layers see
in training images, and features of the same architecture with random weights.
"""

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from tasks.artifacts import write_record
from tasks.backbones.catalogue import Backbone, load_backbone
from tasks.backbones.engine import Engine, make_engine
from tasks.backbones.features import FeaturesAndLogits, PooledFeatures
from tasks.backbones.groups import layer_groups
from tasks.backbones.normalization import norm_kind
from tasks.backbones.probe import choose_probe_images, measure_probe, sample_pixels, write_probe
from tasks.backbones.runtime import configure_torch
from tasks.entry import read_paths, run_stage
from tasks.errors import ArtifactError, WeightsError
from tasks.files import replacing_folder
from tasks.images.store import PixelStore
from tasks.machine import read_machine
from tasks.params import ExtractParams, load_params
from tasks.progress import Meter, progress
from tasks.records import SPLITS, BackboneInfo

log = logging.getLogger(__name__)


def write_features(
    folder: Path, store: PixelStore, engine: Engine, params: ExtractParams, meter: Meter
) -> None:
    """Run the engine over every row of a store and write `features.npy` and `logits.npy`.

    Both are written batch by batch, so that memory does not grow with the number of images.

    Args:
        folder: Replaced whole: features float32 (N, V, D) of all views, logits float16 (N, S) of
            the clean views; S is 0 if the engine gives no logits.
        store: Packed pixels of N images with V rows each.
        engine: Gives features (n, D) and, where there are any, logits (n, S).
        params: Batch size.
        meter: Told of every row that is done.

    Raises:
        WeightsError: A feature is not finite.
    """
    count, views = store.info.count, store.info.views + 1
    rows = np.arange(count * views, dtype=np.int64)
    batches = store.batches(rows, params.batch_size)
    with (
        replacing_folder(folder) as temporary,
        (temporary / "features.npy").open("wb") as features_file,
        (temporary / "logits.npy").open("wb") as logits_file,
    ):
        done = 0
        for pixels in batches:
            features, *rest = engine(pixels)
            logits = rest[0] if rest else np.empty((len(pixels), 0), np.float32)
            if done == 0:
                _write_header(features_file, np.float32, (count, views, features.shape[1]))
                _write_header(logits_file, np.float16, (count, logits.shape[1]))
            _check_finite(features, done, store)
            clean = rows[done : done + len(pixels)] % views == 0
            features_file.write(features.tobytes())
            logits_file.write(logits[clean].astype(np.float16).tobytes())
            done += len(pixels)
            meter.advance(len(pixels))


def _write_header(file: BinaryIO, kind: type[np.floating], shape: tuple[int, ...]) -> None:
    header = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(file, header)


def _check_finite(features: NDArray[np.float32], first: int, store: PixelStore) -> None:
    wrong = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if wrong.size:
        image, view = divmod(first + int(wrong[0]), store.info.views + 1)
        raise WeightsError(
            f"the backbone gives NaN or infinite features for image {image}, view {view} of "
            f"{store.folder}; its weights are damaged or do not belong to backbone.name"
        )


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
        source_classes=backbone.source_classes,
        norm=norm_kind(backbone.model),
        engine=engine.name,
        parity=engine.parity,
    )


def open_stores(folders: Sequence[Path]) -> list[PixelStore]:
    """Open the pixel stores of all splits.

    Raises:
        ArtifactError: A store is missing or damaged, holds no images, or their sizes differ.
    """
    stores = [PixelStore.open(folder) for folder in folders]
    for store in stores:
        if store.info.count == 0 or store.info.image_px != stores[0].info.image_px:
            raise ArtifactError(
                f"{store.folder}: {store.info.count} images of {store.info.image_px} px, expected "
                f"at least one of {stores[0].info.image_px} px; run the augment stage again"
            )
    return stores


def main(argv: Sequence[str] | None = None) -> None:
    """Read the pixel stores, run the backbone, write features, probe and description."""
    paths = read_paths(
        "extract",
        __doc__ or "",
        argv,
        reads=SPLITS,
        writes=[*(f"{split}-features" for split in SPLITS), "probe", "backbone"],
    )
    params = load_params(paths.params)
    machine = read_machine()
    configure_torch(machine, params.seed)
    stores = open_stores([paths.train, paths.val, paths.test])
    image_px = stores[0].info.image_px
    name = params.backbone.name
    backbone = load_backbone(name, params.backbone.weights, image_px=image_px, seed=params.seed)
    untrained = load_backbone(name, "random", image_px=image_px, seed=params.seed)
    whole = FeaturesAndLogits if backbone.source_classes else PooledFeatures
    total = sum(store.info.count * (store.info.views + 1) for store in stores)
    engine = make_engine(
        whole(backbone.model), backbone.input, machine, sample_pixels(stores[0]), rows=total
    )
    started = time.monotonic()
    with progress("extract", total) as meter:
        for folder, store in zip(
            [paths.train_features, paths.val_features, paths.test_features], stores, strict=True
        ):
            write_features(folder, store, engine, params.extract, meter)
    seconds = time.monotonic() - started
    images = choose_probe_images(stores[0], params.extract, params.seed)
    probe = measure_probe(backbone, untrained, images, machine)
    write_probe(paths.probe, probe)
    write_record(paths.backbone, describe_backbone(backbone, engine))
    log.info(
        "%d features of %d rows and %d source logits from %s by %s (%s), %.0f rows a second; probe "
        "of %d images over %d batch-norm layers",
        backbone.feature_dim,
        total,
        backbone.source_classes,
        name,
        engine.name,
        "exact" if engine.parity is None else f"within {engine.parity:.0e} of torch",
        total / seconds,
        len(probe.rows),
        len(probe.layers),
    )


if __name__ == "__main__":
    sys.exit(run_stage("extract", main))
