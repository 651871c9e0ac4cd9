"""Whole runs as the report stage finds them: the stages themselves on small drawn images."""

import csv
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import HOSTILE, ROOT, TINY, draw_image, with_values
from ruamel.yaml import YAML

from tasks.artifacts.arrays import write_array
from tasks.artifacts.records import (
    SPLITS,
    BackboneInfo,
    ImageSource,
    KnownSet,
    Marks,
    OnnxFile,
    read_record,
    write_record,
)
from tasks.artifacts.tables import read_manifest
from tasks.backbones.source_cards import CardOrigin, SourceCard, write_card
from tasks.evaluate import Evaluation, explain_rejection
from tasks.params import Params
from tasks.params_file import load_params
from tasks.report import Paths, read_findings
from tasks.reporting.export import Exported
from tasks.reporting.findings import Findings
from tasks.reporting.provenance import CodeState, Provenance
from tasks.runtime.entry import read_paths
from tasks.transferability.ruler import Ruler

GRAPH = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
STAGES = [stage for stage in GRAPH if stage not in ("check", "report")]
SOURCES = {
    "ingest.source": "images",
    "ingest.groups": "groups",
    "ingest.corrections": "corrections",
}
TOLD = {
    "name": "ELPV",
    "license": "CC BY-NC-SA 4.0 (for demonstration)",
    "citation": "Buerhop-Lutz et al., EU PVSEC 2018",
}


@dataclass(frozen=True)
class Run:
    """The files of a run below one folder, at the paths of dvc.yaml."""

    root: Path

    @property
    def params(self) -> Params:
        return load_params(self.root / "params.yaml")

    @property
    def paths(self) -> Paths:
        """What the report reads and writes."""
        return read_paths(Paths, "report", "", self.arguments("report"))

    @property
    def findings(self) -> Findings:
        return read_findings(self.paths, self.params)

    def arguments(self, stage: str) -> list[str]:
        """What dvc.yaml calls a stage with."""
        words = shlex.split(GRAPH[stage]["cmd"])[3:]
        paths = [word if word.startswith("--") else str(self.root / word) for word in words]
        return ["--params", str(self.root / "params.yaml"), *paths]

    def set(self, params: Params, values: Mapping[str, Any]) -> None:
        YAML().dump(with_values(params, values).model_dump(), self.root / "params.yaml")

    def copy(self, folder: Path) -> "Run":
        return Run(Path(shutil.copytree(self.root, folder / "run")))

    def make(self, variant: "Variant", params: Params) -> None:
        """Run the stages of a variant, from its first one on."""
        source = {name: str(self.root / f"{file}.csv") for name, file in SOURCES.items()}
        self.set(params, {**TINY, **source, "decide.arm": "fine_tune", **variant.values})
        for stage in STAGES[STAGES.index(variant.first) :]:
            self._prepare(stage, variant)
            import_module(f"tasks.{stage}").main(self.arguments(stage))

    def _prepare(self, stage: str, variant: "Variant") -> None:
        """Put beside a stage what no stage makes: images, what is told of them, a source card."""
        if stage == "ingest":
            draw_table(self.root, variant)
        elif stage == "augment":
            origin = read_record(self.paths.origin, ImageSource)
            write_record(self.paths.origin, origin.model_copy(update=TOLD))
        elif stage == "similarity":
            write_reference(
                self.root / "data/cards", read_record(self.paths.backbone, BackboneInfo)
            )
        elif stage == "evaluate":
            labels = read_manifest(self.paths.manifest).labels("val")
            answers = variant.val_margin * np.eye(len(variant.classes), dtype=np.float32)[labels]
            write_array(self.paths.history.parent / "val_logits.npy", answers)


@dataclass(frozen=True)
class Variant:
    """How a run differs from the fine-tuned one, and from which stage on.

    Attributes:
        values: Of parameters, beside TINY.
        images: Of every class, but that the first `untested` classes have none in test.
        val_margin: Of the label's logit in what the trained model says about val, by which the
            model that ships is chosen.
    """

    first: str = "ingest"
    values: Mapping[str, Any] = field(default_factory=dict)
    classes: Sequence[str] = ("defective", "functional")
    images: Sequence[int] = (24, 10, 20)
    untested: int = 0
    val_margin: float = 5.0


VARIANTS = {
    "fine-tuned": Variant(),
    "rejected": Variant("evaluate", val_margin=-5.0),
    "frozen": Variant(
        "similarity",
        {"decide.arm": "feature_extraction", "evaluate.hardest": 0},
    ),
    "scratch": Variant(
        values={"decide.arm": "scratch", "baseline.heads": ["mlp"], "finetune.scratch_epochs": 1},
        classes=(HOSTILE, "[x](javascript:alert(1)) | b", "{{ 7 * 7 }}"),
        images=(12, 6, 12),
    ),
    "many": Variant(
        values={"decide.arm": "feature_extraction", "baseline.l2_strengths": [0.1]},
        classes=[f"species {number:03d}" for number in range(120)],
        images=(2, 1, 2),
        untested=1,
    ),
}


Runs = Callable[[str], Run]


@contextmanager
def keep_runs(root: Path, params: Params) -> Iterator[Runs]:
    """Give the run of a variant, made at its first use below `root`."""

    @cache
    def made(name: str) -> Run:
        variant, folder = VARIANTS[name], root / name
        folder.mkdir()
        run = Run(folder) if variant.first == STAGES[0] else made("fine-tuned").copy(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("REGRAFT_ENGINE", "torch")
            patch.setenv("REGRAFT_THREADS", "1")
            patch.setenv("REGRAFT_SCRATCH", str(root / ".regraft"))
            run.make(variant, params)
        return run

    threads = torch.get_num_threads()
    yield made
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def draw_table(root: Path, variant: Variant) -> None:
    """Draw images and list them in images.csv; every eighth looks like one of the next class."""
    rows = [["path", "label", "split"]]
    for label, name in enumerate(variant.classes):
        for split, images in zip(SPLITS, variant.images, strict=True):
            for number in range(0 if split == "test" and label < variant.untested else images):
                path = f"{split}_{label:03d}_{number:03d}.png"
                look = label + (number % 8 == 7)
                draw_image(look, len(rows)).save(root / path)
                rows.append([path, name, split])
    with (root / "images.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    (root / "groups.csv").write_text("path,group\n")
    (root / "corrections.csv").write_text("path,label,drop\n")


def write_reference(folder: Path, info: BackboneInfo) -> None:
    """Write a source card and a ruler of one known data set for a backbone."""
    weights = {"backbone": info.name, "weights_sha256": info.weights_sha256}
    features = np.random.default_rng(1).normal(0, 0.1, (40, info.feature_dim))
    provenance = CardOrigin(
        name="photographs", source="", license=None, images=40, weights_license=None,
        input=info.input, fit="crop", command="", **weights,
    )  # fmt: skip
    write_card(folder / "card.safetensors", SourceCard(features.astype(np.float32), provenance))
    known = KnownSet(name="letters", images=500, mmd=0.1, distance=0.1, domain="far")
    ruler = Ruler(
        image_px=info.input.image_px, source="photographs", provenance="", sets=[known],
        marks=Marks(similar=0.03, far=0.1), **weights,
    )  # fmt: skip
    write_record(folder / "ruler.json", ruler)


def reject(findings: Findings) -> Findings:
    """Findings of a run where every phase was rolled back."""
    phases = [
        phase.model_copy(update={"kept": False, "reason": "rolled back: val refuses"})
        for phase in findings.finetuned.phases
    ]
    changes = {"phases": phases, "interpolation": 0.0, "averaged": False}
    finetuned = findings.finetuned.model_copy(update=changes)
    assert finetuned.rejection is not None
    result = explain_rejection(Evaluation(findings.metrics, {}), finetuned.rejection)
    return replace(findings, finetuned=finetuned, metrics=result.metrics)


def make_exported(*, whole: bool = True) -> Exported:
    """What an export could have written."""
    files = (("config.json", 512), ("model.safetensors", 13_500_000))
    onnx = OnnxFile(
        shipped=True, reason="it answers as torch does", bytes=13_400_000, weight_bits=32,
        test_images=508, largest_difference=2.1e-7, answers_that_differ=0,
        val_images=367, val_accuracy=0.88,
    )  # fmt: skip
    int8 = OnnxFile(shipped=False, reason="accuracy on val falls by 1.4 points, more than 0.5")
    return Exported(
        whole=whole, files=files, sha256="ab" * 32, difference=0.0, onnx=onnx, int8=int8
    )


def make_provenance(changed: tuple[str, ...] = ()) -> Provenance:
    """Provenance of a run at some commit."""
    return Provenance(
        code=CodeState("0123456789abcdef" * 2, changed, "cd" * 32 if changed else None),
        data_sha256="ef" * 32,
        params=(("seed", "17"), ("finetune.head_lr", "0.0005")),
        versions=(("python", "3.11.9"), ("torch", "2.10.0")),
    )
