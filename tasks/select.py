"""Name the backbone: the one of params.yaml, or one of several candidates by their features.

Where `backbone.name` is auto, every candidate makes the features of some training images, and
these are compared; nothing of val and test is looked at.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.artifacts.arrays import Ints
from tasks.artifacts.pixels import PixelStore
from tasks.artifacts.records import BackboneChoice, write_record
from tasks.artifacts.sampling import choose_rows
from tasks.artifacts.tables import Manifest, read_manifest
from tasks.backbones.catalogue import load_backbone
from tasks.backbones.engine import make_engine
from tasks.backbones.groups import PooledFeatures
from tasks.backbones.probe import sample_pixels
from tasks.errors import ArtifactError
from tasks.params import AUTO, Params
from tasks.runtime.device import configure_torch
from tasks.runtime.entry import Read, StagePaths, Write, read_arguments, run_stage
from tasks.runtime.machine import read_machine
from tasks.runtime.progress import progress
from tasks.transferability.ranking import rank_backbones
from tasks.transferability.sampling import Sample

log = logging.getLogger(__name__)

BATCH_SIZE = 32


@dataclass(frozen=True)
class Paths(StagePaths):
    """What the stage reads and writes."""

    manifest: Read
    train: Read
    choice: Write


def select(manifest: Manifest, store: PixelStore, params: Params) -> BackboneChoice:
    """Name the backbone of the parameters, or choose between the candidates.

    Args:
        manifest: Labels and groups.
        store: Packed training pixels.
        params: Seed, name, weights and candidates, and how intervals are made.

    Raises:
        ArtifactError: The pixels are not those of the manifest's training images.
        WeightsError: The weights of a candidate cannot be had.
    """
    named, train = params.backbone, manifest.of("train")
    if named.name != AUTO:
        return BackboneChoice(name=named.name, weights=named.weights, images=0, ranking=[])
    if store.info.count != len(train):
        raise ArtifactError(
            f"{store.folder}: {store.info.count} images, the manifest says {len(train)}; run the "
            "augment stage again"
        )
    rows = choose_rows(train, params.select.images, seed=params.seed)
    labels, groups = manifest.labels("train")[rows], manifest.groups("train")
    samples = {
        name: Sample(features, labels, [groups[row] for row in rows])
        for name, features in _make_features(store, rows, params)
    }
    ranking = rank_backbones(samples, params.similarity, seed=params.seed)
    chosen = next(one for one in reversed(ranking) if one.better)
    return BackboneChoice(
        name=chosen.name, weights=named.weights, images=len(rows), ranking=ranking
    )


def _make_features(
    store: PixelStore, rows: Ints, params: Params
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield each candidate and its features of the clean views of some images."""
    machine = read_machine()
    configure_torch(machine, params.seed)
    clean = store.row_of(rows)
    for name in params.select.candidates:
        backbone = load_backbone(
            name, params.backbone.weights, image_px=store.info.image_px, seed=params.seed
        )
        module = PooledFeatures(backbone.model)
        engine = make_engine(module, backbone.input, machine, sample_pixels(store), rows=len(clean))
        made = []
        with progress(f"features of {name}", len(clean)) as meter:
            for pixels in store.batches(clean, BATCH_SIZE):
                made.append(engine(pixels)[0])
                meter.advance(len(pixels))
        yield name, np.concatenate(made)


def say_choice(choice: BackboneChoice) -> str:
    """Say in one sentence which backbone it is and why."""
    if not choice.ranking:
        return f"{choice.name}, as backbone.name says"
    shares = ", ".join(
        f"{one.name} {one.ridge_accuracy.value:.1%} [{one.ridge_accuracy.low:.1%}, "
        f"{one.ridge_accuracy.high:.1%}]"
        for one in choice.ranking
    )
    return (
        f"{choice.name}: no later candidate is better beyond doubt on {choice.images:,} training "
        f"images (ridge, without the image's group: {shares})"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Read what augment packed, name the backbone, write the choice."""
    what = "Name the backbone, or choose one of the candidates by their features"
    paths, params = read_arguments(Paths, "select", what, argv)
    manifest = read_manifest(paths.manifest)
    choice = select(manifest, PixelStore.open(paths.train), params)
    write_record(paths.choice, choice)
    log.info("%s", say_choice(choice))


if __name__ == "__main__":
    sys.exit(run_stage("select", main))
