"""Corrupt photographs more and more, show few classes of them, at two sizes: what distance says.

`PYTHONPATH=tests python -m bench.domains --help`; writes docs/benchmarks/domains.md.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from bench.frozen import table
from PIL import Image, ImageFilter

from tasks.artifacts.arrays import Features, Pixels
from tasks.artifacts.records import MmdResult
from tasks.backbones.catalogue import load_backbone
from tasks.backbones.engine import Engine, make_engine
from tasks.backbones.groups import PooledFeatures
from tasks.backbones.source_cards import SourceCard, find_cards, nearest_size
from tasks.params import Params
from tasks.params_file import load_params
from tasks.runtime.device import configure_torch
from tasks.runtime.machine import read_machine
from tasks.transferability.measure_ruler import read_set
from tasks.transferability.mmd import measure_mmd
from tasks.transferability.ruler import find_ruler

OUT = Path("docs/benchmarks/domains.md")
CARDS = Path("data/cards")
FEWEST = 20  # images of a class that is measured alone
INTRO = """\
*Distance* is the MMD² to the ImageNet images that fit best, with its 95 % interval; *narrowness* is
what all of them are farther. The domain follows from the distance and the marks of the ruler of
this size. Blur is a Gaussian of so many pixels, noise is normal with so many gray levels, and
*levels* are those of a gray picture. About {images} images a set.
"""
Corruption = Callable[[Pixels, int], Pixels]


def corruptions() -> Iterator[tuple[str, Corruption]]:
    """Yield each corruption with its name, weak ones first."""
    yield "none", lambda pixels, _: pixels
    for radius in (1, 2, 4, 8):
        yield f"blur {radius} px", _blur(radius)
    for deviation in (10, 25, 50, 100):
        yield f"noise {deviation}", _noise(deviation)
    for levels in (256, 16, 8, 4, 2):
        yield f"{levels} levels", _posterize(levels)


def _blur(radius: int) -> Corruption:
    return lambda pixels, _: np.asarray(
        Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius))
    )


def _noise(deviation: int) -> Corruption:
    def corrupt(pixels: Pixels, number: int) -> Pixels:
        drawn = np.random.default_rng([5, number]).normal(0, deviation, pixels.shape)
        return np.clip(pixels + drawn, 0, 255).astype(np.uint8)

    return corrupt


def _posterize(levels: int) -> Corruption:
    def corrupt(pixels: Pixels, _: int) -> Pixels:
        gray = np.asarray(Image.fromarray(pixels).convert("L"), dtype=np.float64)
        steps = np.round(gray / 255 * (levels - 1)) / (levels - 1)
        return np.repeat(np.round(255 * steps).astype(np.uint8)[..., None], 3, axis=2)

    return corrupt


def extract(engine: Engine, pixels: Sequence[Pixels], corrupt: Corruption) -> Features:
    """Features of corrupted images."""
    views = [np.ascontiguousarray(corrupt(one, number)) for number, one in enumerate(pixels)]
    batches = (np.stack(views[start : start + 32]) for start in range(0, len(views), 32))
    return np.concatenate([engine(batch)[0] for batch in batches])


def measure(card: SourceCard, features: Features, params: Params) -> MmdResult:
    """Measure as the similarity stage does."""
    groups = [str(number) for number in range(len(features))]
    return measure_mmd(
        card.features, features, groups, name="", params=params.similarity, seed=params.seed
    )


def measure_size(name: str, source: Path, px: int, images: int) -> Iterator[list[str]]:
    """Yield a row for each corruption and class of one set at one size."""
    params = load_params(Path("params.yaml"))
    augment = params.augment.model_copy(update={"image_px": px})
    params = params.model_copy(update={"augment": augment})
    machine = read_machine()
    configure_torch(machine, params.seed)
    backbone = load_backbone(
        params.backbone.name, params.backbone.weights, image_px=px, seed=params.seed
    )
    card = nearest_size(find_cards(CARDS, backbone.weights_sha256), px)
    ruler = find_ruler(CARDS, backbone.weights_sha256, px)
    if card is None or ruler is None or ruler.marks is None:
        raise SystemExit(f"no card and ruler with marks at {px} px in {CARDS}")
    known = read_set(source, params, images=images)
    pixels = list(known.pixels)
    engine = make_engine(
        PooledFeatures(backbone.model), backbone.input, machine, np.stack(pixels[:8])
    )
    clean = extract(engine, pixels, lambda one, _: one)
    labels = np.array(known.labels)
    sets = [(what, extract(engine, pixels, corrupt)) for what, corrupt in corruptions()]
    sets += [
        (f"only {label}", clean[labels == label])
        for label in sorted(set(known.labels))
        if np.sum(labels == label) >= FEWEST
    ]
    for what, features in sets:
        found = measure(card, features, params)
        best, marks = found.matched, ruler.marks
        domain = "similar" if best.value < marks.similar else "intermediate"
        domain = "far" if best.value > marks.far else domain
        yield [
            name, f"{px}", what, f"{best.value:.3f} [{best.low:.3f}, {best.high:.3f}]",
            f"{found.narrowness:.3f}", domain,
        ]  # fmt: skip


def main() -> None:
    """Measure all sets at all sizes, write the page."""
    parser = argparse.ArgumentParser(prog="python -m bench.domains", description=__doc__)
    parser.add_argument("data", nargs="+", type=Path, help="folders or csv of photographs")
    parser.add_argument("--px", nargs="+", type=int, default=[160, 224], help="sides, pixels")
    parser.add_argument("--images", type=int, default=300, help="of each set, at most")
    parser.add_argument("--out", type=Path, default=OUT, help="the page to write")
    options = parser.parse_args()
    words = [f"images/{path.name}" for path in options.data]
    words += ["--px", *map(str, options.px), "--images", str(options.images)]
    command = f"PYTHONPATH=tests python -m bench.domains {shlex.join(words)}"
    rows: list[list[str]] = []
    head = ["set", "px", "what", "distance", "narrowness", "domain"]
    for path in options.data:
        for px in options.px:
            for row in measure_size(path.name, path, px, options.images):
                rows.append(row)
                print(*row, file=sys.stderr, flush=True)  # noqa: T201
                intro = INTRO.format(images=options.images)
                page = ["# Domains", "", f"`{command}` wrote this page.", "", intro]
                options.out.write_text("\n".join([*page, table(head, rows), ""]))


if __name__ == "__main__":
    main()
