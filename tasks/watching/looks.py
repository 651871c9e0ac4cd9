"""The folder of looks: whole at any moment, so that no image is lost or counts twice.

A look is one file, looks/00012.safetensors: what the model made of its images, their names, and
its record. It is there once its file is renamed; looks.csv and look.json are written from those
files, and again after a kill.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from tasks.artifacts.arrays import Array, read_tensors, write_tensors
from tasks.artifacts.records import Estimate, Record, write_record
from tasks.artifacts.tables import Ratio, write_rows
from tasks.delivery.answer_file import holding
from tasks.delivery.appearance import FACTS, Appearance, Fact
from tasks.errors import ArtifactError
from tasks.watching.shifts import Seen

LOOKS, TABLE, NEWEST = "looks", "looks.csv", "look.json"

Verdict = Literal["fine", "changed", "waiting"]
Window = Literal["new", "recent"]
Subject = Literal["features", "strangers", "classes", "kinds", Fact]


class ShiftTest(Record):
    """One test of a look."""

    of: Subject
    window: Window  # the images that no look judged before, or the newest of all looks
    images: int
    p_value: float
    corrected: float  # for the other tests and for all looks; small enough is an alarm


class ShareShift(Record):
    """How often a class is predicted, or a kind of file comes, of the new images and held out."""

    name: str
    now: float
    held_out: float


class FactShift(Record):
    """The median of a fact of appearance, of the new images and of those that were held out."""

    name: Fact
    now: float | None
    held_out: float | None


class LookRecord(Record):
    """What a look found (look.json: the newest one)."""

    number: int
    judged: int  # looks that judged images of this model, this one included
    at: str  # UTC
    model: str
    verdict: Verdict
    images: int  # usable ones that this look saw first
    bad: int  # files that could not be used, seen first
    judged_images: int  # with those that waited
    out_of_domain: Estimate | None
    expected: float  # share of the held-out images that is out of the domain
    classes: list[ShareShift]  # the one that changed most first
    kinds: list[ShareShift]  # of files, in the same order
    appearance: list[FactShift]  # in the order of `tasks.delivery.appearance.FACTS`
    tests: list[ShiftTest]
    sheet: str | None  # of the strangest images, beside look.json
    words: str


@dataclass(frozen=True, slots=True)
class LookRow:
    """A look in looks.csv; p-values are corrected, the smallest of both windows."""

    look: int
    at: str
    model: str
    verdict: Verdict
    images: int
    bad: int
    judged_images: int
    out_of_domain: Ratio
    expected: float
    p_features: Ratio
    p_strangers: Ratio
    p_classes: Ratio
    p_kinds: Ratio
    p_brightness: Ratio
    p_border: Ratio
    p_sharpness: Ratio
    p_megapixels: Ratio
    p_aspect: Ratio
    p_bytes_per_pixel: Ratio
    p_quantization: Ratio
    brightness: Ratio
    border: Ratio
    sharpness: Ratio
    megapixels: Ratio
    aspect: Ratio
    bytes_per_pixel: Ratio
    quantization: Ratio
    words: str


@dataclass(frozen=True)
class _Kept:
    """A look with the files that it saw."""

    look: LookRecord
    names: list[str]
    bad: list[str]
    file: Path

    def seen(self) -> Seen:
        arrays = read_tensors(self.file)
        features = arrays["features"].astype(np.float32)
        looks = Appearance.unpack(arrays)
        return Seen(features, arrays["scores"], arrays["predicted"], looks)


class LookFolder:
    """Takes looks; use as a context manager. One process at a time can be in it.

    Args:
        path: The folder; one that is there is gone on with.
        model: Name of the model that looks now. Looks of others are kept, and judge nothing.

    Raises:
        ArtifactError: It cannot be written, holds damaged files, or another process is in it.
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path, self._model, self._held = path, model, ExitStack()
        self._kept: list[_Kept] = []

    def __enter__(self) -> Self:
        with ExitStack() as held:
            held.enter_context(holding(self.path, Path(os.path.realpath(self.path))))
            if self.path.is_file():
                raise ArtifactError(f"{self.path}: is a file; name a folder for the looks")
            self._kept = _read_all(self.path)
            if self._kept:  # a kill may have come before they were written
                self._write_tables()
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    @property
    def number(self) -> int:
        """Number of the next look."""
        return 1 + (self._kept[-1].look.number if self._kept else 0)

    @property
    def judged(self) -> int:
        """How many looks of this model judged images."""
        return sum(look.verdict != "waiting" for look in self.looks())

    def looks(self) -> list[LookRecord]:
        """Give the looks of this model, the oldest first."""
        return [kept.look for kept in self._own()]

    def unseen(self, names: Sequence[str]) -> list[str]:
        """Leave out what a look has seen; images that wait for another model are new to this one.

        Files that could not be used are tried again.
        """
        seen: set[str] = set()
        for model in {kept.look.model for kept in self._kept}:
            kept = [one for one in self._kept if one.look.model == model]
            if model != self._model:  # what waits for it is never judged
                kept = kept[: len(kept) - sum(1 for _ in takewhile(_waits, reversed(kept)))]
            seen |= {name for one in kept for name in one.names}
        return [name for name in dict.fromkeys(names) if name not in seen]

    def count_new_bad(self, names: Sequence[str]) -> int:
        """Count the files that no look found bad before."""
        known = {name for kept in self._kept for name in kept.bad}
        return sum(name not in known for name in names)

    def waiting(self) -> list[Seen]:
        """Give the images that were seen after the last look that judged."""
        after = takewhile(_waits, reversed(self._own()))
        return [kept.seen() for kept in after][::-1]

    def before(self, most: int) -> list[Seen]:
        """Give what the newest looks saw that hold `most` images, or all; the oldest first.

        They begin after the last change that was found: it has been told, and may be repaired.
        """
        parts: list[Seen] = []
        for kept in reversed(self._own()):
            told = kept.look.verdict == "changed"
            if told or sum(len(part.scores) for part in parts) >= most:
                break
            parts.append(kept.seen())
        return parts[::-1]

    def append(
        self, look: LookRecord, seen: Seen, names: Sequence[str], bad: Sequence[str]
    ) -> None:
        """Take a look.

        Args:
            look: Its record.
            seen: Its images.
            names: Of the usable ones.
            bad: Of the files that could not be used.
        """
        file = self.path / LOOKS / f"{look.number:05d}.safetensors"
        arrays: dict[str, Array] = {
            "features": seen.features.astype(np.float16),
            "scores": seen.scores,
            "predicted": seen.predicted,
            **seen.appearance.pack(),
            "files": np.frombuffer(json.dumps([list(names), list(bad)]).encode(), np.uint8),
        }
        write_tensors(file, arrays, {"look": look.model_dump_json()})
        self._kept.append(_Kept(look, list(names), list(bad), file))
        self._write_tables()

    def _own(self) -> list[_Kept]:
        return [kept for kept in self._kept if kept.look.model == self._model]

    def _write_tables(self) -> None:
        looks = [kept.look for kept in self._kept]
        write_rows(self.path / TABLE, LookRow, map(_row, looks))
        write_record(self.path / NEWEST, looks[-1])


def _waits(kept: _Kept) -> bool:
    return kept.look.verdict == "waiting"


def read_looks(folder: Path, *, after: int) -> list[LookRecord]:
    """Read the looks of a folder whose number is above `after`, the oldest first.

    Raises:
        ArtifactError: A file is damaged.
    """
    return [kept.look for kept in _read_all(folder) if kept.look.number > after]


def _read_all(folder: Path) -> list[_Kept]:
    return [_read(file) for file in sorted((folder / LOOKS).glob("*.safetensors"))]


def _read(file: Path) -> _Kept:
    try:
        with safe_open(file, framework="numpy") as opened:
            look = LookRecord.model_validate_json(opened.metadata()["look"])
            names, bad = json.loads(opened.get_tensor("files").tobytes())
        return _Kept(look, names, bad, file)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, ValidationError) as err:
        raise ArtifactError(
            f"{file}: is no look of this version; move it away, and its images are seen anew"
        ) from err


def _row(look: LookRecord) -> LookRow:
    found = {of: min(p_values) for of, p_values in _corrected(look)}
    medians = {fact.name: fact.now for fact in look.appearance}
    return LookRow(
        look=look.number,
        at=look.at,
        model=look.model,
        verdict=look.verdict,
        images=look.images,
        bad=look.bad,
        judged_images=look.judged_images,
        out_of_domain=look.out_of_domain.value if look.out_of_domain else None,
        expected=look.expected,
        p_features=found.get("features"),
        p_strangers=found.get("strangers"),
        p_classes=found.get("classes"),
        p_kinds=found.get("kinds"),
        **{f"p_{name}": found.get(name) for name in FACTS},
        **{name: medians.get(name) for name in FACTS},
        words=look.words,
    )


def _corrected(look: LookRecord) -> Iterator[tuple[Subject, list[float]]]:
    for of in dict.fromkeys(test.of for test in look.tests):
        yield of, [test.corrected for test in look.tests if test.of == of]
