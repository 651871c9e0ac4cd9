"""Plant shortcuts in files and see which are told: `PYTHONPATH=tests python -m bench.shortcuts`.

Writes docs/benchmarks/shortcuts.md.
"""

import argparse
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from tasks.artifacts.arrays import Ints
from tasks.artifacts.records import ShortcutAudit
from tasks.artifacts.tables import FactRow
from tasks.auditing.shortcuts import (
    FILE_FACTS,
    GIVEN_AWAY,
    LOOK_FACTS,
    collect_facts,
    measure_shortcuts,
)
from tasks.images.decoding.decode import decode_image
from tasks.images.facts import measure_facts
from tasks.images.listing.sources import list_images, resolve_root

SHARES = (1.0, 0.5, 0.2)  # of the class that is planted in
CONFIDENCE = 0.95
INTRO = """\
# Shortcuts in the files

`{command}` wrote this page.

`audit` fits trees to facts of the files that are no content ({facts})
and judges them on images of other groups. A class is *given away* where the lower bound of its AUC
against the rest reaches
{given}; intervals are 95 %, for all classes of a set together. With how pictures look come also
{looks}; that may be honest content, and is told more softly.

## The sets as they are

Balanced accuracy in %, chance in brackets; classes given away, with AUC. *False alarms*: in how
many of {shuffles} runs with shuffled labels any class seems given away.

| set | images | files alone | given away | with looks | given away | false alarms |
|---|---|---|---|---|---|---|
"""
PLANTED = """
## Planted in one class

The largest class gets other files, for the share of it that stands above. Its AUC from the files
alone, in bold where `audit` tells it, and the fact that tells it best.

| set | planted | {shares} | told by |
|---|---|{dashes}---|
"""


@dataclass(frozen=True)
class Files:
    """The files of some images of one source, and what their facts are."""

    name: str
    contents: list[bytes]
    rows: list[FactRow]
    labels: Ints
    groups: Ints
    class_names: list[str]


def measure(path: str, content: bytes) -> FactRow:
    """Give the facts of a file."""
    return measure_facts(path, content, decode_image(content, max_pixels=10**9))


def read_files(source: Path, most: int, seed: int) -> Files:
    """Read at most so many files of a source, drawn by chance."""
    listing = list_images(source)
    order = np.random.default_rng(seed).permutation(len(listing.images))
    chosen = [listing.images[row] for row in np.sort(order[:most])]
    root = resolve_root(listing.origin)
    contents = [(root / image.path).read_bytes() for image in chosen]
    names = [image.group or image.path for image in chosen]
    class_names, labels = np.unique([image.label for image in chosen], return_inverse=True)
    return Files(
        source.stem,
        contents,
        [measure(image.path, content) for image, content in zip(chosen, contents, strict=True)],
        labels.astype(np.int64),
        np.unique(np.array(names, dtype=object), return_inverse=True)[1].astype(np.int64),
        [str(name) for name in class_names],
    )


def audit(files: Files, rows: Sequence[FactRow], names: Sequence[str]) -> ShortcutAudit:
    """Measure how well facts tell the label."""
    table = collect_facts(rows, files.labels, files.groups, files.class_names, seed=1)
    found = measure_shortcuts(table, names, confidence=CONFIDENCE, seed=1)
    assert found is not None
    return found


# planting ----------------------------------------------------------------------------------------


def _open(content: bytes) -> Image.Image:
    return decode_image(content, max_pixels=10**9).image


def _saved(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def resize(content: bytes) -> bytes:
    """Make it a tenth smaller."""
    image = _open(content)
    size = (max(8, image.width * 9 // 10), max(8, image.height * 9 // 10))
    return _saved(image.resize(size))


def reencode(content: bytes) -> bytes:
    """Save it in another quality."""
    return _saved(_open(content), quality=88)


def gray(content: bytes) -> bytes:
    """Save it in gray, in the quality that all have."""
    return _saved(_open(content).convert("L"))


def name_camera(content: bytes) -> bytes:
    """Name a camera."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Makers", "Model 9"
    return _saved(_open(content), exif=exif)


def as_png(content: bytes) -> bytes:
    """Save it as PNG."""
    return _saved(_open(content), "PNG")


PLANTS: Mapping[str, Callable[[bytes], bytes]] = {
    "a tenth smaller": resize,
    "JPEG quality 88 in place of 75": reencode,
    "gray": gray,
    "a camera is named": name_camera,
    "PNG": as_png,
}


def save_alike(files: Files) -> Files:
    """Save all files in one way, so that what is planted is all that differs."""
    contents = [_saved(_open(content)) for content in files.contents]
    rows = [measure(row.path, content) for row, content in zip(files.rows, contents, strict=True)]
    return replace(files, contents=contents, rows=rows)


def plant(files: Files, treat: Callable[[bytes], bytes], share: float) -> tuple[list[FactRow], int]:
    """Facts of the files with one treatment in a share of the largest class."""
    label = int(np.bincount(files.labels).argmax())
    inside = np.flatnonzero(files.labels == label)
    rows = list(files.rows)
    for number in inside[: round(share * len(inside))].tolist():
        rows[number] = measure(rows[number].path, treat(files.contents[number]))
    return rows, label


def planted_row(files: Files, what: str, treat: Callable[[bytes], bytes]) -> str:
    """A line of the second table."""
    cells, told_by = [], ""
    for share in SHARES:
        rows, label = plant(files, treat, share)
        found = audit(files, rows, list(FILE_FACTS))
        told = {one.name: one for one in found.told}.get(files.class_names[label])
        cells.append(f"**{told.auc.value:.2f}**" if told else "not told")
        told_by = told_by or (told.told_by[0].words if told and told.told_by else "")
    return f"| {files.name} | {what} | {' | '.join(cells)} | {told_by} |"


def as_it_is(files: Files, shuffles: int) -> str:
    """A line of the first table."""
    cells = []
    for names in (list(FILE_FACTS), [*FILE_FACTS, *LOOK_FACTS]):
        found = audit(files, files.rows, names)
        told = ", ".join(f"{one.name} {one.auc.value:.2f}" for one in found.told[:3])
        more = found.told_classes - 3
        cells.append(
            f"{100 * found.balanced_accuracy.value:.0f} ({100 * found.chance:.0f}) "
            f"| {told}{f' and {more} more' if more > 0 else ''}"
        )
    alarms = 0
    for number in range(shuffles):
        order = np.random.default_rng(number).permutation(len(files.labels))
        shuffled = replace(files, labels=files.labels[order])
        alarms += bool(audit(shuffled, files.rows, [*FILE_FACTS, *LOOK_FACTS]).told)
    return f"| {files.name} | {len(files.rows):,} | {' | '.join(cells)} | {alarms} of {shuffles} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the sets and write the page."""
    parser = argparse.ArgumentParser(prog="python -m bench.shortcuts", description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="sets as they are")
    parser.add_argument("--plant", type=Path, nargs="+", required=True, help="sets to plant in")
    parser.add_argument("--images", type=int, default=1_500, help="of each set, at most")
    parser.add_argument("--shuffles", type=int, default=20)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/shortcuts.md"))
    options = parser.parse_args(argv)
    first = [
        as_it_is(read_files(source, options.images, options.seed), options.shuffles)
        for source in options.data
    ]
    second = [
        planted_row(files, what, treat)
        for files in (
            save_alike(read_files(source, options.images, options.seed)) for source in options.plant
        )
        for what, treat in PLANTS.items()
    ]
    sets, planted = (" ".join(path.name for path in some) for some in (options.data, options.plant))
    text = INTRO.format(
        command=f"PYTHONPATH=tests python -m bench.shortcuts --data {sets} --plant {planted} "
        f"--images {options.images} --shuffles {options.shuffles}",
        facts=", ".join(FILE_FACTS),
        given=GIVEN_AWAY,
        looks=", ".join(LOOK_FACTS),
        shuffles=options.shuffles,
    )
    text += "\n".join(first) + "\n"
    shares = " | ".join(f"{share:.0%}" for share in SHARES)
    text += PLANTED.format(shares=shares, dashes="---|" * len(SHARES)) + "\n".join(second) + "\n"
    options.out.write_text(text)


if __name__ == "__main__":
    main()
