"""Regraft itself, as its command lines run it, in a scratch copy; and the task that peers get."""

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.page import FROZEN, REGRAFT
from bench.processes import Measured, run_measured
from bench.results import Answers, Trial
from ruamel.yaml import YAML

from tasks.artifacts.arrays import write_tensors
from tasks.artifacts.pixels import store_info
from tasks.artifacts.records import Baseline, Conversion, Finetuned, ImageSource, read_record
from tasks.artifacts.tables import Manifest, ManifestRow, PredictionRow, read_manifest, read_rows
from tasks.augment import pack, render_file
from tasks.backbones.catalogue import load_backbone
from tasks.heads.registry import to_arrays
from tasks.images.listing.sources import resolve_root
from tasks.params import Params
from tasks.params_file import load_params

ROOT = Path(__file__).parent.parent.parent
COPIED = (
    "dvc.yaml",
    "params.yaml",
    "constraints.txt",
    "data/cards",
    "data/sources",
    "data/weights",
    "tasks",
)
STAGES = (
    "ingest",
    "augment",
    "select",
    "extract",
    "audit",
    "similarity",
    "baseline",
    "race",
    "decide",
    "finetune",
    "evaluate",
)
FROM_FILES = ("augment", "select", "extract")  # stages that turn image files into features


@dataclass(frozen=True)
class Copy:
    """A copy of the project in which one seed is run.

    Attributes:
        root: Its folder.
        python: Interpreter with Regraft's packages.
        environment: Variables that its stages see.
    """

    root: Path
    python: str
    environment: Mapping[str, str]

    @classmethod
    def make(
        cls,
        root: Path,
        values: Mapping[str, object],
        *,
        python: str,
        environment: Mapping[str, str],
    ) -> "Copy":
        """Copy the project; `values` replace those of params.yaml, by key path."""
        root.mkdir(parents=True)
        for name in COPIED:
            source, target = ROOT / name, root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        (root / "data" / "groups.csv").write_text("path,group\n")
        (root / "data" / "corrections.csv").write_text("path,label,drop\n")
        set_values(root / "params.yaml", values)
        own = {**environment, "PYTHONPATH": str(root), "REGRAFT_SCRATCH": str(root / ".regraft")}
        return cls(root, python, own)

    def params(self) -> Params:
        """Its parameters."""
        return load_params(self.root / "params.yaml")

    def run(self, stage: str) -> Measured:
        """Run a stage by the command that dvc.yaml gives it."""
        text = YAML(typ="safe").load(self.root / "dvc.yaml")["stages"][stage]["cmd"]
        _, *arguments = text.split()
        return run_measured(
            [self.python, *arguments],
            cwd=self.root,
            environment=self.environment,
            log=self.root / "log.txt",
        )

    def manifest(self) -> Manifest:
        """What ingest listed."""
        return read_manifest(self.root / "data/ingest/manifest.csv")

    def image_root(self) -> Path:
        """Folder that the manifest's paths start from."""
        origin = read_record(self.root / "data/ingest/source.json", ImageSource)
        found = resolve_root(origin)
        return found if found.is_absolute() else self.root / found

    def stretches(self, images: int, most: int) -> list[list[ManifestRow]]:
        """The first training images, so many at a time."""
        rows = self.manifest().of("train")
        parts = [rows[start : start + images] for start in range(0, len(rows), images)]
        return [list(part) for part in parts[:most]]

    def pack(self, rows: Sequence[ManifestRow], folder: Path, *, workers: int) -> None:
        """Decode, render and pack training images as augment does."""
        params = self.params()
        options, views = params.augment, params.augment.views
        render = partial(
            render_file,
            root=self.image_root(),
            params=options,
            conversion=read_record(self.root / "data/ingest/conversion.json", Conversion),
            seed=params.seed,
            views=views,
        )
        info = store_info(len(rows), views=views, image_px=options.image_px)
        pack(rows, folder, render, info=info, workers=workers)


def parse_value(text: str) -> tuple[str, object]:
    """Read `block.key=value`, the value as YAML."""
    key, _, value = text.partition("=")
    return key, YAML(typ="safe").load(value)


def set_values(path: Path, values: Mapping[str, object]) -> None:
    """Replace values of a params.yaml by key path."""
    yaml = YAML()
    tree = yaml.load(path)
    for key, value in values.items():
        *blocks, leaf = key.split(".")
        node = tree
        for block in blocks:
            node = node[block]
        if leaf not in node:
            raise KeyError(key)
        node[leaf] = value
    yaml.dump(tree, path)


def choose_images(manifest: Manifest, count: int) -> list[str]:
    """Choose about `count` images, each class by its share, those of the smallest sha256 first."""
    by_class = defaultdict(list)
    for row in manifest.rows:
        by_class[row.label].append((row.sha256, row.path))
    share = min(1.0, count / len(manifest.rows))
    return [
        path
        for label in sorted(by_class)
        for _, path in sorted(by_class[label])[: max(6, round(share * len(by_class[label])))]
    ]


def link_images(copy: Copy, count: int, folder: Path) -> Path:
    """Make a folder of class folders that holds some of the images of a copy's source."""
    labels = {row.path: row.label for row in copy.manifest().rows}
    for path in choose_images(copy.manifest(), count):
        target = folder / labels[path] / path.replace("/", "_")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(copy.image_root() / path, target)
    return folder


def answers_of(manifest: Manifest) -> Answers:
    """Label and group of each test image."""
    return Answers(manifest.labels("test").tolist(), manifest.groups("test"))


def run_regraft(copy: Copy, *, seed: int) -> list[Trial]:
    """Run every stage after ingest: the frozen head, made on the way, and the shipped model."""
    measured = {stage: copy.run(stage) for stage in STAGES[1:]}
    manifest = copy.manifest()
    index = {name: number for number, name in enumerate(manifest.class_names)}
    found = read_rows(copy.root / "data/evaluate/predictions.csv", PredictionRow)
    said = {row.path: row for row in found}
    rows = [said[row.path] for row in manifest.of("test")]
    baseline = read_record(copy.root / "data/baseline/baseline.json", Baseline)
    finetuned = read_record(copy.root / "data/finetune/finetune.json", Finetuned)
    shown = len(manifest.of("train")) * sum(phase.epochs for phase in finetuned.phases)

    def trial(
        method: str, val: float, names: list[str], stages: Sequence[str], speed: float
    ) -> Trial:
        return Trial(
            method=method,
            seed=seed,
            rate=None,
            val_accuracy=val,
            predictions=[index[name] for name in names],
            seconds=sum(measured[stage].seconds for stage in stages),
            peak_bytes=max(measured[stage].peak_bytes for stage in stages),
            images_per_second=speed,
        )

    before = STAGES[1 : STAGES.index("baseline") + 1]
    to_features = sum(measured[stage].seconds for stage in FROM_FILES)
    return [
        trial(
            REGRAFT,
            finetuned.val_accuracy.value,
            [row.predicted for row in rows],
            STAGES[1:],
            shown / measured["finetune"].seconds,
        ),
        trial(
            FROZEN,
            baseline.val_accuracy.value,
            [row.baseline_predicted for row in rows],
            before,
            count_views(copy) / to_features,
        ),
    ]


def measure_files(copy: Copy) -> float:
    """Views a second from image files to features: augment and extract as they are run."""
    return count_views(copy) / sum(copy.run(stage).seconds for stage in FROM_FILES)


def count_views(copy: Copy) -> int:
    """Views of all images: the clean one of each, and the augmented ones of training images."""
    manifest = copy.manifest()
    return len(manifest.rows) + copy.params().augment.views * len(manifest.of("train"))


def write_task(copy: Copy, folder: Path, *, batch_size: int, threads: int) -> Path:
    """Write what a peer needs: images with label and split, weights under timm's names, sizes."""
    params, manifest, root = copy.params(), copy.manifest(), copy.image_root()
    name, px = params.backbone.name, params.augment.image_px
    backbone = load_backbone(name, params.backbone.weights, image_px=px, seed=params.seed)
    write_tensors(folder / "backbone.safetensors", to_arrays(backbone.model))
    index = {label: number for number, label in enumerate(manifest.class_names)}
    images: Sequence[tuple[str, int, str]] = [
        (str((root / row.path).absolute()), index[row.label], row.split) for row in manifest.rows
    ]
    task = {
        "backbone": name,
        "weights": str(folder / "backbone.safetensors"),
        "mean": backbone.input.mean,
        "std": backbone.input.std,
        "image_px": px,
        "batch_size": batch_size,
        "threads": threads,
        "classes": manifest.class_names,
        "images": images,
    }
    path = folder / "task.json"
    path.write_text(json.dumps(task))
    return path
