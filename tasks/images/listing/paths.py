r"""Which files a user's paths mean: as they stand, or rewritten.

Rewrites without doubt are taken: spaces around the path, `\` for `/`, accents composed or not (NFC,
NFD). Others are only named, once for all rows: another case, another suffix, other folders, URLs.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from tasks.artifacts.words import listed, printable, shortened
from tasks.errors import DataError
from tasks.images.listing.names import why_ignored

MOST_FILES = 2_000_000  # that are looked at for rewrites
LONGEST = 120  # characters of a path in a sentence


@dataclass(frozen=True, slots=True)
class Matched:
    """The paths of a table, as far as they are known.

    Attributes:
        paths: One for each cell, as it is known; the cell itself where it is not.
        notes: Which rewrites were taken, in sentences.
        missing: Positions of the cells that are not known.
        advice: Which rewrite would fit those, or that none does; empty if nothing is missing.
        fits: Whether some rewrite would fit some of those.
    """

    paths: list[str]
    notes: list[str]
    missing: list[int]
    advice: str
    fits: bool


def match_paths(
    cells: Sequence[str],
    *,
    holds: Callable[[str], bool],
    known: Callable[[], Collection[str]],
    what: str,
) -> Matched:
    """Find out which known paths the cells mean.

    Args:
        cells: Paths as they stand, with forward or backward slashes.
        holds: Whether a path is known as it stands.
        known: Gives all known paths; called only if some cell is not known as it stands.
        what: What known paths do, `exist`.
    """
    missing = [place for place, cell in enumerate(cells) if not holds(cell)]
    paths, notes = list(cells), []
    if not missing:
        return Matched(paths, [], [], "", fits=False)
    files = known()
    composed = _index(files, _composed)
    taken, first = Counter[str](), dict[str, str]()
    for place in missing:
        words, path = _without_doubt(cells[place], holds, composed)
        if path is not None:
            paths[place] = path
            taken[words] += 1
            first.setdefault(words, _example(cells[place], path))
    notes = [
        f"{count:,} of {len(cells):,} paths {what} only {words}; they were read so "
        f"({first[words]})."
        for words, count in taken.items()
    ]
    missing = [place for place in missing if not holds(paths[place])]
    advice, fits = _advise(cells, missing, files, what) if missing else ("", False)
    return Matched(paths, notes, missing, advice, fits)


def _without_doubt(
    cell: str, holds: Callable[[str], bool], composed: dict[str, str]
) -> tuple[str, str | None]:
    """Rewrite a path in the ways that leave no doubt; None where it still is not known."""
    path, words = cell, []
    for rewritten, how in (
        (path.strip(), "without the spaces around them"),
        (path.strip().replace("\\", "/"), "with \\ as /"),
    ):
        if rewritten != path:
            path = rewritten
            words.append(how)
    path = os.path.normpath(path)
    if holds(path):
        return " and ".join(words) or "without ./", path
    found = composed.get(_composed(path))
    return " and ".join([*words, "with accents as the disk has them (NFC or NFD)"]), found


def _composed(path: str) -> str:
    return unicodedata.normalize("NFC", path)


def _example(cell: str, path: str) -> str:
    """Show one rewrite; as escapes where both look the same."""
    if _composed(cell) == _composed(path):
        return f"{shortened(ascii(cell), LONGEST)} as {shortened(ascii(path), LONGEST)}"
    return f"{shortened(cell, LONGEST)} as {shortened(path, LONGEST)}"


def _index(files: Iterable[str], key: Callable[[str], str]) -> dict[str, str]:
    """Map keys to the one file that has it; keys of several files are left out."""
    found, several = dict[str, str](), set[str]()
    for file in files:
        name = key(file)
        if name in found:
            several.add(name)
        found[name] = file
    return {name: file for name, file in found.items() if name not in several}


# with doubt ---------------------------------------------------------------------------------------


def _advise(
    cells: Sequence[str], missing: Sequence[int], files: Collection[str], what: str
) -> tuple[str, bool]:
    """Say which rewrite fits most of the missing paths, and whether one fits any."""
    plain = [_plain(cells[place]) for place in missing]
    best: tuple[int, str, str] = (0, "", "")
    for words, pairs in _attempts(plain, files):
        if len(pairs) > best[0]:
            position, path = next(iter(pairs.items()))
            best = (len(pairs), words(pairs), _example(cells[missing[position]], path))
    known = len(cells) - len(missing)
    head = f"{known:,} of {len(cells):,} {what}"
    if not best[0]:
        first = listed([shortened(cells[place], LONGEST) for place in missing])
        return (
            f"{head}; no file of a like name was found for {first}; bring the files or remove the "
            "rows",
            False,
        )
    more = "more " if known else ""
    fit = "fits" if best[0] == 1 else "fit"
    return f"{head}; {best[0]:,} {more}{fit} {best[1]} ({best[2]}). Write them so", True


def _plain(cell: str) -> str:
    return _composed(os.path.normpath(cell.strip().replace("\\", "/")))


Pairs = dict[int, str]  # position among the missing paths -> the file that it would be


def _attempts(
    plain: Sequence[str], files: Collection[str]
) -> Iterator[tuple[Callable[[Pairs], str], Pairs]]:
    """Try rewrites one by one, the likeliest first; each with words for what it found."""
    exact, decoded = _index(files, _composed), [_decoded(path) for path in plain]
    folded = _index(files, lambda file: _composed(file).casefold())
    bare = _index(files, lambda file: _bare(_composed(file)))
    by_name = _index(files, lambda file: PurePosixPath(_composed(file)).name)
    loose = _index(files, lambda file: _bare(_composed(file)).casefold())
    loosest = _index(files, lambda file: _bare(PurePosixPath(_composed(file)).name).casefold())
    yield _say("with %20 and the like decoded"), _found(decoded, exact.get)
    yield _say("in another case"), _found(plain, lambda path: folded.get(path.casefold()))
    yield _say_suffix, _found(plain, lambda path: bare.get(_bare(path)))
    yield _say_cut(plain), _found(plain, lambda path: _end_of(path, exact))
    yield (
        _say_cut(decoded, ", with %20 and the like decoded"),
        _found(decoded, lambda path: _end_of(path, exact)),
    )
    yield _say_folder(decoded), _found(decoded, lambda path: by_name.get(_name(path)))
    yield (
        _say("without their first folders, in another case or with another suffix"),
        _found([_bare(path).casefold() for path in decoded], lambda path: _end_of(path, loose)),
    )
    yield (
        _say("by their names alone, in other folders, in another case or with another suffix"),
        _found(decoded, lambda path: loosest.get(_bare(_name(path)).casefold())),
    )


def _found(paths: Sequence[str], look_up: Callable[[str], str | None]) -> Pairs:
    pairs = ((place, look_up(path)) for place, path in enumerate(paths))
    return {place: path for place, path in pairs if path is not None}


def _say(words: str) -> Callable[[Pairs], str]:
    return lambda _: words


def _say_suffix(pairs: Pairs) -> str:
    suffixes = {PurePosixPath(path).suffix for path in pairs.values()}
    return f"with the suffix {suffixes.pop()}" if len(suffixes) == 1 else "with other suffixes"


def _say_cut(paths: Sequence[str], more: str = "") -> Callable[[Pairs], str]:
    def say(pairs: Pairs) -> str:
        cuts = {paths[place][: -len(_composed(file))] for place, file in pairs.items()}
        if len(cuts) == 1:
            return f"without {shortened(cuts.pop(), LONGEST)} in front{more}"
        return f"without their first folders{more}"

    return say


def _say_folder(paths: Sequence[str]) -> Callable[[Pairs], str]:
    def say(pairs: Pairs) -> str:
        starts = {
            file[: -len(paths[place])] if _composed(file).endswith(f"/{paths[place]}") else ""
            for place, file in pairs.items()
        }
        if len(starts) == 1 and "" not in starts:
            return f"with {shortened(starts.pop(), LONGEST)} in front"
        return "by their names alone, in other folders"

    return say


def _decoded(path: str) -> str:
    """Path of a URL, with %20 and the like decoded."""
    named = re.match(r"[a-z]{2,}:/", path, re.IGNORECASE)  # normpath made one slash of two
    return _composed(unquote(urlsplit(path).path if named else path))


def _bare(path: str) -> str:
    """Cut a short suffix off, which is what follows the last dot."""
    return re.sub(r"\.\w{1,5}$", "", path)


def _name(path: str) -> str:
    return PurePosixPath(path).name


def _end_of(path: str, files: dict[str, str]) -> str | None:
    """Find the file that the end of a path names, the longest end first."""
    parts = path.split("/")
    ends = ("/".join(parts[at:]) for at in range(1, len(parts)))
    return next((files[end] for end in ends if end in files), None)


def files_below(root: Path, *, most: int | None = MOST_FILES) -> list[str]:
    """List the files below a folder that may be images, relative to it; links are not followed.

    Args:
        root: The folder.
        most: So many files end the search; None: none do.

    Raises:
        DataError: A folder cannot be read.
    """
    found: list[str] = []
    for folder, folders, files in os.walk(root, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not why_ignored(name, folder=True))
        below = os.path.relpath(folder, root)
        found += (
            os.path.normpath(os.path.join(below, name))
            for name in sorted(files)
            if not why_ignored(name)
        )
        if most is not None and len(found) > most:
            break
    return found


def _refuse(err: OSError) -> None:
    raise DataError(f"{printable(str(err.filename))}: cannot be read ({err.strerror})") from err
