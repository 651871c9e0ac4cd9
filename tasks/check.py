"""Stage check: are all values of params.yaml sound, and do the paths that it names lead somewhere.

It runs first and in a second, so that a mistake is told before anything is computed.
"""

import difflib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tasks.artifacts.records import NamedPaths, write_record
from tasks.backbones.packaged import PACKAGED, find_packaged
from tasks.errors import ParamsError, WeightsError
from tasks.images.listing.names import check_names
from tasks.params import AUTO, Params
from tasks.params_file import load_params, place_of_key
from tasks.runtime.entry import StagePaths, Write, read_paths, run_stage

WEIGHTS = Path("data/weights")
COPY = os.path.join(".dvc", "tmp", "exps")  # where DVC runs experiments beside the working tree
NO_STAGES = {"seed", "backbone"}  # of the top level of params.yaml; every other block is a stage's


@dataclass(frozen=True)
class Paths(StagePaths):
    """What the stage reads and writes."""

    paths: Write


def check(params: Params, project: Path) -> NamedPaths:
    """Check the paths and backbones that the parameters name.

    Args:
        params: The parameters.
        project: Folder of params.yaml, to which paths are relative.

    Raises:
        ParamsError: A path leads nowhere, or to what the pipeline itself writes; timm knows no such
            backbone, or no packaged weights are of it; one line for each.
        DataError: Names below the source are no UTF-8: DVC would die of them before ingest runs.
    """
    given = {
        "ingest.source": params.ingest.source,
        "ingest.groups": params.ingest.groups,
        "ingest.corrections": params.ingest.corrections,
    }
    if params.backbone.weights.endswith(".safetensors"):
        given["backbone.weights"] = params.backbone.weights
    found = [(key, value, _problem(key, value, project)) for key, value in given.items()]
    wrong = [
        f"{place_of_key(project / 'params.yaml', key)} is {value!r}{problem}"
        for key, value, problem in found
        if problem
    ]
    wrong += _check_backbones(params, project / "params.yaml")
    if wrong:
        raise ParamsError("\n".join(wrong))
    if (project / params.ingest.source).is_dir():
        check_names(project / params.ingest.source)
    return NamedPaths(
        source=params.ingest.source,
        groups=params.ingest.groups,
        corrections=params.ingest.corrections,
        weights=given.get("backbone.weights"),
    )


def _check_backbones(params: Params, file: Path) -> Iterator[str]:
    """Say what is wrong with backbones; timm takes seconds, and is asked only where it must be."""
    named = params.backbone
    key, names = "backbone.name", [named.name]
    if named.name == AUTO:
        key, names = "select.candidates", params.select.candidates
    for name in names:
        try:
            if named.weights == "packaged":
                find_packaged(name)
            if name not in PACKAGED:
                from tasks.backbones.catalogue import settings_of  # noqa: PLC0415

                settings_of(name)
        except (ParamsError, WeightsError) as err:
            yield f"{place_of_key(file, key)}: {err}"


def _problem(key: str, value: str, project: Path) -> str | None:
    """Say what is wrong with a path and what to write instead; None where it is sound."""
    path = Path(os.path.normpath(project / value))
    if not path.exists():
        return _missing(value, path, project)
    if key == "backbone.weights" and not Path(os.path.normpath(value)).is_relative_to(WEIGHTS):
        return f", outside of {WEIGHTS}/, the folder whose contents DVC watches; put it there"
    results = [project.resolve() / "data" / name for name in Params.model_fields]
    results = [folder for folder in results if folder.name not in NO_STAGES]
    real = path.resolve()
    if key == "ingest.source" and any(folder.is_relative_to(real) for folder in results):
        return (
            ", which holds the project's own results (data/ingest and the like); put the images "
            "into a folder of their own, such as data/raw, and name that"
        )
    if any(real.is_relative_to(folder) for folder in results):
        return ", inside of a folder that a stage writes and clears; move it elsewhere in data/"
    return None


def explain_url(value: str) -> str:
    """Say what to write in place of a URL; empty for a path."""
    url = urlsplit(value)
    if url.scheme == "file":
        return f", a URL; write the path alone: {unquote(url.path)}"
    if "://" in value:
        return ", a URL; fetch what it names into a folder and write the path of that folder"
    return ""


def _missing(value: str, path: Path, project: Path) -> str:
    explained = explain_url(value)
    if explained:
        return explained
    meant = os.path.expandvars(os.path.expanduser(value))
    if meant != value:
        hint = f"write the whole path: {meant}" if os.path.exists(project / meant) else ""
        return f"; ~ and $ stand for nothing here; {hint or 'write the path out'}"
    tracked = next((one for one in (path, *path.parents) if Path(f"{one}.dvc").is_file()), None)
    if tracked is not None:
        return "; DVC tracks it, but it is not here: dvc checkout, or dvc pull from a remote"
    home, copied, _ = str(project.resolve()).partition(COPY)
    if copied and (Path(home) / value).exists():
        own = shlex.quote(os.path.normpath(value))
        return f"; this copy has only what git and DVC track: dvc add {own} in the project itself"
    return f"; there is no such file or folder{_nearest(path, project)}"


def _nearest(path: Path, project: Path) -> str:
    """Name what lies where the path stops leading on: the most similar name, or how far it goes."""
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    folder = missing.parent
    where = os.path.relpath(folder, project) if folder.is_relative_to(project) else str(folder)
    if not folder.is_dir():
        return f": {where} is a file"
    try:
        names = sorted(os.listdir(folder))
    except OSError as err:
        return f": {where} cannot be listed ({err.strerror})"
    near = difflib.get_close_matches(missing.name, names, n=1)
    if near:
        return f". Did you mean {os.path.normpath(os.path.join(where, near[0]))}?"
    return f": {'the project' if where == '.' else where} holds no {missing.name!r}"


def main(argv: Sequence[str] | None) -> None:
    """Read params.yaml, check it, write the paths that it names."""
    paths = read_paths(Paths, "check", __doc__ or "", argv)
    named = check(load_params(paths.params), paths.params.parent)
    write_record(paths.paths, named)


if __name__ == "__main__":
    sys.exit(run_stage("check", main))
