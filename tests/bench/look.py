"""Look at known sets as the similarity stage does: `PYTHONPATH=tests python -m bench.look --help`.

Writes docs/benchmarks/look.md: how often the rule of even areas is right, where textures lie, what
the head of the pretraining sees.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench.frozen import table

from tasks.artifacts.arrays import Floats, Pixels
from tasks.artifacts.records import ClassSeen, Look
from tasks.backbones.catalogue import Backbone, load_backbone
from tasks.backbones.engine import make_engine
from tasks.backbones.groups import PooledFeatures
from tasks.backbones.probe import find_source_head
from tasks.backbones.source_cards import find_cards, nearest_size
from tasks.images.texture import GRAY, MOSTLY_EVEN, measure_textures
from tasks.params import Params
from tasks.params_file import load_params
from tasks.runtime.device import configure_torch
from tasks.runtime.machine import read_machine
from tasks.transferability.look import MOST, Pictured, look_at
from tasks.transferability.measure_ruler import read_set
from tasks.transferability.sampling import Sample

OUT, CARDS = Path("docs/benchmarks/look.md"), Path("data/cards")
TOLD = ("slope", "entropy", "sharpness", "chroma")  # in the order of the statistics
SHOWN, FEWEST = 3, 5  # classes of a set, the largest; images of a class
INTRO = """\
# A look at known sets

`{command}` wrote this page.

At most {images} images a set, each class by its share, squashed to the size.

## Photographs, or drawn and cut out

Where at least {even:.0%} of the neighboring pixels of a picture are the same it counts as mostly
even, as drawings, flat renderings and cut-outs are. The threshold was set after a look at the sets
in italics, so their figures flatter; the others had no part in it (emoji: glyphs of Noto Color
Emoji, 128 px, on white; fresh photographs there were none). Right are, in %, sets and both kinds
weighed alike:

{accuracies}

A set as a whole looks drawn where at least half of its pictures are mostly even: {verdict}.
*Gray*: chroma below {gray:g} of 255. Both errors happen to what is in none of these sets.
Renderings with shading pass for photographs, and so do flat drawings with noise of a single step of
255. What masks or margins of one color fill by half passes for drawn: photographs within a circle,
on black, clipped. What padding adds is left out.

"""
TEXTURES = """

## Textures

Median and range of 90 % of the images; in brackets how many lie in the range of 90 % of the source
card's images at this size, in % (90: as the source).

"""
SEEN = """

## What the head of the pretraining sees

{backbone} at {px} px, in the {shown} largest classes of each set with at least {fewest} images. On
the images of its source card: {own}.

"""


@dataclass(frozen=True)
class Seen:
    """One set at one size, and what is known of it."""

    name: str
    drawn: bool
    tried: bool  # whether the threshold was set without it
    px: int
    textures: Floats
    look: Look


def see(source: Path, backbone: Backbone, params: Params, images: int) -> tuple[Floats, Look]:
    """Look at a set as the stage does."""
    px = backbone.input.image_px
    params = params.model_copy(
        update={"augment": params.augment.model_copy(update={"image_px": px, "fit": "squash"})}
    )
    known = read_set(source, params, images=images)
    pixels: list[Pixels] = list(known.pixels)
    engine = make_engine(
        PooledFeatures(backbone.model), backbone.input, read_machine(), np.stack(pixels[:8])
    )
    batches = (np.stack(pixels[start : start + 32]) for start in range(0, len(pixels), 32))
    features = np.concatenate([engine(batch)[0] for batch in batches])
    names, labels = np.unique([row.label for row in known.rows], return_inverse=True)
    textures = measure_textures(pixels)
    sample = Sample(features, labels.astype(np.int64), [row.group for row in known.rows])
    card = nearest_size(find_cards(CARDS, backbone.weights_sha256), px)
    look = look_at(
        Pictured(textures, 0, len(names), len(names), 0), sample, [str(name) for name in names],
        card=card, head=find_source_head(backbone),
    )  # fmt: skip
    return textures, look


def accuracy(sets: Sequence[Seen]) -> str:
    """Balanced accuracy of the rule over all pictures of some sets, every set weighed alike."""
    rights = [float(np.mean((one.textures[:, -1] >= MOSTLY_EVEN) == one.drawn)) for one in sets]
    both = list(zip(sets, rights, strict=True))
    kinds = [[right for one, right in both if one.drawn == drawn] for drawn in (False, True)]
    means = [np.mean(kind) for kind in kinds if kind]
    return f"{100 * np.mean(means):.1f}" if means else "none"


def even_rows(sets: Sequence[Seen]) -> list[list[str]]:
    """The lines of the first table."""
    return [
        [
            one.name if one.tried else f"*{one.name}*",
            "drawn, cut out" if one.drawn else "photographs",
            f"{one.px}", f"{len(one.textures)}", f"{100 * one.look.gray:.0f}",
            f"{100 * one.look.even:.1f}",
        ]
        for one in sets
    ]  # fmt: skip


def texture_rows(sets: Sequence[Seen]) -> list[list[str]]:
    """The lines of the second table."""
    rows = []
    for one in sets:
        found = {texture.name: texture for texture in one.look.texture}
        cells = [
            f"{t.median:.2f}, {t.low:.2f} to {t.high:.2f} ({100 * (t.inside or 0):.0f})"
            for t in (found[name] for name in TOLD)
        ]
        rows.append([one.name, f"{one.px}", *cells])
    return rows


def _say(one: ClassSeen) -> str:
    return ", ".join(f"{found.name} {found.share:.0%}" for found in one.seen)


def seen_rows(sets: Sequence[Seen]) -> list[list[str]]:
    """The lines of the third table."""
    rows = []
    for one in sets:
        semantics = one.look.semantics
        if semantics is None:
            raise SystemExit("the backbone has no head with known classes")
        largest = sorted(semantics.classes, key=lambda found: -found.images)[:SHOWN]
        for found in (found for found in largest if found.images >= FEWEST):
            rows.append([one.name, found.name, f"{found.images}", _say(found), f"{found.sure:.2f}"])
    return rows


def _say_own(one: Seen) -> str:
    seen = one.look.semantics
    right, sure = (seen.source_right, seen.source_sure) if seen else (None, None)
    return f"at {one.px} px {100 * (right or 0):.0f} % are named rightly, median {sure or 0:.2f}"


def _right(sets: Sequence[Seen]) -> str:
    return f"{sum((one.look.even >= MOST) == one.drawn for one in sets)} of {len(sets)}"


def write(out: Path, sets: Sequence[Seen], command: str, backbone: str, images: int) -> None:
    """Write the page."""
    sizes = sorted({one.px for one in sets})
    tried = [one for one in sets if one.tried]
    accuracies = "\n".join(
        f"- at {px} px {accuracy([one for one in sets if one.px == px])}; of the sets that had no "
        f"part {accuracy([one for one in tried if one.px == px])}"
        for px in sizes
    )
    first = [one for one in sets if one.px == sizes[-1]]
    own = "; ".join(_say_own(one) for one in sets if one.name == sets[0].name)
    text = INTRO.format(
        command=command, images=images, even=MOSTLY_EVEN, gray=GRAY, accuracies=accuracies,
        verdict=f"right for {_right([one for one in sets if not one.tried])} sets and sizes that "
        f"set the threshold, and for {_right(tried)} that had no part",
    )  # fmt: skip
    text += table(["set", "is", "px", "images", "gray, %", "mostly even, %"], even_rows(sets))
    text += TEXTURES + table(["set", "px", *TOLD], texture_rows(sets))
    text += SEEN.format(backbone=backbone, px=sizes[-1], shown=SHOWN, fewest=FEWEST, own=own)
    text += table(["set", "class", "images", "seen as", "median top probability"], seen_rows(first))
    out.write_text(text + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Look at every set at every size and write the page."""
    parser = argparse.ArgumentParser(prog="python -m bench.look", description=__doc__)
    parser.add_argument("--photographs", nargs="+", type=Path, required=True, help="sets")
    parser.add_argument("--drawn", nargs="+", type=Path, required=True, help="drawn or cut out")
    parser.add_argument("--set-by", nargs="+", default=[], help="names that set the threshold")
    parser.add_argument("--px", nargs="+", type=int, default=[96, 224], help="sides, pixels")
    parser.add_argument("--images", type=int, default=300, help="of each set, at most")
    parser.add_argument("--out", type=Path, default=OUT, help="the page to write")
    options = parser.parse_args(argv)
    params = load_params(Path("params.yaml"))
    configure_torch(read_machine(), params.seed)
    name, weights = params.backbone.name, params.backbone.weights
    sets = []
    for drawn, sources in ((False, options.photographs), (True, options.drawn)):
        for source in sources:
            for px in options.px:
                backbone = load_backbone(name, weights, image_px=px, seed=params.seed)
                textures, look = see(source, backbone, params, options.images)
                tried = source.stem not in options.set_by
                sets.append(Seen(source.stem, drawn, tried, px, textures, look))
                print(source.stem, px, look.words, file=sys.stderr, flush=True)  # noqa: T201
    words = ["--photographs", *(path.name for path in options.photographs)]
    words += ["--drawn", *(path.name for path in options.drawn), "--set-by", *options.set_by]
    words += ["--px", *map(str, options.px), "--images", str(options.images)]
    command = f"PYTHONPATH=tests python -m bench.look {shlex.join(words)}"
    write(options.out, sets, command, name, options.images)


if __name__ == "__main__":
    main()
