"""Draws a contact sheet: some images, each with its class and its views side by side."""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from ttf_opensans import OPENSANS_REGULAR

from tasks.artifacts.arrays import Pixels
from tasks.artifacts.pixels import PixelStore
from tasks.artifacts.tables import Manifest

SHEET_PURPOSE = 12  # tells these random numbers from those of other parts with the same seed
SHEET_IMAGES = 8

TILE, GAP, COLUMN_GAP, MARGIN, CAPTION = 144, 8, 24, 16, 24  # pixels
TILES_ACROSS = 8
FONT_SIZE = 13
PAPER, INK, PALE = (255, 255, 255), (28, 32, 38), (118, 124, 132)


@dataclass(frozen=True, slots=True)
class Strip:
    """One image of the sheet: its class, and uint8 (n, R, R, 3), the clean view first."""

    caption: str
    views: Pixels


def choose_strips(manifest: Manifest, store: PixelStore, *, seed: int) -> list[Strip]:
    """Choose up to `SHEET_IMAGES` training images, the classes in turn, with all their views."""
    rows, rng = manifest.of("train"), np.random.default_rng([seed, SHEET_PURPOSE])
    seen: Counter[str] = Counter()
    queue = []
    for image in rng.permutation(len(rows)).tolist():
        label = rows[image].label
        queue.append((seen[label], image))
        seen[label] += 1
    chosen = sorted(queue, key=lambda turn_and_image: turn_and_image[0])[:SHEET_IMAGES]
    images = sorted((image for _, image in chosen), key=lambda image: (rows[image].label, image))
    views = np.arange(1 + store.info.views)
    return [Strip(rows[image].label, store.rows(store.row_of(image) + views)) for image in images]


def draw_contact_sheet(strips: Sequence[Strip]) -> bytes:
    """Draw strips of equally many views and give the sheet as JPEG; same strips, same bytes.

    As many strips stand side by side as fit into `TILES_ACROSS`; views beyond that are left out.
    """
    tiles = min(TILES_ACROSS, len(strips[0].views))
    columns = min(len(strips), TILES_ACROSS // tiles)
    lines = -(-len(strips) // columns)
    across, down = tiles * (TILE + GAP) - GAP + COLUMN_GAP, CAPTION + TILE + GAP
    size = (2 * MARGIN - COLUMN_GAP + columns * across, 2 * MARGIN - GAP + lines * down)
    sheet = Image.new("RGB", size, PAPER)
    font = OPENSANS_REGULAR.imagefont(FONT_SIZE)
    for number, strip in enumerate(strips):
        line, column = divmod(number, columns)
        _draw_strip(sheet, (MARGIN + column * across, MARGIN + line * down), strip, font)
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=90, subsampling=0)
    return file.getvalue()


def _draw_strip(
    sheet: Image.Image, corner: tuple[int, int], strip: Strip, font: ImageFont.FreeTypeFont
) -> None:
    draw = ImageDraw.Draw(sheet)
    for number, view in enumerate(strip.views[:TILES_ACROSS]):
        x, y = corner[0] + number * (TILE + GAP), corner[1]
        text, color = (f"view {number}", PALE) if number else (strip.caption, INK)
        draw.text((x, y + 2), _fitted(text, font), fill=color, font=font)
        tile = Image.fromarray(np.ascontiguousarray(view))
        sheet.paste(tile.resize((TILE, TILE), Image.Resampling.BICUBIC), (x, y + CAPTION))


def _fitted(text: str, font: ImageFont.FreeTypeFont) -> str:
    """Replace what cannot be printed and shorten the text to the width of a tile."""
    shown = "".join(char if char.isprintable() else "?" for char in text)
    if font.getlength(shown) <= TILE:
        return shown
    while shown and font.getlength(shown + "…") > TILE:
        shown = shown[:-1]
    return shown + "…"
