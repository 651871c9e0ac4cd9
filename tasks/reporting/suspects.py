"""Images whose label is probably wrong, as the report shows them."""

import io
from pathlib import Path

from PIL import Image

from tasks.artifacts.arrays import read_array
from tasks.artifacts.tables import SuspectRow, read_rows
from tasks.errors import ArtifactError
from tasks.reporting.findings import Picture, SuspectLabels

JPEG_QUALITY = 90


def read_suspects(table: Path, pixels: Path, *, images: int, most: int) -> SuspectLabels:
    """Read a table of suspects and the pictures of the first of them.

    Args:
        table: suspects.csv.
        pixels: suspects.npy, clean views, uint8 (n, R, R, 3), in the order of the table.
        images: How many images were looked at.
        most: So many are shown.

    Raises:
        ArtifactError: A file is missing or damaged, or they do not fit each other.
    """
    rows, views = read_rows(table, SuspectRow), read_array(pixels)
    if len(views) > len(rows) or (rows and not len(views)):
        raise ArtifactError(
            f"{pixels}: {len(views)} pictures for {len(rows)} rows of {table.name}; "
            "run the stage that writes them"
        )
    shown = []
    for row, view in zip(rows[:most], views, strict=False):
        jpeg = io.BytesIO()
        Image.fromarray(view).save(jpeg, format="JPEG", quality=JPEG_QUALITY)
        shown.append((row, Picture(pixels, jpeg.getvalue())))
    return SuspectLabels(len(rows), images, shown)
