"""Opens every listed file once: is it a usable image, what is its content, what does it look like.

All bad files are found before anything is said about them; no image is kept in memory.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tasks.artifacts.records import Conversion
from tasks.artifacts.tables import FactRow, Rejected
from tasks.artifacts.words import first_of, listed, printable
from tasks.errors import DataError, ImageError
from tasks.images.decoding.conversion import NO_FACTS, ColorFacts, relevant, settle_conversion
from tasks.images.decoding.decode import decode_image
from tasks.images.facts import Trait, find_traits, measure_facts
from tasks.images.listing.folders import ListedImage, Listing, why_not_regular
from tasks.images.listing.sources import digest_of_files
from tasks.images.perceptual import hash_gray, shrink_to_gray
from tasks.params import IngestParams
from tasks.runtime.progress import progress

LARGEST_FILE_BYTES = 1 << 30
FILES_AT_ONCE = 64
GLANCE_PX = 256  # a side of pictures with a color profile, enough for what is looked at here
CLASS_BAD_FRACTION = 0.1  # of the files of a class may be bad, or ingest.max_bad_fraction if more
CLASS_BAD_FILES = 2  # so many may be bad in any class, however small


@dataclass(frozen=True, slots=True)
class CheckedImage:
    """One usable image.

    Attributes:
        listed: Path, label and what the source says about split and group.
        sha256: Of the bytes of the file.
        width: Pixels, upright.
        height: Pixels, upright.
        mode: Pillow's mode of the file.
        look: Its perceptual hash, None where it is too flat to have one.
        warnings: What the decoder ignored or converted.
        color: What it tells about the conversion of its set.
        traits: What is remarkable about how it looks.
        facts: What the file tells beside its content; `inspect_images` always measures it.
    """

    listed: ListedImage
    sha256: str
    width: int
    height: int
    mode: str
    look: bytes | None
    warnings: tuple[str, ...] = ()
    color: ColorFacts = NO_FACTS
    traits: tuple[Trait, ...] = ()
    facts: FactRow | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """Result of opening all files of a listing.

    Attributes:
        images: Usable ones, sorted by path (code point).
        rejected: The others with those the listing had rejected, sorted by path.
        digests: (path, sha256) of every file that could be read, usable or not.
        rejected_by_class: Of the listed files, sorted by class; classes without any are left out.
        conversion: Of all usable images to 8-bit sRGB.
    """

    images: tuple[CheckedImage, ...]
    rejected: tuple[Rejected, ...]
    digests: tuple[tuple[str, str], ...]
    rejected_by_class: Mapping[str, int]
    conversion: Conversion


@dataclass(frozen=True, slots=True)
class _Opened:
    """One file: its sha256 if it could be read, and either the image or the reason why not."""

    listed: ListedImage
    sha256: str | None
    image: CheckedImage | None
    reason: str


def inspect_images(
    root: Path, listing: Listing, params: IngestParams, *, workers: int
) -> Inspection:
    """Read, decode and hash every listed file, and settle how the set is converted.

    A file is opened again where the set is converted otherwise than it would be alone.

    Args:
        root: Folder on this machine that the paths are relative to.
        listing: The files.
        params: Limits of size.
        workers: Threads; the result does not depend on them.
    """
    opened = _open_in_threads(root, listing.images, params, None, workers=workers)
    images = [item.image for item in opened if item.image is not None]
    conversion = settle_conversion([(image.listed.label, image.color) for image in images])
    again = [image.listed for image in images if _looks_otherwise(image.color, conversion)]
    if again:
        new = _open_in_threads(root, again, params, conversion, workers=workers)
        by_path = {item.listed.path: item for item in new}
        opened = [by_path.get(item.listed.path, item) for item in opened]
    rejected = [Rejected(item.listed.path, item.reason) for item in opened if item.image is None]
    labels = Counter(item.listed.label for item in opened if item.image is None)
    return Inspection(
        images=tuple(item.image for item in opened if item.image is not None),
        rejected=tuple(sorted([*listing.rejected, *rejected], key=lambda item: item.path)),
        digests=tuple((item.listed.path, item.sha256) for item in opened if item.sha256),
        rejected_by_class=dict(sorted(labels.items())),
        conversion=conversion,
    )


def _looks_otherwise(facts: ColorFacts, conversion: Conversion) -> bool:
    if facts == ColorFacts(profiled=facts.profiled):
        return False
    alone = settle_conversion([("", facts)])
    return relevant(alone, facts) != relevant(conversion, facts)


def _open_in_threads(
    root: Path,
    images: Sequence[ListedImage],
    params: IngestParams,
    conversion: Conversion | None,
    *,
    workers: int,
) -> list[_Opened]:
    chunks = [images[at : at + FILES_AT_ONCE] for at in range(0, len(images), FILES_AT_ONCE)]
    opened: list[_Opened] = []
    label = "check" if conversion is None else "convert"
    with ThreadPoolExecutor(workers) as pool, progress(label, len(images)) as meter:
        try:
            for results in pool.map(partial(_open_all, root, params, conversion), chunks):
                opened += results
                meter.advance(len(results))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return opened


def _open_all(
    root: Path, params: IngestParams, conversion: Conversion | None, images: Sequence[ListedImage]
) -> list[_Opened]:
    return [_open(root / image.path, image, params, conversion) for image in images]


def _open(
    file: Path, listed: ListedImage, params: IngestParams, conversion: Conversion | None
) -> _Opened:
    sha256 = None
    try:
        content = read_whole(file)
        sha256 = hashlib.sha256(content).hexdigest()
        decoded = decode_image(
            content,
            max_pixels=params.max_pixels,
            min_side_px=params.min_side_px,
            glance_px=GLANCE_PX,
            suffix=file.suffix,
            conversion=conversion,
        )
    except ImageError as err:
        return _Opened(listed, sha256, None, str(err))
    gray = shrink_to_gray(decoded.image)
    look = hash_gray(gray)
    image = CheckedImage(
        listed,
        sha256,
        decoded.width,
        decoded.height,
        decoded.mode,
        look,
        decoded.warnings,
        decoded.color,
        find_traits(decoded.image, gray, profiled=decoded.color.profiled, hashless=look is None),
        measure_facts(listed.path, content, decoded),
    )
    return _Opened(listed, sha256, image, "")


def read_whole(file: Path) -> bytes:
    """Read a regular file whole.

    Raises:
        ImageError: It is none, is missing, too large or cannot be read.
    """
    try:
        found = file.stat()
        reason = why_not_regular(found.st_mode)
        if reason:
            raise ImageError(reason)
        if found.st_size > LARGEST_FILE_BYTES:
            raise ImageError(f"too large ({found.st_size:,} bytes)")
        return file.read_bytes()
    except FileNotFoundError as err:
        raise ImageError("no such file") from err
    except PermissionError as err:
        raise ImageError(
            "permission denied (give yourself the right to read it: chmod u+r)"
        ) from err
    except OSError as err:
        raise ImageError(f"cannot be read ({err.strerror})") from err


def check_pin(root: Path, listing: Listing, inspection: Inspection) -> None:
    """Make sure that packaged files are the pinned ones; does nothing for other sources.

    Raises:
        DataError: The files are others than the descriptor says.
    """
    pin = listing.pin
    if pin is None:
        return
    table = hashlib.sha256((root / pin.table).read_bytes()).hexdigest()
    found = digest_of_files([*inspection.digests, (pin.table, table)])
    if found != pin.sha256:
        raise DataError(
            f"{listing.origin.name}: the files of package {listing.origin.package} are not those "
            f"of the descriptor (sha256 over all is {found}, expected {pin.sha256}); {pin.advice}"
        )


def check_share_of_bad(inspection: Inspection, params: IngestParams, *, written_to: Path) -> None:
    """Apply the policy about bad files.

    Quarantine tolerates `max_bad_fraction` of all files; of a single class a tenth, or
    `max_bad_fraction` if that is more, and two files of any class.

    Args:
        inspection: What was found.
        params: `on_bad` and `max_bad_fraction`.
        written_to: Where the whole list of bad files lies by now.

    Raises:
        DataError: There are bad files and the policy is fail, or there are too many of them.
    """
    bad, usable = inspection.rejected, len(inspection.images)
    share = len(bad) / max(usable + len(bad), 1)
    if not bad:
        return
    allowed = ""
    if params.on_bad == "fail":
        allowed = "none (ingest.on_bad is fail)"
    elif share > params.max_bad_fraction:
        allowed = f"a share of {params.max_bad_fraction:g} (ingest.max_bad_fraction)"
    classes = _classes_with_many_bad(inspection, params)
    if not allowed and classes:
        largest = max(CLASS_BAD_FRACTION, params.max_bad_fraction)
        allowed = (
            f"a share of {largest:g} of a class ({CLASS_BAD_FRACTION:g}, or "
            "ingest.max_bad_fraction if that is more), and two files of any"
        )
    if not allowed:
        return
    where = f", too many of them of {listed(classes)}" if classes else ""
    lines = (f"{printable(item.path)}: {item.reason}" for item in bad)
    raise DataError(
        f"{len(bad):,} of {usable + len(bad):,} files cannot be used{where}; allowed: {allowed}. "
        f"Repair or remove them; the whole list is in {written_to}:{first_of(lines)}"
    )


def _classes_with_many_bad(inspection: Inspection, params: IngestParams) -> list[str]:
    usable = Counter(image.listed.label for image in inspection.images)
    largest = max(CLASS_BAD_FRACTION, params.max_bad_fraction)
    return [
        f"{label} ({bad:,} of {bad + usable[label]:,})"
        for label, bad in inspection.rejected_by_class.items()
        if bad > CLASS_BAD_FILES and bad / (bad + usable[label]) > largest
    ]


def kinds_of_reasons(rejected: Sequence[Rejected]) -> dict[str, int]:
    """Count rejected files by the kind of reason, the words before the details in parentheses."""
    counts = Counter(item.reason.split(" (")[0] for item in rejected)
    return dict(sorted(counts.items()))
