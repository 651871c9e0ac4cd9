"""The feature files of extract: one writer, of one process or of several together."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from tasks.artifacts.files import replacing_folder
from tasks.artifacts.pixels import PixelStore
from tasks.backbones.engine import Engine
from tasks.errors import WeightsError
from tasks.params import ExtractParams
from tasks.runtime.processes import ALONE, Processes
from tasks.runtime.progress import Meter

FEATURES = "features.npy"


def write_features(
    folder: Path,
    store: PixelStore,
    engine: Engine,
    params: ExtractParams,
    meter: Meter,
    processes: Processes = ALONE,
) -> None:
    """Run the engine over every row of a store and write `features.npy`.

    It is written batch by batch, so that memory does not grow with the number of images. Several
    processes share the batches, each writes its part beside the folder, the first one joins them.

    Args:
        folder: Replaced whole: features float32 (N, V, D) of all views.
        store: Packed pixels of N images with V rows each.
        engine: Gives features (n, D).
        params: Batch size.
        meter: Told of every row that is done.
        processes: Write the same folder together.

    Raises:
        WeightsError: A feature is not finite.
        PeerError: Another process has ended.
    """
    with _own_part(folder, processes.rank) as part:
        _write_rows(part, store, engine, params, meter, processes)
        processes.wait()
        if processes.first:
            _join_parts(folder, part, processes.world)


def count_own_rows(store: PixelStore, batch_size: int, processes: Processes) -> int:
    """Count the rows of a store that are this process's."""
    return len(_own_rows(store, batch_size, processes))


@contextmanager
def _own_part(folder: Path, rank: int) -> Iterator[Path]:
    """Give the folder that one process writes: the first one's becomes the result."""
    if rank == 0:
        with replacing_folder(folder) as temporary:
            yield temporary
        return
    part = _part(folder, rank)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part


def _part(folder: Path, rank: int | str) -> Path:
    return folder.parent / f".{folder.name}.part-{rank}"


def _join_parts(folder: Path, joined: Path, world: int) -> None:
    """Append the parts of all but the first process, in order; delete them and any older ones."""
    with (joined / FEATURES).open("ab") as whole:
        for rank in range(1, world):
            with (_part(folder, rank) / FEATURES).open("rb") as part:
                shutil.copyfileobj(part, whole)
    for left in folder.parent.glob(_part(folder, "*").name):
        shutil.rmtree(left, ignore_errors=True)


def _own_rows(store: PixelStore, batch_size: int, processes: Processes) -> NDArray[np.int64]:
    """Rows of a store that are this process's: whole batches, as one process would make them."""
    rows = np.arange(store.info.count * (store.info.views + 1), dtype=np.int64)
    own = processes.share(-(-len(rows) // batch_size))
    return rows[own.start * batch_size : own.stop * batch_size]


def _write_rows(
    folder: Path,
    store: PixelStore,
    engine: Engine,
    params: ExtractParams,
    meter: Meter,
    processes: Processes,
) -> None:
    """Write this process's rows; the first one's file starts with the header of the whole."""
    count, views = store.info.count, store.info.views + 1
    rows = _own_rows(store, params.batch_size, processes)
    with (folder / FEATURES).open("wb") as file:
        done = 0
        for pixels in store.batches(rows, params.batch_size):
            (features,) = engine(pixels)
            if done == 0 and processes.first:
                _write_header(file, (count, views, features.shape[1]))
            _check_finite(features, int(rows[done]), store)
            file.write(features.tobytes())
            done += len(pixels)
            meter.advance(len(pixels))


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(file, header)


def _check_finite(features: NDArray[np.float32], first: int, store: PixelStore) -> None:
    wrong = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if wrong.size:
        image, view = divmod(first + int(wrong[0]), store.info.views + 1)
        raise WeightsError(
            f"the backbone gives NaN or infinite features for image {image}, view {view} of "
            f"{store.folder}; its weights are damaged or do not belong to backbone.name"
        )
