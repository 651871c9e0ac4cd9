"""Facts of a file beside its content, against Pillow and files made by hand."""

import io

import numpy as np
import pytest
from conftest import draw_image
from PIL import Image

from tasks.artifacts.tables import FactRow
from tasks.images.decoding.decode import decode_image
from tasks.images.facts import measure_facts


def facts(content: bytes) -> FactRow:
    return measure_facts("a.jpg", content, decode_image(content, max_pixels=10**8))


def saved(kind: str = "JPEG", image: Image.Image | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image or draw_image(0, 0)).save(buffer, kind, **options)
    return buffer.getvalue()


def test_size_mode_and_format_are_those_of_the_file() -> None:
    content = saved("PNG", draw_image(0, 0, (50, 30)).convert("L"))
    row = facts(content)
    assert (row.width, row.height, row.mode, row.format) == (50, 30, "L", "PNG")
    assert (row.file_bytes, row.quantization, row.camera) == (len(content), 0.0, "")


@pytest.mark.parametrize("quality", [20, 75, 95])
def test_quantization_is_the_mean_of_the_tables_that_pillow_reads(quality: int) -> None:
    content = saved(quality=quality)
    with Image.open(io.BytesIO(content)) as image:
        tables = image.quantization  # type: ignore[attr-defined]
    expected = np.mean([value for table in tables.values() for value in table])
    assert facts(content).quantization == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("endian", ["<", ">"])
def test_the_camera_is_maker_and_model_of_the_exif_block(endian: str) -> None:
    exif = Image.Exif()
    exif.endian = endian
    exif[0x010F], exif[0x0110], exif[0x0131] = "Nikon\0", "D90 \n", "Editor"
    assert facts(saved(exif=exif)).camera == "Nikon D90"


def test_a_damaged_exif_block_names_no_camera() -> None:
    exif = Image.Exif()
    exif[0x0110] = "D90"
    content = saved(exif=exif.tobytes()[:20])
    decoded = decode_image(saved(), max_pixels=10**8)  # Pillow warns of the damaged one
    assert measure_facts("a.jpg", content, decoded).camera == ""


def test_border_and_brightness_are_means_of_gray_values() -> None:
    pixels = np.full((96, 96, 3), (200, 100, 0), np.uint8)
    pixels[12:-12, 12:-12] = 60
    row = facts(saved("PNG", Image.fromarray(pixels)))
    assert (row.border_red, row.border_green, row.border_blue) == (200, 100, 0)
    gray = 0.299 * 200 + 0.587 * 100
    share = (72 / 96) ** 2
    assert row.brightness == pytest.approx(share * 60 + (1 - share) * gray, abs=0.01)
