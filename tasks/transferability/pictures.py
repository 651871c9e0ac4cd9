"""Pictures of the data: what their pixels show, which are most and least like the source."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.preprocessing import normalize

from tasks.artifacts.arrays import Features, Floats, Ints, Pixels, blocks_of
from tasks.artifacts.files import replacing_folder
from tasks.artifacts.pixels import PixelStore
from tasks.artifacts.records import Conversion, Fit
from tasks.artifacts.sampling import number_groups
from tasks.artifacts.tables import LikenessRow, Manifest, ManifestRow, Side, write_rows
from tasks.images.texture import measure_textures, unpadded
from tasks.transferability.look import Pictured

LOOKED_IMAGES = 512  # at most, whose pixels are looked at
NEIGHBORS = 5  # images of the source that an image is compared with
SHOWN = 6  # most like the source, and as many least like it
SIDES: tuple[Side, ...] = ("nearest", "farthest")


def see_pixels(
    store: PixelStore, manifest: Manifest, conversion: Conversion, rows: Ints, *, fit: Fit
) -> Pictured:
    """Look at the clean pixels of some training images, of padded ones at what was not padded.

    Args:
        store: Packed training pixels.
        manifest: Tells the sizes and labels.
        conversion: Tells how deep the files were.
        rows: Numbers of the images.
        fit: How they became square.
    """
    train = manifest.of("train")
    textures = measure_textures(_shown_pixels(store, [train[row] for row in rows], rows, fit))
    return Pictured(
        textures=textures,
        left_out=len(rows) - len(textures),
        classes=len({train[row].label for row in rows}),
        classes_total=len({row.label for row in train}),
        deep=conversion.deep,
    )


def _shown_pixels(
    store: PixelStore, images: Sequence[ManifestRow], rows: Ints, fit: Fit
) -> Iterator[Pixels]:
    for image, batch in zip(images, store.batches(store.row_of(rows), 1), strict=True):
        shown = unpadded(batch[0], image.width, image.height) if fit == "pad" else batch[0]
        if shown is not None:
            yield shown


def measure_likeness(features: Features, source: Features) -> Floats:
    """Mean cosine of each image with the images of the source that are most like it.

    Seen from the mean of the source, so that what all images share counts nothing. The angle alone
    counts: dull pictures, dark or blurred, have short features, near to everything by distance.

    Args:
        features: (N, D).
        source: Of the card, (m, D); of fewer than `NEIGHBORS` all are taken.

    Returns:
        float64 (N,), in [-1, 1].
    """
    center = source.mean(axis=0, dtype=np.float64)
    x = normalize(source - center)
    count = min(NEIGHBORS, len(x))
    parts = (normalize(block - center) @ x.T for block in blocks_of(features))
    most = [np.partition(part, -count, axis=1)[:, -count:].mean(axis=1) for part in parts]
    likeness: Floats = np.concatenate(most)
    return likeness


def choose_ends(likeness: Floats, groups: Sequence[str], most: int) -> tuple[list[int], list[int]]:
    """Number the images that are most and least like the source, one of each group.

    Where all share one group, each image stands for itself.

    Args:
        likeness: (N,).
        groups: Of each image, (N,).
        most: So many of each.

    Returns:
        The nearest and the farthest, the outermost first; none is in both.
    """
    order = np.argsort(-likeness, kind="stable").tolist()
    units = number_groups(groups).tolist()
    nearest, farthest = (_one_a_unit(one, units) for one in (order, order[::-1]))
    near = nearest[: min(most, len(nearest) // 2)]
    taken = {units[row] for row in near}
    return near, [row for row in farthest if units[row] not in taken][: len(near)]


def _one_a_unit(order: Sequence[int], units: Sequence[int]) -> list[int]:
    first: dict[int, int] = {}
    for row in order:
        first.setdefault(units[row], row)
    return list(first.values())


def write_pictures(
    folder: Path, likeness: Floats, rows: Ints, manifest: Manifest, store: PixelStore
) -> None:
    """Write the pictures most and least like the source, and index.csv.

    Args:
        folder: Replaced whole.
        likeness: Of some training images, (n,); empty without a source card.
        rows: Their numbers, (n,) or more.
        manifest: Tells their paths, labels and groups.
        store: Their pixels.
    """
    train = manifest.of("train")
    shown = [train[row] for row in rows[: len(likeness)]]
    ends = choose_ends(likeness, [row.group for row in shown], SHOWN)
    index = []
    with replacing_folder(folder) as temporary:
        for side, places in zip(SIDES, ends, strict=True):
            for number, place in enumerate(places):
                file = f"{side}_{number}.jpg"
                pixels = store.rows([store.row_of(int(rows[place]))])[0]
                Image.fromarray(pixels).save(temporary / file, quality=90)
                row = shown[place]
                index.append(LikenessRow(file, row.path, row.label, side, float(likeness[place])))
        write_rows(temporary / "index.csv", LikenessRow, index)
