"""The test images that a model finds hardest, as small pictures to look at."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.artifacts import write_rows
from tasks.evaluation.judged import Judged, confidence_of
from tasks.evaluation.metrics import Floats, Ints
from tasks.files import replacing_folder
from tasks.records import HardestRow

JPEG_QUALITY = 90


def hardest_images(losses: Floats, count: int) -> Ints:
    """Give the numbers of the `count` images with the largest loss, hardest first."""
    return np.argsort(-losses, kind="stable")[:count].astype(np.int64)


def write_hardest(
    folder: Path,
    images: Ints,
    pixels: NDArray[np.uint8],
    *,
    judged: Judged,
    paths: Sequence[str],
    class_names: Sequence[str],
) -> None:
    """Write one jpg an image and index.csv, which says what each of them is.

    Args:
        folder: Replaced whole.
        images: Numbers of the images, hardest first (n,).
        pixels: Their pixels, RGB (n, R, R, 3).
        judged: The model's answers to all images.
        paths: Of all images.
        class_names: By class index.
    """
    probability, losses = confidence_of(judged.calibrated), judged.losses
    files = [f"{rank:03d}_image_{image:06d}.jpg" for rank, image in enumerate(images)]
    with replacing_folder(folder) as temporary:
        for file, picture in zip(files, pixels, strict=True):
            Image.fromarray(picture).save(temporary / file, quality=JPEG_QUALITY, subsampling=0)
        rows = [
            HardestRow(
                file=file,
                path=paths[image],
                label=class_names[judged.labels[image]],
                predicted=class_names[judged.predicted[image]],
                probability=float(probability[image]),
                loss=float(losses[image]),
            )
            for file, image in zip(files, images, strict=True)
        ]
        write_rows(temporary / "index.csv", HardestRow, rows)
