"""A project of its own from this checkout: another data set, the same environment.

Code, cards and settings are copied, nothing that was computed. What the images tell of the
parameters at a first look is set; which views keep a label nobody can see from outside.
"""

import math
import os
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flows.errors import ProjectError
from flows.overrides import apply_changes
from flows.stages.git import AUTHOR
from tasks.artifacts.files import replacing_folder
from tasks.artifacts.words import plural, printable
from tasks.check import check, explain_url
from tasks.errors import DataError, ImageError
from tasks.images.decoding.decode import decode_image
from tasks.images.listing.folders import Listing
from tasks.images.listing.sources import list_images, resolve_root
from tasks.params import Params
from tasks.params_file import load_params

COPIED = (
    *("flows", "tasks", "params.yaml", "dvc.yaml", "prefect.yaml", "constraints.txt", "LICENSE"),
    *("pyproject.toml", "Makefile", "Dockerfile", ".gitignore", ".dvcignore", ".dockerignore"),
    *(".dvc/config", ".dvc/.gitignore", ".dvc/plots", "data/cards", "data/sources"),
    *("data/weights/README.md", "data/weights/.gitignore"),
)
NEEDED = ("flows", "tasks", "params.yaml", "dvc.yaml", ".dvc/config", "data/cards")
TABLES = {"data/groups.csv": "path,group\n", "data/corrections.csv": "path,label,drop\n"}
LOOKED_AT = 200  # images, spread over all of them
LARGEST_PX = 224  # what is larger costs more than it mostly brings; by hand it may be more
GLANCE_PX = 32
GRAY_LEVELS = 2.0  # of 255, that channels of a gray image may differ by, as JPEG makes them
STRETCHED = 1.2  # long side by short side from which the fit matters

Views = Literal["none", "light", "medium", "heavy", "custom"]
VIEWS: dict[Views, str] = {
    "none": "no views; only the image itself keeps its label",
    "light": "for photographs: left-right flips, small crops, a little other light",
    "medium": "for photographs: also nearer, slightly turned, other light and colors",
    "heavy": "for photographs: also partly hidden; for tens of images a class",
    "custom": "the ranges of augment.custom in params.yaml, which you set",
}


@dataclass(frozen=True, slots=True)
class FirstLook:
    """What some images of a source tell.

    Attributes:
        images: How many the source lists.
        classes: How many labels they have.
        short_px: Shorter side, median.
        smallest_px: The same, smallest.
        largest_px: The same, largest.
        stretch: Longer side by shorter side, median.
        gray: Whether no image that was looked at has colors.
    """

    images: int
    classes: int
    short_px: int
    smallest_px: int
    largest_px: int
    stretch: float
    gray: bool


def choose_views(given: str | None) -> Views:
    """Take the word for augment.policy that the user gave.

    Raises:
        ProjectError: There is none, or it is no such word.
    """
    for known in VIEWS:
        if given == known:
            return known
    what = "is missing" if given is None else f"is {given!r}"
    allowed = "; ".join(f"{word} ({meaning})" for word, meaning in VIEWS.items())
    raise ProjectError(f"--views {what}; which changes leave a label as it is? allowed: {allowed}")


def make_project(checkout: Path, folder: Path, given: str, views: Views) -> Iterator[str]:
    """Make a project and tell what was set, a line each.

    Args:
        checkout: The project whose code and settings are copied.
        folder: The new project; there may be an empty folder.
        given: Its images: a folder, a csv or a descriptor.
        views: augment.policy.

    Raises:
        ProjectError: The folder cannot be one; nothing was made.
        DataError: The images cannot be listed, or none can be read; nothing was made.
        ParamsError: params.yaml of the checkout is at fault.
    """
    folder, source = Path(os.path.abspath(folder)), Path(os.path.abspath(given))
    _check_there(given, source)
    _check_places(checkout, folder, source)
    params = load_params(checkout / "params.yaml")
    look = look_first(list_images(source), params.ingest.max_pixels)
    values = choose_values(params, look, views, card_sizes(checkout, params.backbone.name))
    values["ingest.source"] = _named_by(checkout, source)
    values["report.title"] = printable(folder.name)
    with replacing_folder(folder) as made:
        _copy(checkout, made)
        text = (made / "params.yaml").read_text(encoding="utf-8")
        (made / "params.yaml").write_text(apply_changes(text, values), encoding="utf-8")
        check(load_params(made / "params.yaml"), made)
        (made / "README.md").write_text(_readme(folder.name, source), encoding="utf-8")
        _commit(made)
    environment = _share_environment(folder)
    yield f"{folder} is a project of its own; git has its first commit"
    yield from say_values(values, look)
    yield f"  environment         {environment}"
    yield f"Next: cd {shlex.quote(os.path.relpath(folder))} && regraft run"


def _check_there(given: str, source: Path) -> None:
    """See that the source leads somewhere."""
    if source.exists():
        return
    explained = explain_url(given)
    if explained:
        raise ProjectError(f"--source is {given!r}{explained}")
    raise ProjectError(
        f"--source {source}: no such file or folder; name the folder that holds one folder of "
        "images per class, or a csv or descriptor"
    )


def _check_places(checkout: Path, folder: Path, source: Path) -> None:
    lacking = [name for name in NEEDED if not (checkout / name).exists()]
    if lacking:
        raise ProjectError(
            f"{checkout}, where this code lies, is no whole checkout: it lacks "
            f"{', '.join(lacking)}; type the command in a project's folder"
        )
    real, images = folder.resolve(), source.resolve()
    if images.is_relative_to(real):
        raise ProjectError(
            f"--source {source} lies inside of {folder}; name a new folder for the project, the "
            "images stay where they are"
        )
    if images.is_dir() and real.is_relative_to(images):
        raise ProjectError(f"{folder} lies inside of the images, {source}; name one beside them")
    if real.is_relative_to(checkout.resolve()):
        raise ProjectError(
            f"{folder} lies inside of the project {checkout}, whose git and DVC would see its "
            "files; name a folder beside it"
        )
    _check_absent(folder)


def _check_absent(folder: Path) -> None:
    """See that there is no such folder, or an empty one that may go."""
    if folder.is_dir() and any(folder.iterdir()):
        raise ProjectError(
            f"{folder} is not empty, and nothing is overwritten; name a new folder, or empty it"
        )
    if os.path.lexists(folder) and not folder.is_dir():
        raise ProjectError(f"{folder} is a file; name a new folder")
    if folder.resolve() == Path.cwd():
        raise ProjectError(
            f"{folder} is the current folder, which a new one would replace; name it from the "
            f"folder above: cd .. && regraft new {shlex.quote(folder.name)} ..."
        )


def look_first(listing: Listing, max_pixels: int) -> FirstLook:
    """Look at some images of a source, spread over all of them.

    Raises:
        DataError: None of them can be read.
    """
    root = resolve_root(listing.origin)
    count = len(listing.images)
    chosen = sorted({number * count // LOOKED_AT for number in range(LOOKED_AT)} if count else [])
    sides: list[tuple[int, int]] = []
    colored, reason = False, "the source lists no image"
    for image in (listing.images[number] for number in chosen):
        try:
            content = (root / image.path).read_bytes()
            decoded = decode_image(content, max_pixels=max_pixels, draft_px=GLANCE_PX)
        except (ImageError, OSError) as err:
            reason = f"{printable(image.path)}: {err}"
            continue
        sides.append((decoded.width, decoded.height))
        pixels = np.asarray(decoded.image.resize((GLANCE_PX, GLANCE_PX)), dtype=np.float64)
        colored = colored or float(np.ptp(pixels, axis=2).mean()) > GRAY_LEVELS
    if not sides:
        raise DataError(f"{root}: none of {plural(len(chosen), 'image')} can be read; {reason}")
    short = [min(pair) for pair in sides]
    return FirstLook(
        images=count,
        classes=len({image.label for image in listing.images}),
        short_px=round(statistics.median(short)),
        smallest_px=min(short),
        largest_px=max(short),
        stretch=statistics.median(max(pair) / min(pair) for pair in sides),
        gray=not colored,
    )


def card_sizes(checkout: Path, backbone: str) -> list[int]:
    """Sizes of images that source cards are for: those of a backbone, else of any."""
    cards = [path.stem for path in sorted((checkout / "data/cards").glob("*px.safetensors"))]
    own = [card for card in cards if f"_{backbone}_" in card] or cards
    return sorted({int(card.rsplit("_", 1)[1].removesuffix("px")) for card in own})


def choose_values(
    params: Params, look: FirstLook, views: Views, sizes: Sequence[int]
) -> dict[str, Any]:
    """Choose what the images tell of the parameters, by key path.

    Args:
        params: Those of the checkout.
        look: At the images.
        views: augment.policy.
        sizes: Sides in pixels that source cards are for.
    """
    allowed = [size for size in sizes if size <= LARGEST_PX] or [params.augment.image_px]
    nearest = min(allowed, key=lambda size: abs(math.log(size / look.short_px)))
    number = 0 if views == "none" else params.augment.views or 2
    values: dict[str, Any] = {
        "augment.image_px": nearest,
        "augment.policy": views,
        "augment.views": number,
        **{f"ingest.{Path(table).stem}": table for table in TABLES},
    }
    if look.gray:
        values |= {"augment.custom.saturation": 0.0, "augment.custom.hue": 0.0}
    return values


def say_values(values: dict[str, Any], look: FirstLook) -> Iterator[str]:
    """Say what was set and why."""
    counts = f"{plural(look.images, 'image')} of {plural(look.classes, 'class', 'classes')}"
    yield f"  ingest.source       {values['ingest.source']} ({counts})"
    yield (
        f"  augment.image_px    {values['augment.image_px']} (shorter sides: {look.short_px} px in "
        f"the middle, {look.smallest_px} to {look.largest_px})"
    )
    yield f"  augment.policy      {values['augment.policy']} ({VIEWS[values['augment.policy']]})"
    if look.gray and values["augment.policy"] == "custom":
        yield "  colors              none: views of other colors are off (saturation, hue)"
    if look.stretch >= STRETCHED:
        yield (
            f"  augment.fit         as it was; images are {look.stretch:.1f} times as long as "
            "wide: crop or pad keep their shape"
        )


def _named_by(checkout: Path, source: Path) -> str:
    """Name a source in params.yaml: descriptors of the checkout come along, all else stays."""
    inside = checkout / "data/sources"
    return source.relative_to(checkout).as_posix() if source.parent == inside else str(source)


def _copy(checkout: Path, made: Path) -> None:
    """Copy what makes a project; times stay, so that `make` sees what is installed already."""
    ignores = sorted((checkout / "data").glob("*/.gitignore"))  # of what the stages make
    names = [*COPIED, *(path.relative_to(checkout).as_posix() for path in ignores)]
    for name in names:
        source, target = checkout / name, made / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy2(source, target)
    config = made / ".dvc/config"
    config.write_text(_without_remotes(config.read_text(encoding="utf-8")), encoding="utf-8")
    for name, header in TABLES.items():
        (made / name).write_text(header, encoding="utf-8")


def _without_remotes(config: str) -> str:
    """Leave out the remotes of a .dvc/config: where the new images go is for their owner to say."""
    kept, section = [], ""
    for line in config.splitlines(keepends=True):
        section = line.strip() if line.startswith("[") else section
        of_core = section == "[core]" and line.split("=")[0].strip() == "remote"
        if not section.startswith("['remote") and not of_core:
            kept.append(line)
    return "".join(kept)


def _readme(name: str, source: Path) -> str:
    return (
        f"# {printable(name)}\n\nA Regraft project on the images {printable(str(source))}: "
        "`regraft run` computes what is stale, `regraft --help` names the rest. Values are in "
        "`params.yaml`, results in `data/`.\n"
    )


def _commit(folder: Path) -> None:
    """Make a git repository with one commit, in the user's name where git knows it."""
    _git(folder, "init", "--quiet", "--initial-branch=main")
    known = _git(folder, "config", "--default", "", "--get", "user.email").strip()
    author = {} if known else AUTHOR
    _git(folder, "add", "--all")
    _git(folder, "commit", "--quiet", "--message", "Start", settings=author)


def _git(folder: Path, *words: str, settings: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            ["git", *words],
            check=True,
            cwd=folder,
            env={**os.environ, **(settings or {})},
            capture_output=True,
            text=True,
        )
    except FileNotFoundError as err:
        raise ProjectError("git is not there; install it (Debian: apt-get install git)") from err
    except subprocess.CalledProcessError as err:
        raise ProjectError(f"git {words[0]} failed: {err.stderr.strip()}") from err
    return done.stdout


def _share_environment(folder: Path) -> str:
    """Link the environment that this process runs in; say which one."""
    if sys.prefix == sys.base_prefix:
        return f"none of its own: {sys.executable} runs it; `make run` would install one"
    (folder / ".venv").symlink_to(sys.prefix, target_is_directory=True)
    return f"shared, {sys.prefix}"
