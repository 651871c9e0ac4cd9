"""Pictures of the data: what their pixels show, which are most and least like the source."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.preprocessing import normalize

from tasks.artifacts.arrays import Features, Floats, Ints
from tasks.artifacts.files import replacing_folder
from tasks.artifacts.pixels import PixelStore
from tasks.artifacts.records import Conversion
from tasks.artifacts.sampling import choose_rows
from tasks.artifacts.tables import LikenessRow, Manifest, Side, write_rows
from tasks.errors import ArtifactError
from tasks.images.texture import measure_textures
from tasks.transferability.look import Pictured

LOOKED_IMAGES = 512  # at most, whose pixels are looked at
NEIGHBORS = 5  # images of the source that an image is compared with
SHOWN = 6  # most like the source, and as many least like it
ROWS_AT_ONCE = 1_000
SIDES: tuple[Side, ...] = ("nearest", "farthest")


def see_pixels(
    store: PixelStore, manifest: Manifest, conversion: Conversion, *, limit: int, seed: int
) -> Pictured:
    """Look at the clean pixels of some training images, each class by its share.

    Args:
        store: Packed training pixels.
        manifest: Tells the labels.
        conversion: Tells how deep the files were.
        limit: Largest number of images, of at most `LOOKED_IMAGES`.
        seed: The run's seed.

    Raises:
        ArtifactError: The pixels are of another manifest.
    """
    train = manifest.of("train")
    if store.info.count != len(train):
        raise ArtifactError(
            f"{store.folder}: {store.info.count} images, the manifest lists {len(train)} for "
            "training; run the augment stage again"
        )
    rows = choose_rows(train, min(limit, LOOKED_IMAGES), seed=seed)
    return Pictured(
        textures=measure_textures(batch[0] for batch in store.batches(store.row_of(rows), 1)),
        deep=conversion.deep,
    )


def measure_likeness(features: Features, source: Features) -> Floats:
    """Mean cosine of each image with the images of the source that are most like it.

    Seen from the mean of the source, so that what all images share counts nothing. The angle alone
    counts: dull pictures, dark or blurred, have short features, near to everything by distance.

    Args:
        features: (N, D).
        source: Of the card, (m, D), m >= `NEIGHBORS`.

    Returns:
        float64 (N,), in [-1, 1].
    """
    center = source.mean(axis=0, dtype=np.float64)
    x = normalize(source - center)
    parts = [
        normalize(features[start : start + ROWS_AT_ONCE] - center) @ x.T
        for start in range(0, len(features), ROWS_AT_ONCE)
    ]
    most = [np.sort(part, axis=1)[:, -NEIGHBORS:].mean(axis=1) for part in parts]
    likeness: Floats = np.concatenate(most)
    return likeness


def choose_ends(likeness: Floats, groups: Sequence[str], most: int) -> tuple[list[int], list[int]]:
    """Number the images that are most and least like the source, one of each group.

    Args:
        likeness: (N,).
        groups: Of each image, (N,).
        most: So many of each.

    Returns:
        The nearest and the farthest, the outermost first; none is in both.
    """
    order = np.argsort(-likeness, kind="stable").tolist()
    nearest, farthest = (_one_a_group(one, groups) for one in (order, order[::-1]))
    near = nearest[: min(most, len(nearest) // 2)]
    taken = {groups[row] for row in near}
    return near, [row for row in farthest if groups[row] not in taken][: len(near)]


def _one_a_group(order: Sequence[int], groups: Sequence[str]) -> list[int]:
    first: dict[str, int] = {}
    for row in order:
        first.setdefault(groups[row], row)
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
