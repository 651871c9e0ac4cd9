"""Makes the ruler: measures data sets that readers know as the similarity stage measures new ones.

`python -m tasks.transferability.measure_ruler "letters=FOLDER" ...` writes data/cards/ruler.json.
"""

import argparse
import logging
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.artifacts.arrays import Features, Pixels
from tasks.artifacts.pixels import PixelStore, StoreWriter, store_info
from tasks.artifacts.records import KnownSet, write_record
from tasks.artifacts.tables import ManifestRow
from tasks.backbones.catalogue import Backbone, load_backbone
from tasks.backbones.engine import make_engine
from tasks.backbones.groups import PooledFeatures
from tasks.backbones.probe import Probe, choose_probe_images, measure_probe, sample_pixels
from tasks.backbones.source_cards import SourceCard, find_card
from tasks.errors import ArtifactError, DataError
from tasks.images.decoding.decode import read_clean_view
from tasks.images.listing.sources import list_images, resolve_root
from tasks.params import Params
from tasks.params_file import load_params
from tasks.runtime.device import configure_torch
from tasks.runtime.entry import run_stage
from tasks.runtime.machine import Machine, read_machine
from tasks.transferability.leave_one_out import estimate_transfer_gain
from tasks.transferability.mmd import measure_mmd
from tasks.transferability.ruler import Ruler
from tasks.transferability.sampling import Sample, choose_rows
from tasks.transferability.shift import layer_shift

log = logging.getLogger(__name__)

NOISE = 0x4E5A  # purpose of the random numbers drawn here
FEWEST_OF_A_CLASS = 2  # images; below, leaving one out leaves nothing to learn its class from


@dataclass(frozen=True, slots=True)
class KnownImages:
    """Pixels of some images, one uint8 (R, R, 3) at a time, and their labels; none for noise."""

    pixels: Iterator[Pixels]
    labels: Sequence[str]
    count: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What the backbone makes of a set: features float32 (n, D), and the probe."""

    features: Features
    probe: Probe


def read_set(source: Path, params: Params, *, images: int) -> KnownImages:
    """Choose images of a source by hash, each class by its share, and decode them.

    Args:
        source: Folder, csv or descriptor, as `ingest.source`.
        params: Their `augment` block says size and fit, as for new data.
        images: How many, at most.
    """
    listing = list_images(source)
    root = resolve_root(listing.origin)
    rows = [
        ManifestRow(item.path, item.label, "train", item.path, "", 0, 0, "")
        for item in listing.images
    ]
    chosen = [rows[row] for row in choose_rows(rows, images, seed=params.seed)]
    pixels = (
        read_clean_view(
            (root / row.path).read_bytes(),
            image_px=params.augment.image_px,
            fit=params.augment.fit,
            max_pixels=params.ingest.max_pixels,
        )
        for row in chosen
    )
    return KnownImages(pixels, [row.label for row in chosen], len(chosen))


def make_noise(params: Params, *, images: int) -> KnownImages:
    """Draw images whose values are uniform and independent."""
    rng = np.random.default_rng([params.seed, NOISE])
    side = params.augment.image_px
    pixels = (rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(images))
    return KnownImages(pixels, [], images)


def see(known: KnownImages, backbone: Backbone, params: Params, machine: Machine) -> Seen:
    """Run backbone and probe over a set, as the extract stage does over training images."""
    with tempfile.TemporaryDirectory() as folder:
        info = store_info(known.count, views=0, image_px=params.augment.image_px)
        with StoreWriter(Path(folder), info) as writer:
            for pixels in known.pixels:
                writer.append(pixels[None])
        store = PixelStore.open(Path(folder))
        engine = make_engine(
            PooledFeatures(backbone.model), backbone.input, machine, sample_pixels(store)
        )
        batches = store.batches(store.clean_rows(), params.extract.batch_size)
        features = np.concatenate([engine(batch)[0] for batch in batches])
        untrained = load_backbone(
            backbone.name, "random", image_px=params.augment.image_px, seed=params.seed
        )
        images = choose_probe_images(store, params.extract, params.seed)
        return Seen(features, measure_probe(backbone, untrained, images, machine))


def measure_set(
    name: str, known: KnownImages, seen: Seen, source: Features, params: Params
) -> KnownSet:
    """Measure one set against source features (m, D)."""
    mmd = measure_mmd(
        source,
        seen.features,
        [str(number) for number in range(len(seen.features))],
        name="",
        params=params.similarity,
        seed=params.seed,
    )
    shifts = [
        layer_shift(layer.mean, layer.var, layer.running_mean, layer.running_var)
        for layer in seen.probe.layers
    ]
    return KnownSet(
        name=name,
        images=len(seen.features),
        mmd=mmd.value,
        shift=float(np.mean(shifts)) if shifts else None,
        transfer_gain=_gain(known, seen, params),
    )


def _gain(known: KnownImages, seen: Seen, params: Params) -> float | None:
    """Transfer gain on the images of the probe; None where a class is too small to be learned."""
    if not known.labels:
        return None
    rows = seen.probe.rows
    _, labels, sizes = np.unique(
        np.array(known.labels)[rows], return_inverse=True, return_counts=True
    )
    if sizes.min() < FEWEST_OF_A_CLASS:
        return None
    sample = Sample(seen.features[rows], labels, [str(row) for row in rows])
    found = estimate_transfer_gain(
        sample, seen.probe.random_features, params=params.similarity, seed=params.seed
    )
    return found.gain.value


def halve(seen: Seen) -> tuple[Seen, Features]:
    """Split one set into a target, every second image, and the features of the others as source.

    The batch-norm shift stays that of all its images.
    """
    return Seen(seen.features[1::2], seen.probe), seen.features[::2]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every named set and write the ruler."""
    options = _parse(argv)
    params = load_params(options.params)
    machine = read_machine()
    configure_torch(machine, params.seed)
    backbone = load_backbone(
        params.backbone.name,
        params.backbone.weights,
        image_px=params.augment.image_px,
        seed=params.seed,
    )
    card = find_card(options.cards, backbone.weights_sha256)
    if card is None:
        raise ArtifactError(
            f"{options.cards}: holds no source card for these weights of {backbone.name}; make one "
            "with `python -m tasks.backbones.cards`"
        )
    sets = list(_measure_all(options, params, backbone, card, machine))
    ruler = Ruler(
        backbone=backbone.name,
        weights_sha256=backbone.weights_sha256,
        image_px=params.augment.image_px,
        source=card.name,
        provenance=_command(options),
        sets=sorted(sets, key=lambda known: (known.mmd, known.name)),
    )
    write_record(options.out, ruler)
    log.info("%s: %d sets from %s", options.out, len(sets), ", ".join(s.name for s in ruler.sets))


def _measure_all(
    options: argparse.Namespace,
    params: Params,
    backbone: Backbone,
    card: SourceCard,
    machine: Machine,
) -> Iterator[KnownSet]:
    for name, source in map(_named, options.sets):
        known = read_set(source, params, images=options.images)
        yield measure_set(name, known, see(known, backbone, params, machine), card.features, params)
    for name, source in map(_named, options.halved):
        known = read_set(source, params, images=2 * options.images)
        target, others = halve(see(known, backbone, params, machine))
        yield measure_set(name, KnownImages(iter(()), [], known.count), target, others, params)
    if options.noise:
        known = make_noise(params, images=options.images)
        seen = see(known, backbone, params, machine)
        yield measure_set(options.noise, known, seen, card.features, params)


def _named(argument: str) -> tuple[str, Path]:
    name, separator, source = argument.partition("=")
    if not (name and separator and source):
        raise DataError(f"{argument!r}: expected NAME=SOURCE, such as 'letters=data/letters'")
    return name, Path(source)


def _command(options: argparse.Namespace) -> str:
    """Give the command that makes the ruler again, without paths."""
    sets = [f"{_named(argument)[0]}=SOURCE" for argument in options.sets]
    halved = [f"{_named(argument)[0]}=SOURCE" for argument in options.halved]
    words = ["python", "-m", "tasks.transferability.measure_ruler", *sets]
    words += [word for name in halved for word in ("--halved", name)]
    words += ["--noise", options.noise] if options.noise else []
    return shlex.join([*words, "--images", str(options.images)])


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tasks.transferability.measure_ruler", description=__doc__
    )
    parser.add_argument("sets", nargs="*", metavar="NAME=SOURCE", help="folder, csv or descriptor")
    parser.add_argument(
        "--halved",
        action="append",
        default=[],
        metavar="NAME=SOURCE",
        help="images like the card's: one half is measured against the other",
    )
    parser.add_argument("--noise", default="", metavar="NAME", help="also measure uniform noise")
    parser.add_argument("--images", type=int, default=500, help="images of each set, at most")
    parser.add_argument("--cards", type=Path, default=Path("data/cards"), help="folder of cards")
    parser.add_argument("--out", type=Path, default=Path("data/cards/ruler.json"), help="written")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the parameters")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_stage("measure_ruler", main))
