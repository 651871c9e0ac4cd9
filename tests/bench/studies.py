"""A study: a folder of the project in which some images of a pool have come as far as extract.

All later stages run in it by the commands of dvc.yaml, in this process, so that whatever stands in
the way of a user stands in the way here.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

from bench.pools import Pool
from bench.scratch import ROOT, Copy, set_values
from bench.subsets import Subset
from ruamel.yaml import YAML

from tasks.artifacts.arrays import write_array
from tasks.artifacts.pixels import PixelStore, StoreWriter, store_info
from tasks.artifacts.records import SPLITS, BackboneInfo, Split, read_record, write_record
from tasks.artifacts.tables import Manifest, ManifestRow, read_manifest, write_manifest
from tasks.augment import describe_policy
from tasks.backbones.catalogue import load_backbone
from tasks.backbones.probe import choose_probe_images, measure_probe, write_probe
from tasks.params import Params
from tasks.params_file import load_params
from tasks.runtime.machine import read_machine

DONE = "data/extract/backbone.json"
MADE = ("data/ingest", "data/augment", *(f"data/extract/{split}" for split in SPLITS), DONE)
LINKED = ("data/cards", "data/weights", "constraints.txt")
INGESTED = ("source.json", "conversion.json")
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Study:
    """The folder of one set, number of images and seed."""

    root: Path

    @classmethod
    def start(
        cls, copy: Copy, rows: Sequence[ManifestRow], root: Path, values: Mapping[str, object]
    ) -> "Study":
        """Make a study that has come as far as ingest; an older one is deleted.

        Args:
            copy: The project in which ingest ran.
            rows: The images, with their splits.
            root: Folder of the study.
            values: Replace those of the copy's params.yaml, by key path.
        """
        shutil.rmtree(root, ignore_errors=True)
        (root / "data/ingest").mkdir(parents=True)
        for name in LINKED:
            (root / name).symlink_to(ROOT / name)
        for name in INGESTED:
            shutil.copy(copy.root / "data/ingest" / name, root / "data/ingest")
        shutil.copy(copy.root / "params.yaml", root)
        set_values(root / "params.yaml", values)
        write_manifest(root / "data/ingest/manifest.csv", Manifest(rows))
        return cls(root)

    @classmethod
    def make(cls, pool: Pool, subset: Subset, root: Path, *, seed: int) -> "Study":
        """Copy pixels and features of the subset, measure the probe; or open an earlier study."""
        if (root / DONE).exists():
            return cls(root)
        study = cls.start(pool.copy, subset.rows(pool.rows), root, {"seed": seed})
        for split in SPLITS:
            _copy_split(pool, subset.of(split), split, root)
        policy = describe_policy(study.manifest, study.params.augment)
        write_record(root / "data/augment/policy.json", policy)
        _write_probe(pool.info, root, study.params)
        write_record(root / DONE, pool.info)
        return study

    def fork(self, root: Path) -> "Study":
        """Make a study beside this one that shares its images, pixels and features.

        Parameters, probe and all that follows are those of this checkout, so that rules of today
        decide on what was made with those of yesterday.
        """
        shutil.rmtree(root, ignore_errors=True)
        (root / "data/extract").mkdir(parents=True)
        for name in MADE:
            (root / name).symlink_to(self.root / name)
        for name in LINKED:
            (root / name).symlink_to(ROOT / name)
        shutil.copy(ROOT / "params.yaml", root)
        own = YAML(typ="safe").load(self.root / "params.yaml")
        values = {f"augment.{key}": own["augment"][key] for key in ("image_px", "views", "policy")}
        set_values(root / "params.yaml", {"seed": own["seed"], **values})
        fork = Study(root)
        _write_probe(read_record(root / DONE, BackboneInfo), root, fork.params)
        return fork

    @property
    def params(self) -> Params:
        """Its parameters."""
        return load_params(self.root / "params.yaml")

    @property
    def manifest(self) -> Manifest:
        """Its images."""
        return read_manifest(self.path("ingest/manifest.csv"))

    def path(self, name: str) -> Path:
        """Give the path of a file in its folder of data."""
        return self.root / "data" / name

    def pixels(self, split: Split) -> PixelStore:
        """Packed pixels of a split."""
        return PixelStore.open(self.path(f"augment/{split}"))

    def run(self, stage: str) -> float:
        """Run a stage by its command in dvc.yaml; give the processor time that it took, seconds."""
        command = read_graph()[stage]["cmd"]
        _, _, module, *arguments = command.split()
        started = time.process_time()
        with chdir(self.root):
            import_module(module).main(arguments)
        return time.process_time() - started


def read_graph() -> dict[str, dict[str, str]]:
    """Stages of dvc.yaml, by name."""
    stages: dict[str, dict[str, str]] = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    return stages


def _copy_split(pool: Pool, images: list[int], split: Split, root: Path) -> None:
    """Write pixels and features of a split, as augment and extract do."""
    views = pool.pixels.info.views if split == "train" else 0
    info = store_info(len(images), views=views, image_px=pool.pixels.info.image_px)
    rows = [pool.pixels.row_of(image, view) for image in images for view in range(views + 1)]
    folder = root / f"data/augment/{split}"
    folder.mkdir(parents=True)
    with StoreWriter(folder, info) as writer:
        for pixels in pool.pixels.batches(rows, ROWS_AT_ONCE):
            writer.append(pixels)
    features = pool.features[images, : views + 1]
    write_array(root / f"data/extract/{split}/features.npy", features)


def _write_probe(info: BackboneInfo, root: Path, params: Params) -> None:
    load = partial(load_backbone, info.name, image_px=info.input.image_px, seed=params.seed)
    store = PixelStore.open(root / "data/augment/train")
    rows = read_manifest(root / "data/ingest/manifest.csv").of("train")
    images = choose_probe_images(store, rows, params.extract, params.seed)
    probe = measure_probe(load(info.weights), load("random"), images, read_machine())
    write_probe(root / "data/extract/probe.safetensors", probe)
