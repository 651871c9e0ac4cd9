"""Where images come from: a folder, a csv or the descriptor of a packaged data set."""

from pathlib import Path

from tasks.errors import DataError
from tasks.images.descriptors import list_package, package_folder
from tasks.images.folders import list_folder
from tasks.images.listing import Listing
from tasks.images.tables import list_table
from tasks.records import ImageSource


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
