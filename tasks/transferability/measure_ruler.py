"""Makes rulers: measures data sets that readers know as the similarity stage measures new ones.

`python -m tasks.transferability.measure_ruler --far "letters=FOLDER" ...` writes a ruler for each
source card of the backbone. Sets that people call similar, intermediate or far set its marks.
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
from tasks.artifacts.records import DOMAINS, Domain, KnownSet, write_record
from tasks.artifacts.sampling import choose_rows
from tasks.artifacts.tables import ManifestRow
from tasks.backbones.catalogue import Backbone, load_backbone
from tasks.backbones.engine import make_engine
from tasks.backbones.groups import PooledFeatures
from tasks.backbones.probe import sample_pixels
from tasks.backbones.source_cards import SourceCard, find_cards, name_by_size
from tasks.errors import ArtifactError, DataError
from tasks.images.listing.sources import list_images, resolve_root
from tasks.images.views import read_view
from tasks.params import Params
from tasks.params_file import load_params
from tasks.runtime.device import configure_torch
from tasks.runtime.entry import run_stage
from tasks.runtime.machine import Machine, read_machine
from tasks.transferability.mmd import measure_mmd
from tasks.transferability.ruler import Ruler, find_marks

log = logging.getLogger(__name__)

NOISE = 0x4E5A  # purpose of the random numbers drawn here


@dataclass(frozen=True, slots=True)
class KnownImages:
    """Pixels of some images, one uint8 (R, R, 3) at a time, and what is listed of each."""

    pixels: Iterator[Pixels]
    rows: Sequence[ManifestRow]


@dataclass(frozen=True, slots=True)
class Bench:
    """What a ruler is measured with: a backbone at the size of its card."""

    params: Params
    machine: Machine
    backbone: Backbone
    card: SourceCard


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
        read_view(
            (root / row.path).read_bytes(),
            image_px=params.augment.image_px,
            fit=params.augment.fit,
            max_pixels=params.ingest.max_pixels,
        ).pixels
        for row in chosen
    )
    return KnownImages(pixels, chosen)


def make_noise(params: Params, *, images: int) -> KnownImages:
    """Draw images whose values are uniform and independent."""
    rng = np.random.default_rng([params.seed, NOISE])
    side = params.augment.image_px
    pixels = (rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(images))
    rows = [
        ManifestRow(str(number), "noise", "train", str(number), "", side, side, "RGB")
        for number in range(images)
    ]
    return KnownImages(pixels, rows)


def see(known: KnownImages, bench: Bench) -> Features:
    """Give the features of a set, float32 (n, D), as the extract stage does."""
    params, backbone, machine = bench.params, bench.backbone, bench.machine
    with tempfile.TemporaryDirectory() as folder:
        info = store_info(len(known.rows), views=0, image_px=params.augment.image_px)
        with StoreWriter(Path(folder), info) as writer:
            for pixels in known.pixels:
                writer.append(pixels[None])
        store = PixelStore.open(Path(folder))
        engine = make_engine(
            PooledFeatures(backbone.model), backbone.input, machine, sample_pixels(store)
        )
        batches = store.batches(store.clean_rows(), params.extract.batch_size)
        return np.concatenate([engine(batch)[0] for batch in batches])


def measure_set(
    name: str, seen: Features, source: Features, params: Params, *, domain: Domain | None
) -> KnownSet:
    """Measure one set against the source; `seen` and `source` are features, float32 (n, D)."""
    mmd = measure_mmd(
        source,
        seen,
        [str(number) for number in range(len(seen))],
        name="",
        params=params.similarity,
        seed=params.seed,
    )
    return KnownSet(
        name=name,
        images=len(seen),
        mmd=mmd.value,
        distance=mmd.matched.value,
        domain=domain,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every named set at the size of every card and write the rulers."""
    options = _parse(argv)
    params = load_params(options.params)
    machine = read_machine()
    configure_torch(machine, params.seed)
    name = options.backbone or params.backbone.name
    weights = options.weights or params.backbone.weights
    backbone = load_backbone(name, weights, image_px=params.augment.image_px, seed=params.seed)
    cards = find_cards(options.cards, backbone.weights_sha256)
    if not cards:
        raise ArtifactError(
            f"{options.cards}: holds no source card for these weights of {backbone.name}; make one "
            "with `python -m tasks.backbones.cards`"
        )
    for card in cards:
        sized = _at_size(params, card.image_px)
        backbone = load_backbone(name, weights, image_px=card.image_px, seed=params.seed)
        ruler = make_ruler(options, Bench(sized, machine, backbone, card))
        out = name_by_size(options.out, card.image_px) if len(cards) > 1 else options.out
        write_record(out, ruler)
        log.info("%s: %d sets, marks %s", out, len(ruler.sets), ruler.marks)


def make_ruler(options: argparse.Namespace, bench: Bench) -> Ruler:
    """Measure all sets that the command names; `options` are its arguments."""
    sets = list(_measure_all(options, bench))
    return Ruler(
        backbone=bench.backbone.name,
        weights_sha256=bench.backbone.weights_sha256,
        image_px=bench.card.image_px,
        source=bench.card.name,
        provenance=_command(options, bench.backbone),
        sets=sorted(sets, key=lambda known: (known.distance, known.name)),
        marks=find_marks(sets),
    )


def _at_size(params: Params, image_px: int) -> Params:
    augment = params.augment.model_copy(update={"image_px": image_px})
    return params.model_copy(update={"augment": augment})


def _measure_all(options: argparse.Namespace, bench: Bench) -> Iterator[KnownSet]:
    source, params = bench.card.features, bench.params
    for domain, argument in _named_sets(options):
        name, folder = _named(argument)
        known = read_set(folder, params, images=options.images)
        yield measure_set(name, see(known, bench), source, params, domain=domain)
    if options.noise:
        seen = see(make_noise(params, images=options.images), bench)
        yield measure_set(options.noise, seen, source, params, domain="far")
    name = f"other images of {bench.card.name}"
    yield measure_set(name, source[1::2], source[::2], params, domain="similar")


def _named_sets(options: argparse.Namespace) -> Iterator[tuple[Domain | None, str]]:
    """Yield what people call each named set, and its argument."""
    yield from ((None, argument) for argument in options.sets)
    for domain in DOMAINS:
        yield from ((domain, argument) for argument in getattr(options, domain))


def _named(argument: str) -> tuple[str, Path]:
    name, separator, source = argument.partition("=")
    if not (name and separator and source):
        raise DataError(f"{argument!r}: expected NAME=SOURCE, such as 'letters=data/letters'")
    return name, Path(source)


def _command(options: argparse.Namespace, backbone: Backbone) -> str:
    """Give the command that makes the ruler again, without paths."""
    words = ["python", "-m", "tasks.transferability.measure_ruler"]
    for domain, argument in _named_sets(options):
        flag = [f"--{domain}"] if domain else []
        words += [*flag, f"{_named(argument)[0]}=SOURCE"]
    words += ["--noise", options.noise] if options.noise else []
    words += ["--backbone", backbone.name, "--weights", Path(backbone.weights).name]
    return shlex.join([*words, "--images", str(options.images)])


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tasks.transferability.measure_ruler", description=__doc__
    )
    parser.add_argument("sets", nargs="*", metavar="NAME=SOURCE", help="folder, csv or descriptor")
    for domain in DOMAINS:
        parser.add_argument(
            f"--{domain}",
            action="append",
            default=[],
            metavar="NAME=SOURCE",
            help=f"the same, of a set that people call {domain}",
        )
    parser.add_argument("--noise", default="", metavar="NAME", help="also measure uniform noise")
    parser.add_argument("--images", type=int, default=500, help="images of each set, at most")
    parser.add_argument("--backbone", help="timm name; else that of the parameters")
    parser.add_argument("--weights", help="as backbone.weights; else that of the parameters")
    parser.add_argument("--cards", type=Path, default=Path("data/cards"), help="folder of cards")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("data/cards/ruler.json"),
        help="written; where there are cards of several sizes, with the size added to its name",
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the parameters")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_stage("measure_ruler", main, timed=False))
