"""What names of files and folders mean: splits, companions, likeness. Nothing is opened here."""

import difflib
import os
import re
import shlex
import unicodedata
from collections.abc import Collection
from pathlib import Path

from tasks.artifacts.records import Split
from tasks.artifacts.words import first_of, plural, printable
from tasks.errors import DataError

# splits -------------------------------------------------------------------------------------------

SPLIT_WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(
        ("val", "valid", "validation", "validate", "validating", "dev", "devel", "development"),
        "val",
    ),
    **dict.fromkeys(("eval", "evaluation", "evaluate"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "holdout"), "test"),
}
# What may stand beside the word of a split and changes nothing: train_1, test-set, val2017, trainA.
_BESIDE = {"set", "split", "data", "dataset", "images", "image", "imgs", "img", "folder", "part"}


def split_of(name: str) -> Split | None:
    """Give the split that a name means, whatever its case, number or suffix; None if it means none.

    `01_train`, `Train-Set`, `val2017` and `hold out` are words for a split, `train_cat` is none.
    """
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_]+", name)
    joined = "_".join(words).lower().replace("hold_out", "holdout")
    told = joined.replace("train_val", "trainval").split("_")
    bare = [
        word if word in SPLIT_WORDS else re.sub(r"(?<=.)(set|split|data)$", "", word)
        for word in told
        if word not in _BESIDE and not word.isdigit() and len(word) > 1
    ]
    return SPLIT_WORDS.get(bare[0]) if len(bare) == 1 else None


# companions ---------------------------------------------------------------------------------------

# Left out and counted, besides every name that starts with a dot.
_OF_SYSTEMS = re.compile(
    r"__macosx|__pycache__|@eadir|#recycle|\$recycle\.bin|system volume information|lost\+found"
    r"|desktop\.ini|(eh)?thumbs\.db(:.*)?|icon\r|.*:zone\.identifier"
)
# What programs write beside pictures. Other suffixes, and none, are judged by the content.
_COMPANIONS = re.compile(
    r"\.(txt|xml|jsonl?|[ct]sv|ya?ml|toml|ini|cfg|md|rst|html?|log|pdf|docx?|xlsx?|od[st]|rtf|xmp|aae"
    r"|parquet|pp3|dop|url|lnk|db|info|py|ipynb|md5|sha1|sha256|dvc)"
)
_UNFINISHED = re.compile(r"\.(crdownload|opdownload|download|part|partial|aria2|tmp|temp)")
_BACKUPS = re.compile(r"\.(bak|orig|old|swp)")


def why_ignored(name: str, *, folder: bool = False) -> str | None:
    """Say of what kind a file or folder is that is never data, told by its name; None if it may be.

    The kinds: hidden, left by a system, backup, unfinished download, or the suffix of a companion.
    """
    if _OF_SYSTEMS.fullmatch(name.lower()):
        return "left by a system"
    if name.startswith("."):
        return "hidden"
    suffix = Path(name).suffix.lower()
    if folder:
        return None
    if name.endswith("~") or _BACKUPS.fullmatch(suffix):
        return "backup"
    if _UNFINISHED.fullmatch(suffix):
        return "unfinished download"
    return suffix if _COMPANIONS.fullmatch(suffix) else None


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a folder or leads to one; a link in a loop is none."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


# likeness -----------------------------------------------------------------------------------------

# Letters of other scripts that look like Latin ones.
_LOOKALIKES = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455"  # Cyrillic
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0425"
    "\u03bf\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a7",  # Greek
    "aeopcyxijs" + "ABEKMHOPCTX" + "oABEZHIKMNOPTX",
)
MOST_COMPARED = 10_000  # names; it takes about a second
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060\ufeff]")


def tidy(name: str) -> str:
    """Give a name without spaces around it and with composed accents (NFC)."""
    return unicodedata.normalize("NFC", name).strip()


def look_of(name: str) -> str:
    """Give what a person sees of a name: no marks that do not show, one way for each letter."""
    shown = unicodedata.normalize("NFKC", _INVISIBLE.sub("", name)).translate(_LOOKALIKES)
    return " ".join(shown.split())


def nearest_name(name: str, known: Collection[str]) -> str:
    """Give ` (did you mean ...?)` for the known name most like this one, or nothing.

    Where both look the same, the difference is shown as escapes. Among very many names only those
    with the same last part are compared.
    """
    last = name.rsplit("/", 1)[-1]
    alike = [candidate for candidate in known if candidate.rsplit("/", 1)[-1] == last]
    near = alike or known
    if len(near) > MOST_COMPARED:
        return ""
    match = difflib.get_close_matches(name, near, n=1, cutoff=0.5)
    if not match:
        return ""
    if look_of(name) == look_of(match[0]):
        return f" (did you mean {match[0]!a}? This is {name!a})"
    return f" (did you mean {printable(match[0])}?)"


# names that are no text ---------------------------------------------------------------------------

# cp1252 leaves five bytes without a letter; they become \x81 and the like, so that no names merge.
_RENAME = (
    "import os, sys; [os.rename(a, b) for d, s, f in os.walk(os.fsencode(sys.argv[1]), "
    'topdown=False) for n in s + f if n.decode("utf8", "ignore").encode() != n for a, b in '
    '[(os.path.join(d, n), os.path.join(d, n.decode("cp1252", "backslashreplace").encode()))] '
    "if not os.path.lexists(b)]"
)


def check_names(source: Path) -> None:
    """Make sure that every name below a folder is UTF-8; DVC can hash no others.

    Hidden files count. Folders behind links do not: DVC does not look into them.

    Raises:
        DataError: Some are not; the message has the command that renames them.
    """
    wrong = []
    for folder, folders, files in os.walk(os.fsencode(source)):
        for name in sorted(folders + files):
            try:
                name.decode("utf-8")
            except UnicodeDecodeError:
                wrong.append(os.path.relpath(os.path.join(folder, name), os.fsencode(source)))
    if wrong:
        names = (printable(path.decode("utf-8", "surrogateescape")) for path in sorted(wrong))
        raise DataError(
            f"{source}: {plural(len(wrong), 'name')} below it, hidden ones too, "
            f"{'is' if len(wrong) == 1 else 'are'} no UTF-8, and DVC can version no such files. "
            "Rename them; this command does it, taking them for Windows-1252 (cp1252; for another "
            f"encoding put its name there):\npython3 -c {shlex.quote(_RENAME)} "
            f"{shlex.quote(str(source))}{first_of(names)}"
        )
