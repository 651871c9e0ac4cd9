"""Heatmaps that the report shows: of the hardest test images and of right answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tasks.artifacts.arrays import Ints, Pixels
from tasks.artifacts.sampling import choose_rows
from tasks.artifacts.tables import HardestRow, PredictionRow
from tasks.delivery.explanations import GradCam, encode, lay_over
from tasks.delivery.onnx_files import BATCH_SIZE, Samples
from tasks.errors import ArtifactError, EngineError
from tasks.reporting.export import ShippedModel
from tasks.reporting.findings import Picture


@dataclass(frozen=True)
class Explained:
    """Heatmaps laid over test images, or why there are none.

    Attributes:
        reason: Why there are none; empty where there are.
        side: Each map has side x side places.
        hardest: Of the hardest images, in their order; none where there is a reason.
        right: Right answers drawn by chance: the row, the image, its heatmap.
    """

    reason: str = ""
    side: int = 0
    hardest: Sequence[Picture] = ()
    right: Sequence[tuple[PredictionRow, Picture, Picture]] = ()


def explain_answers(
    shipped: ShippedModel,
    hardest: Sequence[HardestRow],
    predictions: Sequence[PredictionRow],
    samples: Samples,
) -> Explained:
    """Draw heatmaps of the answers to the hardest test images and to as many right ones.

    Args:
        shipped: The model.
        hardest: What the report shows as such.
        predictions: The answers to all test images.
        samples: Pixels and manifest; its seed draws the right ones.

    Raises:
        ArtifactError: The rows are of another run than the manifest.
    """
    if not hardest:
        return Explained()
    try:
        cam = GradCam(shipped.backbone, shipped.head, shipped.input, torch.device("cpu"))
    except EngineError as err:
        return Explained(reason=f"There are no heatmaps of answers: {err}.")
    right = _draw_right(predictions, samples, len(hardest))
    rows: list[HardestRow | PredictionRow] = [*hardest, *right]
    pairs = list(_draw(cam, rows, shipped.classes, samples))
    shown = [(row, *pair) for row, pair in zip(right, pairs[len(hardest) :], strict=True)]
    return Explained("", cam.side, [over for _, over in pairs[: len(hardest)]], shown)


def _draw_right(
    predictions: Sequence[PredictionRow], samples: Samples, most: int
) -> list[PredictionRow]:
    """Draw right answers by the seed, every class by its share."""
    right = {row.path: row for row in predictions if row.correct}
    listed = [row for row in samples.manifest.of("test") if row.path in right]
    return [right[listed[number].path] for number in choose_rows(listed, most, seed=samples.seed)]


def _draw(
    cam: GradCam,
    rows: Sequence[HardestRow | PredictionRow],
    classes: Sequence[str],
    samples: Samples,
) -> Iterator[tuple[Picture, Picture]]:
    """Give each image, and its heatmap for the class that the model named laid over it."""
    store = samples.stores["test"]
    images, asked = _find(rows, classes, samples)
    for start in range(0, len(rows), BATCH_SIZE):
        some = slice(start, start + BATCH_SIZE)
        pixels = store.rows(store.row_of(images[some]))
        for one, heat in zip(pixels, cam.heatmaps(pixels, asked[some]), strict=True):
            yield _picture(one, samples), _picture(lay_over(one, heat), samples)


def _find(
    rows: Sequence[HardestRow | PredictionRow], classes: Sequence[str], samples: Samples
) -> tuple[Ints, Ints]:
    """Number of each image in the test store, and of the class that the model named."""
    numbers = {row.path: number for number, row in enumerate(samples.manifest.of("test"))}
    strange = next((row.path for row in rows if row.path not in numbers), None)
    if strange is not None:
        raise ArtifactError(
            f"the hardest images name {strange!r}, which is no test image of the manifest; run "
            "evaluate again"
        )
    named = {name: number for number, name in enumerate(classes)}
    found = [(numbers[row.path], named[row.predicted]) for row in rows]
    images, asked = np.array(found, np.int64).reshape(-1, 2).T
    return images, asked


def _picture(pixels: Pixels, samples: Samples) -> Picture:
    return Picture(samples.stores["test"].folder, encode(pixels))
