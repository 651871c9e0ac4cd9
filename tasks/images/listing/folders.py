"""Folders of class folders, train, val and test above them or not, as a list of images.

`Listing` is what every kind of source comes down to. Nothing is opened here. A link is what it
leads to, wherever that lies, as long as a folder does not lead to itself or to a folder above;
pipes and devices are never followed.
"""

import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tasks.artifacts.records import ImageSource, Split
from tasks.artifacts.tables import Rejected
from tasks.artifacts.words import first_of, listed, plural, printable
from tasks.errors import DataError
from tasks.images.decoding.formats import SUFFIXES
from tasks.images.listing.layouts import BOXES, expected, explain_layout, find_splits
from tasks.images.listing.names import is_folder, tidy, why_ignored


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
        ignored: Files left out by their names, counted by kind (`names.why_ignored`).
        pin: Set for packaged data.
        linked: Folders that are links; DVC does not look into them.
        notes: What was read otherwise than it stands, in sentences.
        advice: What to do about listed files that are missing; empty if nothing is known.
    """

    origin: ImageSource
    images: tuple[ListedImage, ...]
    rejected: tuple[Rejected, ...] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)
    pin: Pin | None = None
    linked: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    advice: str = ""


@dataclass(slots=True)
class _Found:
    """What a walk has collected so far."""

    images: list[ListedImage] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    nested: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    linked: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    names: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # by label


def list_folder(source: Path) -> Listing:
    """List the files of every class folder, with the split where there are split folders.

    Args:
        source: <source>/<class>/<image>, or <source>/<train, val, test>/<class>/<image>.

    Raises:
        DataError: The layout is another one; the message names the places and the expected layout.
    """
    root = Path(os.path.realpath(source))
    found = _Found()
    folders = _subfolders(root, root, found)
    splits = find_splits(source, folders)
    if splits:
        for folder, split in splits.items():
            for class_folder in _subfolders(root, root / folder, found):
                _walk_class(root, root / folder / class_folder, split, found)
    else:
        for class_folder in folders:
            _walk_class(root, root / class_folder, None, found)
    _check_layout(source, found)
    return Listing(
        origin=_origin(source),
        images=tuple(sorted(found.images, key=lambda image: image.path)),
        rejected=tuple(sorted(found.rejected, key=lambda item: item.path)),
        ignored=dict(sorted(found.ignored.items())),
        linked=tuple(found.linked),
        notes=tuple(_merged(found)),
    )


def _origin(source: Path) -> ImageSource:
    return ImageSource(
        kind="folder",
        name=printable(source.resolve().name),
        root=source.as_posix(),
        package=None,
        license=None,
        citation=None,
        label_rule=None,
    )


def _entries(folder: Path, found: _Found) -> Iterator[os.DirEntry[str]]:
    """Entries of a folder sorted by name; ignored ones are counted with all that lies below."""
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as err:
        raise DataError(
            f"{printable(str(folder))}: cannot be listed ({err.strerror}); "
            "give yourself the right to read it (chmod u+rx) or take it out of the source"
        ) from err
    for entry in entries:
        kind = why_ignored(entry.name, folder=is_folder(entry))
        if kind:
            found.ignored[kind] += _count_files(entry)
        else:
            yield entry


def _count_files(entry: os.DirEntry[str]) -> int:
    if not entry.is_dir(follow_symlinks=False):
        return 1
    return sum(len(files) for _, _, files in os.walk(entry.path))


def _subfolders(root: Path, folder: Path, found: _Found) -> list[str]:
    """Names of the folders in a folder; images beside them are an error, others are ignored."""
    names = []
    for entry in _entries(folder, found):
        path = _relative(root, entry)
        wrong = _why_not_link(entry)
        if wrong:
            found.rejected.append(Rejected(path=path, reason=wrong))
        elif entry.is_dir():
            names.append(entry.name)
            if entry.is_symlink():
                found.linked.append(path)
        elif Path(entry.name).suffix.lower() in SUFFIXES:
            found.nested.append(path)
        else:
            found.ignored["beside the class folders"] += 1
    return names


def _walk_class(root: Path, folder: Path, split: Split | None, found: _Found) -> None:
    """Collect the files of one class folder."""
    label = _label_of(root, folder)
    found.names[label].add(folder.name)
    count, ignored = len(found.images), found.ignored.total()
    for entry in _entries(folder, found):
        path = _relative(root, entry)
        reason = _why_not(entry)
        if reason:
            found.rejected.append(Rejected(path=path, reason=reason))
        elif entry.is_dir():
            if any(True for _ in _entries(Path(entry.path), found)):  # an empty one is no level
                found.nested.append(path + "/")
        else:
            found.images.append(ListedImage(path=path, label=label, split=split))
    if len(found.images) == count:
        aside = found.ignored.total() - ignored
        files = f" ({plural(aside, 'file')} ignored)" if aside else ""
        found.empty.append(printable(folder.relative_to(root).as_posix()) + files)


def _label_of(root: Path, folder: Path) -> str:
    label = tidy(folder.name)
    if not label or not label.isprintable():
        raise DataError(
            f"{printable(folder.relative_to(root).as_posix())}: the name of a class folder must be "
            "printable UTF-8 text, because it becomes the name of the class; rename the folder"
        )
    return label


def _merged(found: _Found) -> Iterator[str]:
    """Say which class folders are one class, as their names differ in nothing that is seen."""
    for label, names in sorted(found.names.items()):
        if len(names) > 1:
            several = listed([ascii(name) for name in sorted(names)])
            yield f"The folders {several} are read as one class, {label}."


def _relative(root: Path, entry: os.DirEntry[str]) -> str:
    return Path(entry.path).relative_to(root).as_posix()


def _why_not(entry: os.DirEntry[str]) -> str | None:
    """Say why an entry of a class folder is not opened; None if it is a file or a folder."""
    if "\r" in entry.name:
        return "name holds a carriage return"
    wrong = _why_not_link(entry)
    return wrong if wrong or entry.is_dir() else why_not_regular(entry.stat().st_mode)


def _why_not_link(entry: os.DirEntry[str]) -> str | None:
    """Say why a link is not followed; None if it leads to something, or is no link."""
    if not entry.is_symlink():
        return None
    try:
        target = Path(entry.path).resolve(strict=True)
    except FileNotFoundError:
        annex = "annex/objects" in os.readlink(entry.path)
        return "link to nothing" + (" (git annex get fetches it)" if annex else "")
    except (OSError, RuntimeError):  # RuntimeError: a loop, up to Python 3.12
        return "link in a loop"
    if Path(entry.path).parent.resolve().is_relative_to(target):
        return "link to a folder above itself"
    return None


def why_not_regular(mode: int) -> str | None:
    """Say what a file is that is not a regular one; opening a pipe would wait for ever."""
    if stat.S_ISREG(mode):
        return None
    kinds = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFDIR: "folder"}
    return f"not a regular file ({kinds.get(stat.S_IFMT(mode), 'device')})"


def _check_layout(source: Path, found: _Found) -> None:
    """Refuse images above or below the class folders, empty class folders and an empty source."""
    where = printable(source.as_posix())
    if found.nested:
        cause = explain_layout(source)
        raise DataError(
            f"{where}: {expected(source)}, found {plural(len(found.nested), 'entry', 'entries')} "
            f"elsewhere. {cause or 'Move them into class folders'}:"
            f"{first_of(map(printable, found.nested))}"
        )
    if found.empty:
        raise DataError(
            f"{where}: class folders without any image; fill or remove them"
            f"{_of_boxes(found)}:{first_of(found.empty)}{_hint(found)}"
        )
    if not found.images:
        raise DataError(f"{where}: no images; {expected(source)}{_hint(found)}")


def _of_boxes(found: _Found) -> str:
    """Say what images beside labels are: the layout of object detection."""
    if not {"images", "labels"} <= found.names.keys():
        return ""
    return f". {BOXES}"


def _hint(found: _Found) -> str:
    if not found.rejected:
        return ""
    lines = (f"{printable(item.path)}: {item.reason}" for item in found.rejected)
    return f"\nLeft out:{first_of(lines)}"
