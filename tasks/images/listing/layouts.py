"""Which layout a folder has: classes, splits above classes, or another one and what to do then."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.artifacts.records import SPLITS, Split
from tasks.artifacts.words import listed, plural, printable
from tasks.errors import DataError
from tasks.images.listing.names import SPLIT_WORDS, is_folder, split_of, why_ignored

BOXES = (
    "Folders images and labels are the layout of object detection, with boxes; here every class "
    "needs a folder of images"
)


@dataclass(frozen=True, slots=True)
class Inside:
    """What a folder holds itself, without what is ignored; names sorted by code point."""

    files: tuple[str, ...]
    folders: tuple[str, ...]


def look_into(folder: Path) -> Inside:
    """List what a folder holds itself; nothing where it cannot be listed."""
    try:
        with os.scandir(folder) as scan:
            entries = [(entry.name, is_folder(entry)) for entry in scan]
    except OSError:
        entries = []
    kept = sorted(
        (name, is_dir) for name, is_dir in entries if not why_ignored(name, folder=is_dir)
    )
    return Inside(
        tuple(name for name, is_dir in kept if not is_dir),
        tuple(name for name, is_dir in kept if is_dir),
    )


def expected(source: Path) -> str:
    """Say which layouts are read."""
    where = printable(source.as_posix())
    return f"expected {where}/<class>/<image> or {where}/<train, val, test>/<class>/<image>"


def find_splits(source: Path, folders: Sequence[str]) -> dict[str, Split]:
    """Map the folders of a source to splits; empty where they are classes.

    Raises:
        DataError: They are splits, but hold no class folders, or not every one is a split, or two
            mean the same, or train is missing.
    """
    meant = {name: split for name in folders if (split := split_of(name))}
    if not meant:
        _refuse_joined_names(source, folders)
        return {}
    insides = {name: look_into(source / name) for name in folders}
    if not any(insides[name].folders for name in meant):
        _refuse_flat_splits(source, meant, insides)
        return {}
    odd = [name for name in folders if name not in meant]
    if odd:
        _refuse_odd_folders(source, meant, odd, insides)
    _refuse_doubled(source, meant, insides)
    _refuse_unlabeled(source, insides)
    _check_each_once(source, meant)
    return meant


def _refuse_joined_names(source: Path, folders: Sequence[str]) -> None:
    """Refuse folders such as train_cat and test_cat, each of which means a split and a class."""
    joined = {name: found for name in folders if (found := _split_and_class(name))}
    classes = {label for split, label in joined.values() if split == "train"}
    shared = [label for split, label in joined.values() if split != "train" and label in classes]
    if len(joined) < len(folders) or not shared:
        return
    pair = [name for name, (_, label) in joined.items() if label == shared[0]]
    pair.sort(key=lambda name: SPLITS.index(joined[name][0]))
    moved = "/".join(joined[pair[0]])
    raise DataError(
        f"{printable(source.as_posix())}: the names {_names(pair)} mean a split and a class at "
        f"once; {expected(source)}. Move {printable(pair[0])} to {printable(moved)} and so on, or "
        "set ingest.source to a csv with the columns path,label,split"
    )


def _split_and_class(name: str) -> tuple[Split, str] | None:
    """Give what a name such as train_cat or cat-test means; None where it means no such thing."""
    words = [word for word in re.split(r"[\W_]+", name) if word]
    told = [split for word in words if (split := SPLIT_WORDS.get(word.lower()))]
    rest = "_".join(word for word in words if word.lower() not in SPLIT_WORDS)
    return (told[0], rest) if len(told) == 1 and rest else None


def _refuse_doubled(
    source: Path, meant: Mapping[str, Split], insides: Mapping[str, Inside]
) -> None:
    """Refuse train/train and test/test: a split in a folder of its own name, and nothing beside."""
    trained = {label for name in meant if meant[name] == "train" for label in insides[name].folders}
    doubled = [
        f"{name}/{inside.folders[0]}"
        for name, split in meant.items()
        if len((inside := insides[name]).folders) == 1
        and not inside.files
        and split_of(inside.folders[0]) == split
        and (split == "train" or inside.folders[0] not in trained)
    ]
    if doubled:
        raise DataError(
            f"{printable(source.as_posix())}: {_names(doubled)} {_is(doubled)} a level too many; "
            f"{expected(source)}. Move their contents one level up; pictures "
            "without class folders have no label: move those out of the source"
        )


def _refuse_flat_splits(
    source: Path, meant: Mapping[str, Split], insides: Mapping[str, Inside]
) -> None:
    """Refuse train and test full of images; one such word among class names is a class."""
    full = [name for name in meant if insides[name].files]
    splits = {meant[name] for name in full}
    alone = len(meant) == len(insides)
    if not full or not (alone or ("train" in splits and len(splits) > 1)):
        return
    first = min(full, key=lambda name: SPLITS.index(meant[name]))
    raise DataError(
        f"{printable(source.as_posix())}: the names {_names(full)} mean splits, but images lie "
        f"directly in there, so that no label is told; {expected(source)}. Sort the images into "
        f"a folder for each class ({printable(first)}/<class>/<image>), or set ingest.source to "
        "a csv with the columns path,label,split; that too where these words are your classes"
    )


def _refuse_odd_folders(
    source: Path,
    meant: Mapping[str, Split],
    odd: Sequence[str],
    insides: Mapping[str, Inside],
) -> None:
    """Refuse folders beside train, val and test that are none; empty ones pass."""
    full = [name for name in odd if insides[name].files or insides[name].folders]
    if not full:
        return
    if not any(insides[name].folders for name in full) and "train" not in meant.values():
        holders = [name for name in meant if insides[name].folders]
        raise DataError(
            f"{printable(source.as_posix())}: {_names(holders)} {_hold(holders)} folders, unlike "
            f"{_names(full)}; {expected(source)}. Move its images up where it is a class too, or "
            "move the class folders into a folder train"
        )
    raise DataError(
        f"{printable(source.as_posix())}: {_names(full)} {_is(full)} no word for a split, "
        f"unlike {_names(meant)}; {expected(source)}. Move {_them(full)} out of the source, or "
        f"give {_them(full)} the name of the split that is meant (train, val, test)"
    )


def _refuse_unlabeled(source: Path, insides: Mapping[str, Inside]) -> None:
    flat = [name for name, inside in insides.items() if inside.files and not inside.folders]
    if not flat:
        return
    labeled = [name for name, inside in insides.items() if inside.folders]
    images = sum(len(insides[name].files) for name in flat)
    raise DataError(
        f"{printable(source.as_posix())}: {_names(flat)} {_hold(flat)} "
        f"{plural(images, 'file')} and no class folders, unlike {_names(labeled)}: pictures "
        f"without labels; {expected(source)}. Move {_them(flat)} out of the source (val or test is "
        "then cut from train where it is missing), or sort the images into class folders"
    )


def _check_each_once(source: Path, meant: Mapping[str, Split]) -> None:
    where = printable(source.as_posix())
    for split in SPLITS:
        names = [name for name, this in meant.items() if this == split]
        if len(names) > 1:
            raise DataError(
                f"{where}: the folders {_names(names)} both mean {split}; merge them or keep one"
            )
        if split == "train" and not names:
            raise DataError(
                f"{where}: found only {_names(meant)}; allowed: train, with or without val and "
                "test. Add train, or put the class folders directly below the source"
            )


# other layouts ------------------------------------------------------------------------------------


def explain_layout(source: Path) -> str:
    """Say which other layout a source has and what to do; empty where it is none that is known."""
    top = look_into(source)
    insides = {name: look_into(source / name) for name in top.folders}
    deep = [name for name, inside in insides.items() if inside.folders]
    flat = [name for name, inside in insides.items() if inside.files]
    if not top.folders:
        return _explain_no_folders(top)
    if deep and all(map(split_of, deep)):
        below = [f"{name}/{label}" for name in deep for label in insides[name].folders]
        return _explain_patients(source, {name: look_into(source / name) for name in below})
    if len(deep) == 1 and not flat:
        return _explain_extra_level(source, deep[0])
    return _explain_grid(source, insides) or _explain_patients(source, insides)


def _explain_no_folders(top: Inside) -> str:
    if not top.files:
        return ""
    return (
        f"It holds {plural(len(top.files), 'file')} and no folder, so that no label is told: make "
        "one folder for each class, or set ingest.source to a csv with the columns path,label"
    )


def _explain_extra_level(source: Path, name: str) -> str:
    """One folder above all others: name the path below which the classes or splits lie."""
    path = Path(name)
    while True:
        inside = look_into(source / path)
        below = look_into(source / path / inside.folders[0])
        if len(inside.folders) > 1 or inside.files or below.files or not below.folders:
            break
        if split_of(inside.folders[0]):
            break
        path /= inside.folders[0]
    return (
        f"There is a level too many: set ingest.source to "
        f"{printable((source / path).as_posix())}, which holds {_names(inside.folders)}"
    )


def _explain_grid(source: Path, insides: Mapping[str, Inside]) -> str:
    """Every folder holds the same folders: either level may be the classes."""
    below = [set(inside.folders) for inside in insides.values() if inside.folders]
    shared = sorted(set.intersection(*below)) if len(below) == len(insides) > 1 else []
    if len(shared) < 2 or 2 * len(shared) < max(map(len, below)):
        return ""
    top = next(iter(insides))
    path = _first_file(source, f"{top}/{shared[0]}")
    if all(map(split_of, shared)):
        if {"images", "labels"} <= insides.keys():
            return BOXES
        row = printable(f"{path},{top},{split_of(shared[0])}")
        return (
            f"The splits ({_names(shared)}) lie below the classes ({_names(insides)}): put them "
            f"above ({printable(f'{shared[0]}/{top}')}), or set ingest.source to a csv "
            f"path,label,split with rows such as {row}"
        )
    return (
        f"{plural(len(insides), 'folder')} ({_names(insides)}) hold the same folders "
        f"({_names(shared)}). If those above are splits, call them train, val and test; if one "
        "level is patients, devices or sessions, set ingest.source to a csv path,label,group with "
        f"rows such as {printable(f'{path},{shared[0]},{top}')} (classes below) or "
        f"{printable(f'{path},{top},{shared[0]}')} (classes above)"
    )


def _explain_patients(source: Path, insides: Mapping[str, Inside]) -> str:
    """Class folders that hold folders."""
    deep = [name for name, inside in insides.items() if inside.folders]
    if not deep:
        return ""
    first = f"{deep[0]}/{insides[deep[0]].folders[0]}"
    row = ",".join((_first_file(source, first), Path(deep[0]).name, Path(first).name))
    return (
        f"{_names(deep)} {_hold(deep)} folders, such as "
        f"{printable(first)}, one level too many. Move the images up; or, where these are "
        "patients, devices or sessions, set ingest.source to a csv path,label,group with rows such "
        f"as {printable(row)}"
    )


def _first_file(source: Path, folder: str) -> str:
    return f"{folder}/{(look_into(source / folder).files or ('<image>',))[0]}"


def _names(names: Sequence[str] | Mapping[str, object]) -> str:
    return listed(list(names))


def _hold(names: Sequence[str]) -> str:
    return "hold" if len(names) > 1 else "holds"


def _is(names: Sequence[str]) -> str:
    return "are" if len(names) > 1 else "is"


def _them(names: Sequence[str]) -> str:
    return "them" if len(names) > 1 else "it"
