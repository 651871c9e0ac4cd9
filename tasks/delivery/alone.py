"""Classify images: python predict.py IMAGE ...  It needs onnxruntime, Pillow and numpy alone.

Prints path, class, probability and error, separated by tabs, names with tabs or line ends quoted as
in csv. Sound files give the pixels that training saw, but 16-bit colors are refused, and damage is
found only where Pillow finds it: `python -m tasks.predict` reads those as training did.
"""

import csv
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

HERE = Path(__file__).parent
ABOUT = json.loads((HERE / "regraft.json").read_text(encoding="utf-8"))
KNOWN, LIMITS = ABOUT["preprocessing"], ABOUT["limits"]
LABELS = (HERE / "labels.txt").read_text(encoding="utf-8").splitlines()
SIDE, FORMATS = KNOWN["image_px"], ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "AVIF"]
Image.MAX_IMAGE_PIXELS = None  # the limits of training count


def open_upright(path: str) -> Image.Image:
    """Give an image file upright, if training would have taken it."""
    if not Path(path).is_file():
        raise ValueError("no regular file")
    content = Path(path).read_bytes()
    if not content:
        raise ValueError("empty file")
    try:
        opened = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as err:
        raise ValueError("no image of a known format") from err
    with opened as file:
        if min(file.size) < LIMITS["min_side_px"]:
            raise ValueError(f"{file.width} x {file.height} pixels are too few")
        if file.width * file.height > LIMITS["max_pixels"]:
            raise ValueError(f"{file.width} x {file.height} pixels are too many")
        if file.mode == "LAB":
            raise ValueError("colors of mode LAB are not read")
        if any("RGB" in str(tile.args) and ";16" in str(tile.args) for tile in file.tile):
            raise ValueError("16-bit colors are not read here")
        file.draft(None, (2 * SIDE, 2 * SIDE))
        return ImageOps.exif_transpose(file)


def read_image(path: str) -> Image.Image:
    """Give an image file upright and in 8-bit sRGB."""
    image = open_upright(path)
    profile, alpha = image.info.get("icc_profile"), None
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        black, white = KNOWN["floats" if image.mode == "F" else "integers"]
        values = (np.asarray(image).astype(np.float64) - black) * (255 / ((white - black) or 1))
        if not np.isfinite(values).all():
            raise ValueError("holds NaN or infinite values")
        image = Image.fromarray(np.rint(values.clip(0, 255)).astype(np.uint8))
    elif image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        image = image.convert("L") if image.mode == "LA" else image.convert("RGBA").convert("RGB")
    canvas = Image.new("RGB", image.size, tuple(KNOWN["background"]))
    canvas.paste(apply_profile(image, profile) if profile else image.convert("RGB"), mask=alpha)
    return canvas


def apply_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert by a color profile, unless it is sRGB's, of other colors, or damaged."""
    mode = {"1": "L", "L": "L", "CMYK": "CMYK"}.get(image.mode, "RGB")
    try:
        found = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = {"RGB ": "RGB", "GRAY": "L"}.get(found.profile.xcolor_space, "CMYK")
        if space != mode and (space, mode) != ("RGB", "L"):
            return image.convert("RGB")
        flags, srgb = ImageCms.Flags.BLACKPOINTCOMPENSATION, ImageCms.createProfile("sRGB")
        change = ImageCms.buildTransform(found, srgb, space, "RGB", flags=flags)
        levels = np.linspace(0, 255, 9).astype(np.uint8)
        colors = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
        grays = np.arange(256, dtype=np.uint8)[None]
        sample = Image.fromarray(grays if space == "L" else colors).convert(space)
        changed = np.asarray(ImageCms.applyTransform(sample, change), np.int16)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image.convert("RGB")
    if space != "CMYK" and np.abs(changed - np.asarray(sample.convert("RGB"))).max() <= 3:
        return image.convert("RGB")
    return ImageCms.applyTransform(image.convert(space), change) or image


def make_square(image: Image.Image) -> np.ndarray:
    """Give the pixels of the square view, uint8 (SIDE, SIDE, 3)."""
    (width, height), needed = image.size, 2 * SIDE
    if KNOWN["fit"] == "pad":
        rows = np.asarray(image)
        edges = np.concatenate((rows[0], rows[-1], rows[1:-1, 0], rows[1:-1, -1]))
        small = image.reduce(max(1, max(image.size) // needed))
        side = max(small.size)
        image = Image.new("RGB", (side, side), tuple(np.rint(edges.mean(axis=0)).astype(int)))
        image.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    else:
        side = min(image.size)
        left, top = (width - side) // 2, (height - side) // 2
        crop = KNOWN["fit"] == "crop"
        box = (left, top, left + side, top + side) if crop else (0, 0, width, height)
        factors = max(1, (box[2] - box[0]) // needed), max(1, (box[3] - box[1]) // needed)
        image = image.reduce(factors, box)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def main(paths: list[str]) -> None:
    """Classify the images one by one."""
    if not paths:
        sys.exit(__doc__)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files may be no text
    write = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n").writerow
    session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])
    for path in paths:
        try:
            pixels = make_square(read_image(path))
        except Exception as err:  # on damaged files Pillow raises a dozen kinds
            write([path, "", "", err])
            continue
        probabilities = session.run(["probabilities"], {"pixels": pixels[None]})[0][0]
        best = int(probabilities.argmax())
        write([path, LABELS[best], f"{probabilities[best]:.6f}", ""])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
