"""Reading the exported folder: is it whole, of this version, and how does it want its images."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from tasks.artifacts.files import hash_file, read_bytes
from tasks.artifacts.records import Calibration, Conversion, Fit, read_json, read_record
from tasks.delivery.in_domain import REFERENCE, InDomain
from tasks.errors import ArtifactError

FORMAT = 5  # of regraft.json; another one was written by another version of Regraft
SUMS = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64})  ([^/]+)")
NAME_DIGITS = 12  # of the sha256 by which tables name a model
NEEDED = (
    "regraft.json",
    "labels.txt",
    "calibration.json",
    "config.json",
    "model.safetensors",
    REFERENCE,
)
AT_TIMES = ("head.json", "head.safetensors", "model.onnx")  # needed where they are there
ANSWERING = (".safetensors", "  labels.txt", "  calibration.json")  # files that answers come from


class _Preprocessing(BaseModel):
    background: tuple[int, int, int]
    integers: tuple[int, int]
    floats: tuple[float, float]
    image_px: int
    fit: Fit


class _Limits(BaseModel):
    max_pixels: int
    min_side_px: int


class _About(BaseModel):
    """What of regraft.json is needed to classify; the rest is for people."""

    classes: list[str]
    preprocessing: _Preprocessing
    limits: _Limits


@dataclass(frozen=True)
class DeliveredModel:
    """An exported model.

    Attributes:
        folder: Where it lies.
        name: The first digits of a sha256 over what answers depend on.
        classes: Class names by logit.
        calibration: How logits become probabilities and sets of classes.
        known: Tells whether an image is like those of training.
        conversion: How an image of any mode becomes 8-bit sRGB.
        image_px: Side of the square images.
        fit: How an image becomes square.
        max_pixels: Largest width x height of a usable image.
        min_side_px: Smallest side of a usable image.
    """

    folder: Path
    name: str
    classes: list[str]
    calibration: Calibration
    known: InDomain
    conversion: Conversion
    image_px: int
    fit: Fit
    max_pixels: int
    min_side_px: int


def hash_files(folder: Path) -> str:
    """Hash the files of a folder, as `sha256sum` prints it, sorted by name."""
    files = (file for file in sorted(folder.iterdir()) if file.name != SUMS)
    return "".join(f"{hash_file(file)}  {file.name}\n" for file in files)


def read_delivered(folder: Path) -> DeliveredModel:
    """Read what tells how to classify, once all files are what was exported.

    Raises:
        ArtifactError: There is no model, a file is missing or another one, or another version of
            Regraft exported it.
    """
    if folder.is_symlink():  # models/prod may lead elsewhere before the last file is read
        folder = folder.resolve()
    if not (folder / "regraft.json").is_file():
        raise ArtifactError(
            f"{folder}: holds no exported model; `make run` makes one in data/report/model, "
            "--model names another folder"
        )
    told = read_json(folder / "regraft.json")
    version = told.get("format") if isinstance(told, dict) else None
    if version != FORMAT:
        raise ArtifactError(
            f"{folder}: was exported by another version of Regraft (format {version}, expected "
            f"{FORMAT}); export it again: dvc repro report"
        )
    wrong = next(_find_changed(folder), None)
    if wrong:
        raise ArtifactError(f"{folder}: {wrong}; copy the folder again, or dvc repro report")
    try:
        about = _About.model_validate(told)
    except ValidationError as err:
        where = ".".join(map(str, err.errors()[0]["loc"]))
        raise ArtifactError(f"{folder}/regraft.json: {where} is wrong; export it again") from err
    known = about.preprocessing
    return DeliveredModel(
        folder=folder,
        name=_name(folder, known),
        classes=about.classes,
        calibration=read_record(folder / "calibration.json", Calibration),
        known=InDomain.read(folder / REFERENCE),
        conversion=Conversion(
            background=known.background,
            integers=known.integers,
            floats=known.floats,
            transparent=0,
            deep=0,
            profiled=0,
            notes=[],
        ),
        image_px=known.image_px,
        fit=known.fit,
        max_pixels=about.limits.max_pixels,
        min_side_px=about.limits.min_side_px,
    )


def _name(folder: Path, known: _Preprocessing) -> str:
    """Name a model by weights, classes, calibration and preprocessing, whatever the engine."""
    lines = read_bytes(folder / SUMS).decode().splitlines()
    parts = [line for line in lines if line.endswith(ANSWERING)] + [known.model_dump_json()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:NAME_DIGITS]


def _find_changed(folder: Path) -> Iterator[str]:
    """Say which files are not those that were exported."""
    unlisted = {*NEEDED, *(name for name in AT_TIMES if (folder / name).is_file())}
    for line in read_bytes(folder / SUMS).decode("utf-8", "replace").splitlines():
        found = LINE.fullmatch(line)
        if found is None:
            yield f"{SUMS} is damaged"
            continue
        unlisted.discard(found[2])
        if not (folder / found[2]).is_file():
            yield f"{found[2]} is missing"
        elif hash_file(folder / found[2]) != found[1]:
            yield f"{found[2]} is not the file that was exported (sha256)"
    if unlisted:
        yield f"{SUMS} is damaged"
