"""A tiny exported model that knows some drawn images, for tests of what watches it."""

from pathlib import Path

import numpy as np
from conftest import draw_image
from PIL import Image
from test_delivery import make_samples
from test_export import shipped_model

from tasks.artifacts.files import write_text
from tasks.delivery.appearance import Appearance
from tasks.delivery.folder import SUMS, hash_files
from tasks.delivery.in_domain import REFERENCE, InDomain
from tasks.delivery.onnx_answers import OnnxAnswers
from tasks.evaluation.unknown import Embedded, fit_in_domain
from tasks.images.views import read_view
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
    views = [
        read_view(
            file.read_bytes(),
            image_px=32,
            fit="squash",
            max_pixels=10**7,
            min_side_px=8,
            conversion=shipped_model("test_efficientnet").conversion,
        )
        for file in sorted(images.iterdir())
    ]
    _, features, logits = OnnxAnswers(folder / "model.onnx", 1)(
        np.stack([view.pixels for view in views])
    )
    predicted, groups = logits.argmax(axis=1), [str(number) for number in range(2 * KNOWN)]
    train, val = (
        Embedded(
            features[part],
            predicted[part],
            groups[part],
            Appearance.measure(
                [view.pixels for view in views[part]], [view.facts for view in views[part]]
            ),
        )
        for part in (slice(KNOWN), slice(KNOWN, None))
    )
    keep_known(folder, fit_in_domain(train, val, false_alarm=FALSE_ALARM))
    return folder


def keep_known(folder: Path, known: InDomain) -> None:
    """Put what tells the domain into an exported folder."""
    known.write(folder / REFERENCE)
    write_text(folder / SUMS, hash_files(folder))
