"""Compare what is delivered with torch on several sets: answers, accuracy, size and speed.

`PYTHONPATH=tests python -m bench.delivery --help`; writes docs/benchmarks/delivery.md.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from bench.arms import transfer_by
from bench.decisions import parse_sets
from bench.frozen import table
from bench.pools import make_pool
from bench.scratch import ROOT
from bench.studies import Study
from bench.subsets import choose_subset

from tasks import predict
from tasks.artifacts.arrays import Features, Ints, Pixels, read_array
from tasks.artifacts.pixels import PixelStore
from tasks.artifacts.records import (
    SPLITS,
    Calibration,
    Conversion,
    Finetuned,
    OnnxFile,
    Split,
    read_record,
    write_record,
)
from tasks.artifacts.tables import read_manifest
from tasks.backbones.engine import TorchEngine
from tasks.delivery.answer_file import AnswerFile
from tasks.delivery.folder import read_delivered
from tasks.delivery.inputs import InputFiles
from tasks.delivery.onnx_answers import LOGITS, WHOLE, OnnxAnswers
from tasks.delivery.onnx_files import SMALL, AnswerNetwork, Samples
from tasks.delivery.with_torch import load_parts
from tasks.evaluate import run_model
from tasks.evaluation.unknown import Embedded, fit_in_domain
from tasks.heads.classifier import load_finetuned
from tasks.judging.conformal import fit_thresholds, score_classes
from tasks.judging.metrics import log_probabilities
from tasks.judging.rule import ValSet
from tasks.params_file import load_params
from tasks.reporting.export import ShippedModel, export_model
from tasks.runtime.machine import prepare_memory

OUT = Path("docs/benchmarks/delivery.md")
ARM = "most"
BATCH = 32
REPEATS = 3
TURNS = 7  # of predict, between runs of onnxruntime alone
TIMED = 2048  # images a run, so that it takes seconds
DEFAULT = "the embedded default"
OF_SETS = """\
The upper two thirds of {backbone} were fine-tuned on {level} training images a class at {px} px
(seed {seed}) and exported as `report` does.
"""
OF_PROJECT = "What `make run` exported: the embedded default at its size of images.\n"
INTRO = """\
*Differ*: test images that get another class than from torch, and the largest difference of a
probability. Accuracy on test, %. Where integers cost more than half a point of accuracy, on val or
as torch's probabilities make expect on val and test, they are not shipped. Images a second: the
best of {repeats} runs over {timed} images (those of test, time and again) in batches of {batch},
{threads} thread(s) on {processor}. *predict* is the loop of `tasks.predict` on decoded pixels, with
sets, strangeness and the table, as a share of the time that onnxruntime alone takes for model.onnx
right before and after it: the median of {turns} turns, the least and the most. Decoding is not in
it.
"""


@dataclass(frozen=True)
class Row:
    """What was measured on one set; one accuracy and one speed for each engine, torch first."""

    name: str
    test: int
    onnx: OnnxFile
    int8: OnnxFile
    accuracies: list[float]
    speeds: list[float]
    overheads: list[float]
    sizes: list[int]


def measure(name: str, study: Study, folder: Path) -> Row:
    """Train, export, compare."""
    shipped = train(study)
    stores: dict[Split, PixelStore] = {split: study.pixels(split) for split in SPLITS}
    samples = Samples(stores, study.manifest, study.params.seed, threads=1)
    exported = export_model(folder, shipped, {}, samples)
    labels = study.manifest.labels("test")
    return compare(name, folder, stores["test"], labels, exported.onnx, exported.int8)


def measure_project(root: Path) -> Row:
    """Compare what the pipeline exported in a project."""
    folder = root / "data/report/model"
    told = json.loads((folder / "regraft.json").read_text(encoding="utf-8"))
    measured = [OnnxFile(**told[name]) for name in ("onnx", "int8")]
    labels = read_manifest(root / "data/ingest/manifest.csv").labels("test")
    store = PixelStore.open(root / "data/augment/test")
    return compare(DEFAULT, folder, store, labels, *measured)


def compare(
    name: str, folder: Path, store: PixelStore, labels: Ints, onnx: OnnxFile, int8: OnnxFile
) -> Row:
    """Run torch and the ONNX files over the test images."""
    pixels = store.rows(store.clean_rows())
    engines = [torch_engine(folder), OnnxAnswers(folder / WHOLE, 1)]
    if int8.shipped:
        engines.append(OnnxAnswers(folder / SMALL, 1))
    found = [run(engine, pixels) for engine in engines]
    timed = pixels[np.arange(TIMED) % len(pixels)]
    runs = [partial(run, engine, timed) for engine in engines]
    times = [min(_seconds(one) for _ in range(REPEATS)) for one in runs]
    files = ("model.safetensors", WHOLE, SMALL)
    return Row(
        name=name,
        test=len(labels),
        onnx=onnx,
        int8=int8,
        accuracies=[float(np.mean(one == labels)) for one in found],
        speeds=[TIMED / seconds for seconds in times],
        overheads=compare_with_predict(folder, timed),
        sizes=[(folder / file).stat().st_size for file in files if (folder / file).exists()],
    )


def train(study: Study) -> ShippedModel:
    """Fine-tune in a study and put together what ships."""
    study.run("baseline")
    write_record(study.path("decide/transfer.json"), transfer_by(ARM, study))
    study.run("finetune")
    summary = read_record(study.path("finetune/finetune.json"), Finetuned)
    model = load_finetuned(study.path("finetune/model.safetensors"), summary)
    manifest, params = study.manifest, load_params(ROOT / "params.yaml")
    val = ValSet(manifest.labels("val"), manifest.groups("val"))
    logits = np.array(read_array(study.path("finetune/val_logits.npy")))
    temperature = val.temperature(logits)
    probabilities = np.exp(log_probabilities(logits, temperature))

    def see(split: Split, classes: Ints) -> Embedded:
        features: Features = run_model(
            model.backbone, summary.input, study.pixels(split), seed=params.seed, what=split
        )
        return Embedded(features, classes, manifest.groups(split))

    known = fit_in_domain(
        see("train", manifest.labels("train")),
        see("val", logits.argmax(axis=1)),
        false_alarm=params.evaluate.false_alarm,
    )
    coverage = params.evaluate.set_coverage
    return ShippedModel(
        name=summary.backbone,
        backbone=model.backbone,
        head=model.head,
        input=summary.input,
        fit="squash",
        conversion=read_record(study.path("ingest/conversion.json"), Conversion),
        classes=manifest.class_names,
        calibration=Calibration(
            temperature=temperature,
            fitted_on="val",
            images=len(logits),
            set_coverage=coverage,
            set_thresholds=fit_thresholds(
                score_classes(probabilities, "lac"),
                manifest.labels("val"),
                manifest.groups("val"),
                coverage=coverage,
            ),
            in_domain=known.threshold if np.isfinite(known.threshold) else None,
            false_alarm=known.false_alarm,
        ),
        known=known,
        limits={"max_pixels": params.ingest.max_pixels, "min_side_px": params.ingest.min_side_px},
    )


Engine = Callable[[Pixels], Sequence[np.ndarray]]


def torch_engine(folder: Path) -> Engine:
    """Give the exported model in torch, float32."""
    model = read_delivered(folder)
    backbone, head, spec = load_parts(model)
    answers = AnswerNetwork(backbone, head, model.calibration.temperature).eval()
    return TorchEngine(answers, spec, torch.device("cpu"))


def run(engine: Engine, pixels: Pixels) -> Ints:
    """Give the predicted classes."""
    parts = [engine(pixels[at : at + BATCH])[LOGITS] for at in range(0, len(pixels), BATCH)]
    found: Ints = np.concatenate(parts).argmax(axis=1)
    return found


def compare_with_predict(folder: Path, pixels: Pixels) -> list[float]:
    """Give the time of predict's own loop on decoded pixels, as a share of onnxruntime's, by turns.

    The machine's speed drifts; so each turn is compared with the mean of the runs around it.
    """
    model, engine = read_delivered(folder), OnnxAnswers(folder / WHOLE, 1)
    names = [str(number) for number in range(len(pixels))]

    def give(file: Path, *, model: object) -> Pixels:
        return pixels[int(file.name)]

    def once() -> None:
        with (
            tempfile.TemporaryDirectory() as scratch,
            patch.object(predict, "read_pixels", give),
            AnswerFile(Path(scratch) / "out.csv", [], model.name) as answers,
        ):
            predict.predict(InputFiles(Path(), names), model, engine, answers, workers=1)

    alone, whole = [_seconds(lambda: run(engine, pixels))], []
    for _ in range(TURNS):
        whole.append(_seconds(once))
        alone.append(_seconds(lambda: run(engine, pixels)))
    return [2 * one / sum(alone[at : at + 2]) for at, one in enumerate(whole)]


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# the page ----------------------------------------------------------------------------------------


def write_page(rows: Sequence[Row], backbone: str, options: argparse.Namespace) -> str:
    """Write the page."""
    of_sets = OF_SETS.format(
        backbone=backbone, level=options.level, px=options.px, seed=options.seed
    )
    intro = (of_sets if options.sets else "") + (OF_PROJECT if options.project else "")
    intro += INTRO.format(
        batch=BATCH,
        repeats=REPEATS,
        timed=TIMED,
        turns=TURNS,
        threads=1,
        processor=_processor(),
    )
    named = " ".join(f"--set {name}=..." for name in options.sets)
    words = [named, "--project ."] if options.project else [named]
    command = " ".join(["PYTHONPATH=tests python -m bench.delivery", *filter(None, words)])
    head = ["set", "test images", "model.onnx: differ, at most", "model_int8.onnx: differ, at most"]
    head += ["its loss on val; expected, points", "accuracy: torch, ONNX, INT8"]
    answers = [
        [
            row.name,
            str(row.test),
            _differ(row.onnx.answers_that_differ, row.onnx.largest_difference),
            _differ(row.int8.answers_that_differ, row.int8.largest_difference)
            + ("" if row.int8.shipped else ", not shipped"),
            f"{100 * (row.int8.val_accuracy_lost or 0):.1f}; "
            f"{100 * (row.int8.expected_accuracy_lost or 0):.2f}",
            ", ".join(f"{100 * one:.1f}" for one in row.accuracies),
        ]
        for row in rows
    ]
    speeds = [
        [
            row.name,
            ", ".join(f"{one:.0f}" for one in row.speeds),
            "{1:.2f} ({0:.2f} to {2:.2f})".format(*np.quantile(row.overheads, [0, 0.5, 1])),
            ", ".join(f"{size / 1e6:.1f}" for size in row.sizes),
        ]
        for row in rows
    ]
    speed_head = ["set", "images a second: torch, ONNX, INT8", "predict, time of ONNX alone"]
    speed_head += ["MB: timm, ONNX, INT8"]
    return (
        "\n\n".join(
            [
                "# What is delivered, against torch",
                f"`{command}` wrote this page.",
                intro + "\n" + table(head, answers),
                table(speed_head, speeds),
            ]
        )
        + "\n"
    )


def _differ(answers: int | None, largest: float | None) -> str:
    return "none made" if answers is None else f"{answers}, {largest or 0.0:.1g}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "this processor"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every set, write the page."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    prepare_memory()
    parser = argparse.ArgumentParser(prog="python -m bench.delivery", description=__doc__)
    what = "a folder, csv or descriptor"
    parser.add_argument("--set", action="append", default=[], metavar="NAME=SOURCE", help=what)
    parser.add_argument("--project", type=Path, help="also a checkout in which `make run` ran")
    parser.add_argument("--level", default="50", help="training images a class")
    parser.add_argument("--px", type=int, default=96, help="side of the images")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--scratch", type=Path, default=Path(".regraft/bench"), help="is kept")
    parser.add_argument("--out", type=Path, default=OUT, help="the page")
    options = parse_sets(parser, argv)
    scratch, rows, backbone = options.scratch, [], ""
    for name, source in options.sets.items():
        values = {"augment.image_px": options.px}
        pool = make_pool(
            name, source, scratch / f"pool-{name}-{options.px}", sys.executable, values=values
        )
        backbone = pool.info.name
        params = load_params(ROOT / "params.yaml").ingest
        subset = choose_subset(pool.rows, options.level, params, seed=options.seed)
        assert subset is not None, f"{name} has fewer than {options.level} images a class"
        root = scratch / f"delivery/{name}"
        study = Study.make(pool, subset, root, seed=options.seed)
        rows.append(measure(name, study, root / "model"))
        print(name, file=sys.stderr, flush=True)  # noqa: T201
        options.out.write_text(write_page(rows, backbone, options))
    if options.project:
        rows.append(measure_project(options.project))
        options.out.write_text(write_page(rows, backbone, options))


if __name__ == "__main__":
    main()
