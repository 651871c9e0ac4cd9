"""Test heatmaps of answers: `PYTHONPATH=tests python -m bench.explanations --help`.

Writes docs/benchmarks/explanations.md.
"""

import argparse
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.frozen import table
from bench.planted import read_images
from bench.scratch import ROOT
from PIL import Image, ImageDraw
from scipy.stats import spearmanr
from torch import nn

from tasks.artifacts.arrays import Bools, Floats, Ints, Pixels
from tasks.artifacts.records import Estimate
from tasks.backbones.catalogue import load_backbone
from tasks.backbones.engine import make_engine
from tasks.backbones.groups import layer_groups, parameter_names
from tasks.delivery.explanations import GradCam, Heat, enlarge
from tasks.heads.features import Labeled
from tasks.heads.registry import apply_head, find_head
from tasks.judging.statistics import accuracy_interval, paired_interval
from tasks.params_file import load_params
from tasks.runtime.device import configure_torch
from tasks.runtime.machine import read_machine

OUT = Path("docs/benchmarks/explanations.md")
NAME, SEED, BATCH = "tf_efficientnet_lite0", 17, 16
SHAPES = ("circle", "square", "triangle")
SIDES = (0.25, 0.4)  # of a shape, as shares of the image's side
CELL = 32  # px of a place of the backbone
GRAY, SHARE, BLOCKS = 127, 0.2, 10  # what is grayed, and blocks of the image a side
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Sample:
    """Images of one size, uint8 (N, R, R, 3), with labels and boxes (N, 4), left to bottom."""

    pixels: Pixels
    labels: Ints
    boxes: Ints

    def take(self, rows: slice) -> "Sample":
        """Some of the images."""
        return Sample(self.pixels[rows], self.labels[rows], self.boxes[rows])

    def labeled(self, features: Floats) -> Labeled:
        """Their features as heads read them; every image is a group."""
        groups = [str(number) for number in range(len(self.labels))]
        return Labeled(features[:, None].astype(np.float32), self.labels, groups)


# images ------------------------------------------------------------------------------------------


def draw_background(rng: np.random.Generator, px: int) -> Image.Image:
    """Draw a texture: noise of four grains, each of its own strength."""
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).resize(
                (px, px), Image.Resampling.BICUBIC
            ),
            np.float64,
        )
        * rng.uniform(0.1, 1)
        for side in (3, 8, 20, px)
    ]
    total = np.sum(layers, axis=0)
    scaled = (total - total.min()) * (255 / np.ptp(total))
    return Image.fromarray(scaled.astype(np.uint8))


def draw_shape(label: int, rng: np.random.Generator, px: int) -> tuple[Pixels, Ints]:
    """Draw a shape of any color, size and place; give its box too."""
    side = int(rng.uniform(*SIDES) * px)
    left, top = (int(start) for start in rng.integers(0, px - side + 1, 2))
    mask = Image.new("L", (2 * px, 2 * px))
    pen, (x, y, size) = ImageDraw.Draw(mask), (2 * left, 2 * top, 2 * side)
    inset = 0.06 * size  # so that a square has about the area of a circle
    if SHAPES[label] == "circle":
        pen.ellipse((x, y, x + size, y + size), fill=255)
    elif SHAPES[label] == "square":
        pen.rectangle((x + inset, y + inset, x + size - inset, y + size - inset), fill=255)
    else:
        pen.polygon([(x + size / 2, y), (x, y + size), (x + size, y + size)], fill=255)
    color = tuple(int(value) for value in rng.integers(0, 256, 3))
    image = draw_background(rng, px)
    image.paste(Image.new("RGB", (px, px), color), mask=mask.resize((px, px)))
    return np.asarray(image), np.array([left, top, left + side, top + side])


def draw_shapes(count: int, px: int) -> Sample:
    """Draw shapes in turn."""
    rng = np.random.default_rng([SEED, px])
    drawn = [draw_shape(number % len(SHAPES), rng, px) for number in range(count)]
    labels = np.arange(count) % len(SHAPES)
    return Sample(np.stack([one for one, _ in drawn]), labels, np.stack([box for _, box in drawn]))


def read_set(source: Path, count: int, px: int) -> Sample:
    """Read a set of images in random order, squashed; nothing in them has a known place."""
    found = read_images(source, count, SEED)
    order = np.random.default_rng(SEED).permutation(len(found.images))
    size, method = (px, px), Image.Resampling.BICUBIC
    pixels = np.stack([np.asarray(found.images[row].resize(size, method)) for row in order])
    return Sample(pixels, found.labels[order], np.zeros((len(order), 4), np.int64))


# model -------------------------------------------------------------------------------------------


class WithoutBlocks(nn.Module):
    """A timm model whose last feature map is all that can be seen of it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Give the map."""
        return self.model.forward_features(images)

    def forward_head(self, places: torch.Tensor, *, pre_logits: bool) -> torch.Tensor:
        """Give the pooled features."""
        return self.model.forward_head(places, pre_logits=pre_logits)


PLACES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "input of the last block (used)": lambda model: model,
    "last feature map": WithoutBlocks,
}


class Subject:
    """The packaged backbone with a head that is fitted to half of a sample; the rest is tested."""

    def __init__(self, sample: Sample, tested: int) -> None:
        px, machine = sample.pixels.shape[1], read_machine()
        configure_torch(machine, SEED)
        loaded = load_backbone(NAME, "packaged", image_px=px, seed=SEED)
        self.backbone: Any = loaded.model
        self.backbone.reset_classifier(0)
        self.spec = loaded.input
        self._engine = make_engine(self.backbone, self.spec, machine, sample.pixels[:BATCH])
        val = (len(sample.labels) - tested) // 4
        train = sample.take(slice(val, len(sample.labels) - tested))
        chosen = sample.take(slice(0, val))
        self.test = sample.take(slice(len(sample.labels) - tested, None))
        params = load_params(ROOT / "params.yaml").baseline
        fitted = find_head("linear").train(
            train.labeled(self._features(train.pixels)),
            chosen.labeled(self._features(chosen.pixels)),
            params,
            classes=int(sample.labels.max()) + 1,
            seed=SEED,
        )
        self.head = fitted.chosen.module
        self.answers = self.probabilities(self.test.pixels).argmax(axis=1)
        self.accuracy = float(np.mean(self.answers == self.test.labels))

    def _features(self, pixels: Pixels) -> Floats:
        return np.concatenate([self._engine(batch)[0] for batch in batches(pixels)])

    def probabilities(self, pixels: Pixels) -> Floats:
        """Give the softmax of the logits, not calibrated."""
        logits = torch.from_numpy(apply_head(self.head, self._features(pixels)))
        return logits.softmax(dim=1).numpy().astype(np.float64)

    def evidence(self, backbone: nn.Module, head: nn.Module) -> Heat:
        """Give the maps of the answers to the test images, of these or of changed weights."""
        cam = GradCam(backbone, head, self.spec, CPU)
        pairs = zip(batches(self.test.pixels), batches(self.answers), strict=True)
        return np.concatenate([cam.evidence(some, asked) for some, asked in pairs])


def batches(rows: Any) -> Iterator[Any]:
    """Cut rows into batches."""
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]


# pointing ----------------------------------------------------------------------------------------


def hits(maps: Heat, boxes: Ints, px: int) -> Bools:
    """Whether the middle of the place with most evidence lies in the box."""
    side = maps.shape[1]
    rows, columns = np.divmod(maps.reshape(len(maps), -1).argmax(axis=1), side)
    return inside((columns + 0.5) * px / side, (rows + 0.5) * px / side, boxes)


def inside(x: Floats, y: Floats, boxes: Ints) -> Bools:
    """Whether points lie in boxes."""
    left, top, right, bottom = boxes.T
    return (x >= left) & (x < right) & (y >= top) & (y < bottom)


def pointing_rows(count: int, tested: int, px: int) -> Iterator[list[str]]:
    """Point at drawn shapes, a row a kind of map."""
    subject = Subject(draw_shapes(count, px), tested)
    boxes = subject.test.boxes
    area = float(np.mean((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])) / px**2)
    middle = inside(np.full(tested, px / 2), np.full(tested, px / 2), boxes)
    for name, view in PLACES.items():
        maps = subject.evidence(view(subject.backbone), subject.head)
        yield [
            str(px),
            f"{100 * subject.accuracy:.0f}",
            name,
            f"{maps.shape[1]} x {maps.shape[1]}",
            say_share(hits(maps, boxes, px)),
            f"{100 * area:.0f}",
            say_share(middle),
            f"{100 * np.mean(maps.max(axis=(1, 2)) <= 0):.0f}",
        ]


def say_share(some: Bools) -> str:
    """Say a share with its interval, in percent."""
    groups = [str(number) for number in range(len(some))]
    found = accuracy_interval(some, groups, confidence=0.95, resamples=1000, seed=SEED)
    return say(found)


def say(found: Estimate) -> str:
    """Say a number with its interval, times 100."""
    assert found.low is not None
    assert found.high is not None
    return f"{100 * found.value:.0f} [{100 * found.low:.0f}, {100 * found.high:.0f}]"


# randomized weights ------------------------------------------------------------------------------


def randomized(subject: Subject) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Randomize the weights from the top down, one layer group more each time."""
    torch.manual_seed(SEED)
    head = nn.Linear(subject.head.in_features, subject.head.out_features)  # type: ignore[arg-type]
    px = subject.test.pixels.shape[1]
    random = load_backbone(NAME, "random", image_px=px, seed=SEED).model.state_dict()
    backbone = copy.deepcopy(subject.backbone)
    yield "head", backbone, head
    groups = zip(layer_groups(backbone), parameter_names(backbone), strict=True)
    for group, names in reversed(list(groups)):
        state = backbone.state_dict()
        backbone.load_state_dict(state | {name: random[name] for name in names})
        yield f"and {group.name}", backbone, head


def correlations(maps: Heat, others: Heat) -> Floats:
    """Rank correlation of shown maps; 0 where one of them is the same everywhere."""
    pairs = zip(np.maximum(maps, 0), np.maximum(others, 0), strict=True)
    return np.array(
        [
            spearmanr(one.ravel(), other.ravel()).statistic if np.ptp(one) and np.ptp(other) else 0
            for one, other in pairs
        ]
    )


def sanity_rows(subjects: dict[str, Subject]) -> list[list[str]]:
    """Correlate the maps of randomized networks with those of the true one."""
    columns = []
    for subject in subjects.values():
        true = subject.evidence(subject.backbone, subject.head)
        cells = {"another image, true weights": correlations(true, np.roll(true, 1, axis=0))}
        for name, backbone, head in randomized(subject):
            cells[name] = correlations(true, subject.evidence(backbone, head))
        columns.append({name: say_mean(values) for name, values in cells.items()})
    return [[name, *(column[name] for column in columns)] for name in columns[0]]


def say_mean(values: Floats) -> str:
    """Say a mean with its interval, times 100."""
    groups = [str(number) for number in range(len(values))]
    return say(paired_interval(values, groups, confidence=0.95, resamples=1000, seed=SEED))


# deletion ----------------------------------------------------------------------------------------


def extremes(maps: Heat, px: int, *, most: bool) -> Bools:
    """Give the pixels of most, or of least, evidence: bool (N, R, R)."""
    large = np.stack([enlarge(one if most else -one, px) for one in maps]).reshape(len(maps), -1)
    rank = large.argsort(axis=1).argsort(axis=1)
    return (rank >= (1 - SHARE) * px * px).reshape(len(maps), px, px)


def random_blocks(count: int, px: int) -> Bools:
    """Draw blocks of the same area: bool (N, R, R)."""
    rng = np.random.default_rng(SEED)
    drawn = rng.permuted(np.tile(np.arange(BLOCKS**2), (count, 1)), axis=1) < SHARE * BLOCKS**2
    at = np.arange(px) * BLOCKS // px
    return drawn.reshape(count, BLOCKS, BLOCKS)[:, at][:, :, at]


def deletion_rows(name: str, subject: Subject) -> Iterator[list[str]]:
    """Gray parts of the test images and measure the confidence in the answer that is lost."""
    pixels, everyone = subject.test.pixels, np.arange(len(subject.answers))
    px = pixels.shape[1]
    before = subject.probabilities(pixels)[everyone, subject.answers]

    def lose(masks: Bools) -> Floats:
        gray = np.where(masks[..., None], np.uint8(GRAY), pixels)
        return before - subject.probabilities(gray)[everyone, subject.answers]

    blocks = lose(random_blocks(len(pixels), px))
    for kind, view in PLACES.items():
        maps = subject.evidence(view(subject.backbone), subject.head)
        top = extremes(maps, px, most=True)
        lost, least = lose(top), lose(extremes(maps, px, most=False))
        strange = lose(np.roll(top, 1, axis=0))
        cells = [lost, blocks, strange, least, lost - blocks, lost - strange]
        accuracy = f"{100 * subject.accuracy:.0f}"
        yield [name, accuracy, kind, *(say_mean(one) for one in cells)]


# page --------------------------------------------------------------------------------------------

POINTING = ["px", "accuracy, %", "map", "places", "hits", "box", "middle", "empty"]
DELETION = ["set", "accuracy, %", "map", "most", "blocks", "another's", "least"]
DELETION += ["most - blocks", "most - another's"]
PAGE = """\
# Heatmaps of answers

`{command}` wrote this page.

Can the [heatmaps](../predict.md#why-this-answer) be trusted? {name}, frozen, with a
linear head as `baseline` fits it, is asked on images that the head did not see; the maps speak for
its answers. Intervals are 95 %.

## Pointing at a known place

Circles, squares and triangles of any color, {low:.0%} to {high:.0%} of the side large, lie anywhere
on textures. *Hits*: the middle of the place with most evidence lies in the box around the shape,
in % of {tested} images. *Box*: its share of the area, what a blind guess hits. *Middle*: what
pointing at the middle of the image hits. *Empty*: maps in which nothing speaks for the answer, in
%.

{pointing}

Grad-CAM as published takes the last feature map. In this network it fails on small images: at
128 px it points no better than the middle of the image. So the input of the last block is used
wherever a network has `blocks`, and the last map in others. A place is {cell} px wide here,
whatever the size of the image: maps of small images are coarse, and point worse.

## Maps of randomized networks

A map that stays when the weights are replaced by random ones would show edges of the image, not
what was learned (Adebayo et al. 2018, 1810.03292). From the top down, one layer group more a row;
Spearman's correlation with the map of the true network, in hundredths, means over {sane} images.
The first row is what maps of two images have in common: what depends on the place alone.

{sanity}

## Graying what the map marks

Photographs have no known place. Of {tested} images, {share:.0%} of the pixels were painted gray:
the part of most evidence, random blocks, the part that the map of *another* image marks (of the
same form, and with the same liking for some places), and the part of least evidence. The figures
are the confidence in the answer that is lost, in points; the last two columns are differences on
the same images. {px} px; about {images} images a set. Blocks cut into more of the picture than one
patch of the same area, and gray itself is strange to the network: so they cost much too.

{deletion}

What this does not show: that the network is right to look there, or that it looks at nothing else.
Fine-tuned weights and other networks were not measured here; of a ResNet, a ConvNeXt, a vision
transformer and a Swin with random weights the tests know that a square in a corner, which the head
tells, lights that corner.
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.explanations", description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders or csv")
    parser.add_argument("--images", type=int, default=900, help="of each set, at most")
    parser.add_argument("--tested", type=int, default=240, help="of these")
    parser.add_argument("--sane", type=int, default=60, help="images for randomized networks")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 160, 224], help="of shapes")
    parser.add_argument("--px", type=int, default=160, help="size of the sets' images")
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure everything and write the page."""
    options = parse(argv)
    pointing = [
        row for px in options.sizes for row in pointing_rows(options.images, options.tested, px)
    ]
    sets = {source.stem: read_set(source, options.images, options.px) for source in options.data}
    deletion = [
        row
        for name, sample in sets.items()
        for row in deletion_rows(name, Subject(sample, options.tested))
    ]
    samples = {"shapes": draw_shapes(options.images, options.px), **sets}
    sane = {name: Subject(sample, options.sane) for name, sample in samples.items()}
    options.out.write_text(
        PAGE.format(
            command=say_command(options),
            name=NAME,
            low=SIDES[0],
            high=SIDES[1],
            cell=CELL,
            share=SHARE,
            tested=options.tested,
            sane=options.sane,
            px=options.px,
            images=options.images,
            pointing=table(POINTING, pointing),
            sanity=table(["random weights in", *sane], sanity_rows(sane)),
            deletion=table(DELETION, deletion),
        )
    )


def say_command(options: argparse.Namespace) -> str:
    """Give the command that makes the page again."""
    names = " ".join(source.name for source in options.data)
    sizes = " ".join(map(str, options.sizes))
    return (
        f"PYTHONPATH=tests python -m bench.explanations --data {names} --images {options.images} "
        f"--tested {options.tested} --sane {options.sane} --sizes {sizes} --px {options.px}"
    )


if __name__ == "__main__":
    main()
