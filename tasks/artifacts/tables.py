"""Tables: one dataclass a row, one reader and one writer for all of them, and the manifest."""

import csv
import io
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BeforeValidator,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from tasks.artifacts.files import read_bytes, write_bytes
from tasks.artifacts.records import ModelName, Split
from tasks.errors import ArtifactError

PREFIX = "prefix"  # in the metadata of a mapping, each key of which is a column of the table
Repeated = Annotated[str, AfterValidator(sys.intern)]  # one string for all rows that share it
Side = Literal["nearest", "farthest"]  # of the source
Ratio = Annotated[float | None, BeforeValidator(lambda cell: None if cell == "" else cell)]
Flag = Annotated[bool | None, BeforeValidator(lambda cell: None if cell == "" else cell)]


# rows --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One usable image. `path` is relative to the source's root, with forward slashes."""

    path: str
    label: Repeated
    split: Split
    group: str
    sha256: str
    width: PositiveInt
    height: PositiveInt
    mode: Repeated


@dataclass(frozen=True, slots=True)
class GroupRow:
    """An image and a group that it belongs to, as `ingest.groups` reads it."""

    path: str
    group: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """One file that is left out, and why. `path` is relative to the source's root."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class FactRow:
    """What the file of a usable image tells beside its content (facts.csv), pixels upright.

    `quantization` is the mean of a JPEG's quantization tables (the higher, the coarser), 0 for
    other formats; `camera` is empty where no EXIF data name one; colors are in [0, 255].
    """

    path: str
    width: PositiveInt
    height: PositiveInt
    mode: Repeated
    format: Repeated
    quantization: float
    file_bytes: PositiveInt
    camera: Repeated
    border_red: float
    border_green: float
    border_blue: float
    brightness: float


@dataclass(frozen=True, slots=True)
class TwinRow:
    """The training image of its label that is most like a val or test image (twins.csv).

    `likeness` is the cosine of their whitened features, `deviations` how far that lies above
    pairs of different groups of the class, in robust standard deviations.
    """

    path: str
    split: Split
    nearest: str
    likeness: float
    deviations: float
    twin: bool


@dataclass(frozen=True, slots=True)
class PairRow:
    """One of the likest pairs (pairs/index.csv), likest first."""

    file: str  # JPEG beside the table: the image, then its training image
    path: str
    split: Split
    nearest: str
    deviations: float


@dataclass(frozen=True, slots=True)
class ShiftRow:
    """Shift of one normalization layer, numbered in forward order (shift_profile.csv)."""

    layer: str
    group: str
    index: int
    shift: float


@dataclass(frozen=True, slots=True)
class PlaneRow:
    """One image on the plane that the features were projected to (projection.csv)."""

    x: float
    y: float
    set: Literal["source", "target"]
    label: str  # empty for the source


@dataclass(frozen=True, slots=True)
class LikenessRow:
    """A training image that is most or least like the source (pictures/index.csv).

    `likeness` is its mean cosine with the images of the source card that are most like it.
    """

    file: str  # JPEG beside the table
    path: str
    label: str
    side: Side
    likeness: float


@dataclass(frozen=True)
class HistoryRow:
    """One epoch, numbered on over the phases, which count from 1 (history.csv).

    `rates` is the mean rate over the epoch of the head and of each group.
    """

    phase: int
    epoch: int
    rates: Mapping[str, float] = field(metadata={PREFIX: "lr_"})
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float


@dataclass(frozen=True, slots=True)
class PredictionRow:
    """What the models say about one test image (predictions.csv).

    All but the last is of the shipped model. `probability` is calibrated and of the predicted
    class, `label_probability` the same of the label; `loss` is the negative natural log of that.
    """

    path: str
    label: Repeated
    predicted: Repeated
    probability: float
    label_probability: float
    correct: bool
    loss: float
    baseline_predicted: Repeated


@dataclass(frozen=True, slots=True)
class ClassRow:
    """What the shipped model does with the `n` test images of one class (per_class.csv).

    A ratio of no images is None; its interval is [0, 1].
    """

    class_: str
    n: int
    predicted: int
    recall: Ratio
    recall_low: float
    recall_high: float
    precision: Ratio
    precision_low: float
    precision_high: float
    f1: Ratio


@dataclass(frozen=True, slots=True)
class ConfusionRow:
    """Label and answer of one test image, as DVC's confusion template counts them."""

    actual: Repeated
    predicted: Repeated


@dataclass(frozen=True, slots=True)
class ReliabilityRow:
    """The `n` test images of one model in one bin of similar confidence (reliability.csv)."""

    model: ModelName
    calibrated: bool  # after temperature scaling
    bin: int  # 0: least confident
    confidence: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    n: int


@dataclass(frozen=True, slots=True)
class HardestRow:
    """A test image that the shipped model finds hard (hardest/index.csv), hardest first."""

    file: str  # JPEG beside the table
    path: str
    label: str
    predicted: str
    probability: float
    loss: float


@dataclass(frozen=True)
class AnswerRow:
    """What the exported model says about one image file (the table of `tasks.predict`).

    Where there is an error, all that would be an answer is empty.
    """

    path: str
    predicted: str
    probability: Ratio  # calibrated, of the predicted class
    label_set: str  # the classes that the label is among, as often as is stated; a list in json
    strangeness: Ratio  # 1 where images of the domain end; None: val had too few to tell
    in_domain: Flag
    error: str
    model: str  # the first digits of a sha256 over its files
    probabilities: Mapping[str, float | None] = field(metadata={PREFIX: "p_"})


@dataclass(frozen=True, slots=True)
class SuspectRow:
    """An image whose label is probably wrong (suspects.csv), the most suspicious first.

    The probabilities are those of a model that did not learn from the image or its group.
    """

    path: str
    split: Split
    label: Repeated
    likely: Repeated  # the class that it probably shows
    label_probability: float
    likely_probability: float


if TYPE_CHECKING:
    from _typeshed import DataclassInstance
Row = TypeVar("Row", bound="DataclassInstance")


# reading and writing -----------------------------------------------------------------------------


def columns_of(kind: type["DataclassInstance"], keys: Iterable[str] = ()) -> list[str]:
    """Name the columns of a table: the fields of its dataclass, without an underscore at the end.

    Args:
        kind: The dataclass of a row. A field with a `prefix` in its metadata holds a mapping.
        keys: Of that mapping; each is a column, after the prefix.
    """
    names: list[str] = []
    for one in fields(kind):
        prefix = one.metadata.get(PREFIX)
        names += [one.name.rstrip("_")] if prefix is None else [prefix + key for key in keys]
    return names


def write_rows(path: Path, kind: type[Row], rows: Iterable[Row], keys: Sequence[str] = ()) -> None:
    """Write a table as csv, with the columns of `columns_of`.

    Floats have full precision, booleans are 0 or 1, None is an empty cell, and names that are not
    UTF-8 are their bytes.
    """
    write_bytes(path, table_text(kind, rows, keys).encode("utf-8", "surrogateescape"))


def table_text(
    kind: type[Row], rows: Iterable[Row], keys: Sequence[str] = (), *, header: bool = True
) -> str:
    """Give the text of a table as `write_rows` writes it, without its header where asked."""
    text = io.StringIO()
    plain = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    if header:
        plain.writerow(columns_of(kind, keys))
    for row in rows:  # readers end a row at a carriage return that the plain writer does not quote
        cells = list(cells_of(row, keys))
        returns = any("\r" in cell for cell in cells if isinstance(cell, str))
        (quoted if returns else plain).writerow(cells)
    return text.getvalue()


def cells_of(row: "DataclassInstance", keys: Sequence[str] = ()) -> Iterator[Any]:
    """Give the values of a row in the order of its columns; booleans are 0 or 1."""
    for one in fields(row):
        value = getattr(row, one.name)
        if PREFIX in one.metadata:
            yield from (value[key] for key in keys)
        else:
            yield int(value) if isinstance(value, bool) else value


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """Read a table that `write_rows` wrote.

    Raises:
        ArtifactError: The file is missing, has other columns, or a line of it is no such row.
    """
    text = read_bytes(path).decode("utf-8", "surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        prefix = next((f.metadata[PREFIX] for f in fields(kind) if PREFIX in f.metadata), None)
        keys = [name.removeprefix(prefix) for name in header if prefix and name.startswith(prefix)]
        columns = columns_of(kind, keys)
        if header != columns:
            found = ",".join(header) or "(none)"
            raise ValueError(f"has the columns {found}, expected {','.join(columns)}")
        rows = TypeAdapter(kind)
        return [rows.validate_python(_by_field(kind, keys, columns, cells)) for cells in reader]
    except (csv.Error, ValueError) as err:
        raise ArtifactError(
            f"{path}:{max(reader.line_num, 1)}: {_explain(err)}; run the stage that writes it again"
        ) from err


def _by_field(
    kind: type["DataclassInstance"],
    keys: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[str],
) -> dict[str, str | dict[str, str]]:
    if len(cells) != len(columns):
        raise ValueError(f"has {len(cells)} cells, expected {len(columns)} ({','.join(columns)})")
    left = iter(cells)
    return {
        field.name: {key: next(left) for key in keys} if PREFIX in field.metadata else next(left)
        for field in fields(kind)
    }


def _explain(err: Exception) -> str:
    if not isinstance(err, ValidationError):
        return str(err)
    first = err.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))} is {first['input']!r} ({first['msg']})"


class Manifest:
    """The list of truth: every usable image with label, split and group.

    Rows keep the order of the file. The images of a split are numbered in that order, from 0: row i
    of a pixel store or feature array of that split belongs to image i.
    """

    def __init__(self, rows: Sequence[ManifestRow]) -> None:
        self.rows = tuple(rows)

    @cached_property
    def class_names(self) -> list[str]:
        """Labels sorted by code point; a label's position is its class index."""
        return sorted({row.label for row in self.rows})

    def of(self, split: Split) -> list[ManifestRow]:
        """Rows of one split, in order."""
        return [row for row in self.rows if row.split == split]

    def labels(self, split: Split) -> NDArray[np.int64]:
        """Class indices of one split: int64 (N,)."""
        index = {name: number for number, name in enumerate(self.class_names)}
        return np.array([index[row.label] for row in self.of(split)], dtype=np.int64)

    def groups(self, split: Split) -> list[str]:
        """Groups of one split, one for each image."""
        return [row.group for row in self.of(split)]


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write manifest.csv."""
    write_rows(path, ManifestRow, manifest.rows)


def read_manifest(path: Path) -> Manifest:
    """Read manifest.csv.

    Raises:
        ArtifactError: The file is missing or no manifest.
    """
    return Manifest(read_rows(path, ManifestRow))
