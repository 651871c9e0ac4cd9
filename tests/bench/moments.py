"""Corrupt photographs more and more: what the moment shift says, beside a plain mean over channels.

`PYTHONPATH=tests python -m bench.moments --help`; writes docs/benchmarks/moments.md.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from bench.domains import Corruption, corruptions
from bench.frozen import table

from tasks.artifacts.arrays import Floats, Pixels
from tasks.backbones.cards import list_source_images, read_views
from tasks.backbones.catalogue import load_backbone
from tasks.backbones.normalization import LayerInputs
from tasks.backbones.probe import measure_layers
from tasks.runtime.device import configure_torch, normalize
from tasks.runtime.machine import read_machine
from tasks.transferability.shift import layer_shift, moment_shift

OUT = Path("docs/benchmarks/moments.md")
TRAINED = "tf_efficientnet_lite0"
RANDOM = ("vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224")
PX, SIZES = 224, (180, 192, 208, 240, 256, 280)
MASSIVE = 1000.0  # times the value of a channel
INTRO = """\
{images} photographs at {px} px are source and target of one network: *moment shift* is its mean
over all normalization layers, *plain mean* the same with all channels and the floor of the
batch-norm shift. *Other images* compares one half of them with the other: so few images are that
far apart. Blur is a Gaussian of so many pixels, noise is normal with so many gray levels. *Massive
channel*: one channel of every layer a thousand times as large, in the target alone, and in both
while the target is blurred by 2 px.

Trained weights of networks without batch norm are not packaged, so theirs are random here, which
says that the measure works, not what it is worth. {trained} is trained; its batch-norm layers are
compared with what they see in the same images, not with their running statistics. At other sizes it
sees the same images.
"""
Layers = Sequence[LayerInputs]


def measure(name: str, files: Sequence[Path], px: int, corrupt: Corruption) -> list[LayerInputs]:
    """Measure what the layers of a network see in corrupted images."""
    weights, machine = "packaged" if name == TRAINED else "random", read_machine()
    configure_torch(machine, 0)
    backbone = load_backbone(name, weights, image_px=px, seed=0)
    views = read_views(files, image_px=px, fit="crop", max_pixels=10**9, workers=1)

    def prepare(number: int, view: Pixels) -> torch.Tensor:
        return normalize(torch.tensor(corrupt(view, number)[None]), backbone.input)

    return measure_layers(backbone, [(prepare(*pair) for pair in enumerate(views))], machine)


def compare(source: Layers, target: Layers) -> list[str]:
    """Give the moment shift and the plain mean, each over all layers."""

    def mean_of(shift: Callable[[Floats, Floats, Floats, Floats], float]) -> float:
        pairs = zip(source, target, strict=True)
        return float(np.mean([shift(of.mean, of.var, to.mean, to.var) for to, of in pairs]))

    return [f"{mean_of(moment_shift):.4f}", f"{mean_of(layer_shift):.4f}"]


def swell(layers: Layers) -> list[LayerInputs]:
    """Make the first channel of every layer massive."""
    times = [np.where(np.arange(len(layer.mean)) == 0, MASSIVE, 1.0) for layer in layers]
    return [
        replace(layer, mean=layer.mean * by, var=layer.var * by**2)
        for layer, by in zip(layers, times, strict=True)
    ]


def measure_network(name: str, files: Sequence[Path]) -> Iterator[list[str]]:
    """Yield a row for each corruption and size."""
    kinds = {what: how for what, how in corruptions() if "levels" not in what}
    none, half = kinds.pop("none"), len(files) // 2
    halves = (measure(name, some, PX, none) for some in (files[:half], files[half:]))
    source = measure(name, files, PX, none)
    yield ["the same", *compare(source, source)]
    yield ["other images", *compare(*halves)]
    for what, corrupt in kinds.items():
        target = measure(name, files, PX, corrupt)
        yield [what, *compare(source, target)]
        if what == "blur 2 px" and name in RANDOM:
            yield [f"{what}, massive channel in both", *compare(swell(source), swell(target))]
    if name in RANDOM:
        yield ["massive channel in the target", *compare(source, swell(source))]
        return
    for px in SIZES:  # random weights would be others at another size
        yield [f"at {px} px", *compare(source, measure(name, files, px, none))]


def main() -> None:
    """Measure all networks, write the page."""
    parser = argparse.ArgumentParser(prog="python -m bench.moments", description=__doc__)
    parser.add_argument("data", type=Path, help="folder of photographs")
    parser.add_argument("--images", type=int, default=32, help="spread over the folder")
    parser.add_argument("--out", type=Path, default=OUT, help="the page to write")
    options = parser.parse_args()
    listed = list_source_images(options.data)
    files = [listed[row] for row in np.linspace(0, len(listed) - 1, options.images).astype(int)]
    words = [f"images/{options.data.name}", "--images", str(options.images)]
    command = f"PYTHONPATH=tests python -m bench.moments {shlex.join(words)}"
    intro = INTRO.format(images=options.images, px=PX, trained=TRAINED)
    rows: list[list[str]] = []
    for name in (TRAINED, *RANDOM):
        for row in measure_network(name, files):
            rows.append([name, *row])
            print(*rows[-1], file=sys.stderr, flush=True)  # noqa: T201
            head = ["network", "what", "moment shift", "plain mean"]
            page = ["# Moment shift", "", f"`{command}` wrote this page.", "", intro]
            options.out.write_text("\n".join([*page, table(head, rows), ""]))


if __name__ == "__main__":
    main()
