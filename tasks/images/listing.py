"""What every kind of source comes down to: labelled images, files left out, where they lie."""

import difflib
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from tasks.records import ImageSource, Rejected, Split

SHOWN = 10  # examples in an error message


@dataclass(frozen=True, slots=True)
class ListedImage:
    """One file that should be an image. `path` is relative to the root, with forward slashes."""

    path: str
    label: str
    split: Split | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Pin:
    """What the files of a packaged data set must be.

    Attributes:
        sha256: As `digest_of_files` gives it.
        table: Path of the table of labels, relative to the root; it counts as one of the files.
        advice: What to do when the files are others.
    """

    sha256: str
    table: str
    advice: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The content of a source, before any file was opened.

    Attributes:
        origin: Where the images lie.
        images: Sorted by path (code point).
        rejected: Entries that can be no image of a class, such as links to folders and pipes.
        ignored: Number of files left out by the list in `folders.IGNORED_NAMES` and hidden ones.
        pin: Set for packaged data.
        linked: Folders that are links; DVC does not look into them.
    """

    origin: ImageSource
    images: tuple[ListedImage, ...]
    rejected: tuple[Rejected, ...] = ()
    ignored: int = 0
    pin: Pin | None = None
    linked: tuple[str, ...] = ()


def printable(text: str) -> str:
    r"""Give a name that any terminal and any UTF-8 file can hold: odd characters as \n, \udcff."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def first_of(lines: Iterable[str], shown: int = SHOWN) -> str:
    """Join the first lines, one below the other and indented, and say how many more there are."""
    every = list(lines)
    more = [f"... and {len(every) - shown:,} more"] if len(every) > shown else []
    return "".join(f"\n  {line}" for line in [*every[:shown], *more])


def nearest_name(name: str, known: Collection[str]) -> str:
    """Give ` (did you mean ...?)` for the known name most like this one, or nothing."""
    last = name.rsplit("/", 1)[-1]
    alike = [candidate for candidate in known if candidate.rsplit("/", 1)[-1] == last]
    match = difflib.get_close_matches(name, alike or known, n=1, cutoff=0.5)
    return f" (did you mean {printable(match[0])}?)" if match else ""
