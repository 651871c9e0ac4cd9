"""Frozen features of a data set, made once by the stages themselves, for measurements."""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench.scratch import ROOT, Copy, choose_images

from tasks.artifacts.arrays import Features, Ints, read_array
from tasks.artifacts.records import SPLITS, Split
from tasks.artifacts.tables import ManifestRow
from tasks.params import Params
from tasks.params_file import load_params

MAKERS = ("ingest", "augment", "select", "extract")
DONE = "data/extract/backbone.json"


@dataclass(frozen=True)
class FrozenSet:
    """Clean features, float32 (N, D), labels int64 (N,), groups and given splits of N images."""

    name: str
    paths: list[str]
    classes: list[str]
    features: Features
    labels: Ints
    groups: list[str]
    splits: list[Split]


def make_features(
    source: Path | str, folder: Path, *, images: int, values: Mapping[str, object]
) -> FrozenSet:
    """Run ingest, augment and extract in a scratch copy and keep about so many images.

    A folder in which they ran is used again.
    """
    own = {**values, "augment.views": 0, "ingest.small_class": "train_only"}
    own |= {"ingest.source": str(source)}
    copy = Copy(folder, sys.executable, {})
    if not (folder / DONE).exists():
        copy = Copy.make(folder, own, python=sys.executable, environment={})
        for stage in MAKERS:
            copy.run(stage)
    manifest = copy.manifest()
    kept = set(choose_images(manifest, images))
    rows: list[ManifestRow] = []
    parts: list[Features] = []
    for split in SPLITS:
        array = read_array(copy.root / f"data/extract/{split}/features.npy")
        chosen = [n for n, row in enumerate(manifest.of(split)) if row.path in kept]
        rows += [manifest.of(split)[n] for n in chosen]
        parts.append(np.array(array[chosen, 0], dtype=np.float32))
    return FrozenSet(
        name=Path(source).stem,
        paths=[row.path for row in rows],
        classes=manifest.class_names,
        features=np.concatenate(parts),
        labels=number_labels(rows, manifest.class_names),
        groups=[row.group for row in rows],
        splits=[row.split for row in rows],
    )


def number_labels(rows: Sequence[ManifestRow], classes: Sequence[str]) -> Ints:
    """Give the class index of each row, int64 (N,)."""
    index = {name: number for number, name in enumerate(classes)}
    return np.array([index[row.label] for row in rows], dtype=np.int64)


# command line and page ---------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser, out: Path) -> argparse.ArgumentParser:
    """Add the options that measurements on frozen features share."""
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders, csv, .yaml")
    parser.add_argument("--images", type=int, default=1200, help="about so many of each set")
    parser.add_argument("--px", type=int, default=160, help="side of the images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--scratch", type=Path, help="folder that keeps features between runs")
    parser.add_argument("--out", type=Path, default=out, help="the page")
    return parser


def read_sets(options: argparse.Namespace) -> tuple[list[FrozenSet], Params]:
    """Make the features of every set; give them and the parameters."""
    with scratch_of(options) as scratch:
        sets = [
            make_features(
                source.absolute(),
                scratch / f"{source.stem}-{options.px}",
                images=options.images,
                values={"augment.image_px": options.px},
            )
            for source in options.data
        ]
    return sets, load_params(ROOT / "params.yaml")


@contextmanager
def scratch_of(options: argparse.Namespace) -> Iterator[Path]:
    """Give the folder of the features; without one they are made anew."""
    with tempfile.TemporaryDirectory() as temporary:
        yield options.scratch or Path(temporary)


def command_of(module: str, options: argparse.Namespace) -> str:
    """Give the command that makes a page again, with the sets in a folder images."""
    names = " ".join(f"images/{source.name}" for source in options.data)
    seeds = " ".join(map(str, options.seeds))
    return (
        f"PYTHONPATH=tests python -m {module} --data {names} --images {options.images} "
        f"--px {options.px} --seeds {seeds}"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
