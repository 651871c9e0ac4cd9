"""A tiny exported model that knows some drawn images, for tests of what watches it."""

from pathlib import Path

import numpy as np
from conftest import draw_image
from PIL import Image
from test_delivery import make_samples
from test_export import shipped_model

from tasks.artifacts.arrays import write_tensors
from tasks.artifacts.files import write_text
from tasks.artifacts.records import Calibration, read_record, write_record
from tasks.delivery.folder import SUMS, hash_files
from tasks.delivery.in_domain import InDomain
from tasks.delivery.onnx_answers import OnnxAnswers
from tasks.images.decoding.decode import read_clean_view
from tasks.reporting.export import export_model

KNOWN = 80  # images of train, and of those held out
FALSE_ALARM = 0.05


def draw(folder: Path, numbers: range, *, label: int | None = None) -> Path:
    """Fill a folder with images as the model knows them, or all of one label."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        known = number % 3 if label is None else label
        draw_image(known, number).save(folder / f"{number:05d}.png")
    return folder


def darken(folder: Path, numbers: range) -> None:
    """Draw images and take two thirds of their light."""
    draw(folder, numbers)
    for number in numbers:
        file = folder / f"{number:05d}.png"
        with Image.open(file) as image:
            image.point([value // 3 for value in range(256)] * 3).save(file)


def export_watched(folder: Path, scratch: Path) -> Path:
    """Export a model with its reference: drawn images from 10,000 on."""
    export_model(folder, shipped_model("test_efficientnet"), {}, make_samples(scratch / "stores"))
    images = draw(scratch / "known", range(10_000, 10_000 + 2 * KNOWN))
    pixels = np.stack(
        [
            read_clean_view(
                file.read_bytes(),
                image_px=32,
                fit="squash",
                max_pixels=10**7,
                min_side_px=8,
                conversion=shipped_model("test_efficientnet").conversion,
            )
            for file in sorted(images.iterdir())
        ]
    )
    _, features, logits = OnnxAnswers(folder / "model.onnx", 1)(pixels)
    rounded = features.astype(np.float16)
    arrays = {
        "train": rounded[:KNOWN],
        "held_out": rounded[KNOWN:],
        "held_out_predicted": logits[KNOWN:].argmax(axis=1),
        "held_out_group": np.arange(KNOWN),
    }
    write_tensors(folder / "reference.safetensors", arrays)
    set_threshold(folder, 1.0)
    known = InDomain.read(folder)
    scores = np.sort(known.scores(known.held_out))
    set_threshold(folder, float(scores[-1 - round(FALSE_ALARM * KNOWN)]))
    return folder


def set_threshold(folder: Path, threshold: float) -> None:
    """Say from which score on an image is out of the domain."""
    known = read_record(folder / "calibration.json", Calibration)
    write_record(folder / "calibration.json", known.model_copy(update={"in_domain": threshold}))
    write_text(folder / SUMS, hash_files(folder))
