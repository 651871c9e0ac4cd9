"""The user's verdicts on labels: a csv of path,label,drop, read and applied by ingest."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tasks.artifacts.words import first_of, listed, printable
from tasks.errors import DataError
from tasks.images.listing.csv_file import Line, read_lines
from tasks.images.listing.names import nearest_name, tidy
from tasks.images.listing.tables import match_images
from tasks.images.validate import CheckedImage, Inspection

YES, NO = {"yes", "true", "1"}, {"", "no", "false", "0"}


@dataclass(frozen=True)
class Corrections:
    """What the user says of images, by path: another label, or that they are left out."""

    labels: Mapping[str, str] = field(default_factory=dict)
    dropped: Collection[str] = frozenset()


@dataclass(frozen=True)
class Corrected:
    """The usable images after the user's verdicts.

    Attributes:
        inspection: Without the dropped images; the others carry their corrected labels.
        relabeled: Paths of the images that got another label than they had.
        dropped: Number of usable images that were left out.
        emptied: Classes of which no image is left, sorted.
    """

    inspection: Inspection
    relabeled: Collection[str]
    dropped: int
    emptied: Sequence[str]


def read_corrections(path: Path, known: Collection[str], classes: Collection[str]) -> Corrections:
    """Read the user's verdicts; a file with a header only gives none.

    Args:
        path: csv of path and label, drop or both; a row has either a label or `yes` in drop.
        known: Paths of all images of the source, relative to its root.
        classes: Labels of the source; no other one is taken.

    Raises:
        DataError: A path is no image of the source, or rows are wrong; the message lists them (10
            at most).
    """
    lines = read_lines(path, required=("path",), optional=("label", "drop"))
    images = match_images(path, lines, known)
    seen, wrong = dict[str, int](), list[str]()
    for line, image in zip(lines, images, strict=True):
        problems = list(_problems(line, classes))
        if image in seen:
            problems.append(f"{printable(image)} stands in line {seen[image]} already")
        seen.setdefault(image, line.number)
        wrong += [f"line {line.number}: {problem}" for problem in problems]
    if wrong:
        raise DataError(
            f"{path}: rows are wrong; allowed: a path with a class of the source as label, or with "
            f"yes in the column drop:{first_of(wrong)}"
        )
    labels = {image: _label(line) for image, line in zip(images, lines, strict=True)}
    labels = {image: label for image, label in labels.items() if label}
    return Corrections(labels, frozenset(seen) - set(labels))


def _label(line: Line) -> str:
    return tidy(line.cells.get("label", ""))


def _problems(line: Line, classes: Collection[str]) -> Iterator[str]:
    label, drop = _label(line), line.cells.get("drop", "").strip().lower()
    if drop not in YES | NO:
        yield f"drop is {printable(drop)!r}; allowed: yes, no or nothing"
    elif label and drop in YES:
        yield f"both a label ({printable(label)}) and drop"
    elif not label and drop in NO:
        yield "neither a label nor yes in the column drop"
    if label and label not in classes:
        hint = nearest_name(label, classes) or f"; it has {listed(sorted(classes))}"
        yield f"{printable(label)} is no class of the source{hint}"


def apply_corrections(inspection: Inspection, corrections: Corrections) -> Corrected:
    """Give usable images the user's labels and leave out those that the user dropped."""
    kept = [one for one in inspection.images if one.listed.path not in corrections.dropped]
    images = tuple(_relabel(image, corrections.labels) for image in kept)
    return Corrected(
        replace(inspection, images=images),
        [new.listed.path for old, new in zip(kept, images, strict=True) if new is not old],
        len(inspection.images) - len(kept),
        sorted(
            {one.listed.label for one in inspection.images} - {one.listed.label for one in images}
        ),
    )


def _relabel(image: CheckedImage, labels: Mapping[str, str]) -> CheckedImage:
    label = labels.get(image.listed.path, image.listed.label)
    if label == image.listed.label:
        return image
    return replace(image, listed=replace(image.listed, label=label))


def say_corrections(corrected: Corrected, tested: Collection[str]) -> Sequence[str]:
    """Say in a sentence what was corrected; `tested` are the paths of the test images."""
    if not corrected.relabeled and not corrected.dropped:
        return []
    in_test = len(set(corrected.relabeled) & set(tested))
    judged = f" Of those with another label {in_test:,} are tested by it." if in_test else ""
    gone = f" No image is left of {listed(corrected.emptied)}." if corrected.emptied else ""
    return [
        f"By ingest.corrections {len(corrected.relabeled):,} images have another label and "
        f"{corrected.dropped:,} were left out.{gone}{judged}"
    ]
