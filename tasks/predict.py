"""Names the class of image files by the exported model: a row an image, also for one that is bad.

python -m tasks.predict SOURCE OUT. Files are read as those of training were, with the decoder,
conversion and fit that the model carries. Names that have an answer in OUT are not done again.
"""

import argparse
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np

from tasks.artifacts.arrays import Pixels
from tasks.artifacts.tables import AnswerRow
from tasks.artifacts.words import plural, printable
from tasks.delivery.answer_file import AnswerFile
from tasks.delivery.answer_formats import refuse
from tasks.delivery.folder import DeliveredModel, read_delivered
from tasks.delivery.inputs import InputFiles, list_inputs
from tasks.delivery.onnx_answers import WHOLE, Answers, OnnxAnswers
from tasks.errors import ArtifactError, DataError, ImageError, first_line
from tasks.images.validate import read_whole
from tasks.images.views import ImageView, read_view
from tasks.judging.conformal import build_sets
from tasks.judging.metrics import log_probabilities
from tasks.runtime.entry import LACKING, run_stage
from tasks.runtime.machine import Machine, read_machine
from tasks.runtime.parallel import AHEAD, map_in_order
from tasks.runtime.progress import progress

log = logging.getLogger(__name__)

MODEL = Path("data/report/model")
BATCH_SIZE = 32
NVIDIA = Path("/dev/nvidiactl")  # is there where a driver is

OnBad = Literal["row", "fail"]
Explain = Callable[[str, Pixels, str], None]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Arguments:
    """What the user asks for."""

    source: str
    out: Path
    model: Path
    on_bad: OnBad
    probabilities: bool
    explain: Path | None


def predict(
    inputs: InputFiles,
    model: DeliveredModel,
    engine: Answers,
    answers: AnswerFile,
    *,
    workers: int,
    explain: Explain | None = None,
) -> int:
    """Write an answer for every input that has none yet; give how many those were.

    Args:
        inputs: The files.
        model: How they are read and what their classes are.
        engine: Runs the model.
        answers: Where the rows go.
        workers: Threads that read files; memory holds some batches, however many files there are.
        explain: Gets name, pixels and class of every answer before its row is written.
    """
    left = list(_without(inputs.names, answers.done))
    with progress("answers", len(left)) as meter:
        read_file = partial(read_pixels, model=model)
        for batch in read_batches(left, inputs, read_file, workers=workers):
            rows = classify(batch, model, engine, answers.classes)
            for row, (name, pixels) in zip(rows, batch, strict=True):
                if explain and not isinstance(pixels, ImageError):
                    explain(name, pixels, row.predicted)
            answers.append(rows)
            meter.advance(len(batch))
    return len(left)


def read_batches(
    names: Sequence[str], inputs: InputFiles, read_file: Callable[[Path], Item], *, workers: int
) -> Iterator[list[tuple[str, Item]]]:
    """Give files in order, `BATCH_SIZE` at a time: each name with what is read of it."""
    files = map(inputs.path, names)
    ahead = max(AHEAD, BATCH_SIZE // workers)  # one is read while the one before is computed
    read = map_in_order(read_file, files, workers=workers, ahead=ahead)
    yield from _batches(zip(names, read, strict=True), BATCH_SIZE)


def read_pixels(file: Path, *, model: DeliveredModel) -> Pixels | ImageError:
    """Read a file as training read its images: uint8 (R, R, 3), or why it cannot be used."""
    view = read_as_trained(file, model=model)
    return view if isinstance(view, ImageError) else view.pixels


def read_as_trained(file: Path, *, model: DeliveredModel) -> ImageView | ImageError:
    """Read a file as training read its images; or give why it cannot be used.

    Raises:
        DataError: The machine, not the file, is at fault, and that may pass.
    """
    try:
        return read_view(
            read_whole(file),
            image_px=model.image_px,
            fit=model.fit,
            max_pixels=model.max_pixels,
            min_side_px=model.min_side_px,
            conversion=model.conversion,
        )
    except ImageError as err:
        if getattr(err.__cause__, "errno", None) in LACKING:
            raise DataError(f"{printable(str(file))}: {err}") from err
        return err


def classify(
    batch: Sequence[tuple[str, Pixels | ImageError]],
    model: DeliveredModel,
    engine: Answers,
    classes: Sequence[str],
) -> list[AnswerRow]:
    """Give the rows of a batch.

    Args:
        batch: Names with their pixels, or with why there are none.
        model: Classes and calibration.
        engine: Runs the model.
        classes: All classes where rows are to tell the probability of each, else none.
    """
    sound = [pixels for _, pixels in batch if not isinstance(pixels, ImageError)]
    answers = answer(np.stack(sound), model, engine, classes) if sound else []
    answered = iter(answers)
    return [
        refuse(name, str(pixels), model.name, classes)
        if isinstance(pixels, ImageError)
        else replace(next(answered), path=name)
        for name, pixels in batch
    ]


def answer(
    pixels: Pixels, model: DeliveredModel, engine: Answers, classes: Sequence[str]
) -> list[AnswerRow]:
    """Give rows without a path for images, uint8 (N, R, R, 3)."""
    _, features, logits = engine(pixels)
    calibration, known = model.calibration, model.known
    probabilities = np.exp(log_probabilities(logits, calibration.temperature))
    sets = build_sets(probabilities, calibration.set_thresholds)
    scores, limit = known.scores(features), known.threshold
    measured = bool(np.isfinite(limit))
    return [
        AnswerRow(
            path="",
            predicted=model.classes[best],
            probability=float(p.max()),
            label_set=json.dumps(
                [model.classes[c] for c in np.flatnonzero(among)], ensure_ascii=False
            ),
            strangeness=float(score / limit) if measured and limit > 0 else None,
            in_domain=bool(score <= limit) if measured else None,
            error="",
            model=model.name,
            probabilities=dict(zip(classes, p.tolist(), strict=False)),
        )
        for best, p, among, score in zip(
            np.argmax(logits, axis=1), probabilities, sets, scores, strict=True
        )
    ]


def open_engine(model: DeliveredModel, machine: Machine, *, rows: int) -> Answers:
    """Choose what runs the model: onnxruntime on a CPU, torch on a GPU or where ONNX cannot.

    Raises:
        ArtifactError: onnxruntime cannot load model.onnx, or timm the folder.
        EngineError: REGRAFT_ENGINE or REGRAFT_DEVICE asks for what cannot be had.
    """
    on_cpu = machine.device == "cpu" or (machine.device == "auto" and not NVIDIA.exists())
    plain = machine.engine in {"auto", "onnxruntime"}
    if on_cpu and plain and (model.folder / WHOLE).is_file():
        try:
            return OnnxAnswers(model.folder / WHOLE, machine.compute_threads)
        except Exception as err:  # onnxruntime raises errors of many kinds
            raise ArtifactError(
                f"{model.folder / WHOLE}: onnxruntime cannot load it ({first_line(err)})"
            ) from err
    from tasks.delivery.with_torch import make_torch_answers  # noqa: PLC0415 - takes seconds

    shape = (BATCH_SIZE, model.image_px, model.image_px, 3)
    sample = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return make_torch_answers(model, machine, sample, rows=rows)


def open_explain(folder: Path, model: DeliveredModel, machine: Machine) -> Explain:
    """Make what writes a picture an answer: the square view with its heatmap laid over.

    Raises:
        ArtifactError: timm cannot load the model.
        EngineError: The network has no map of places.
    """
    # torch takes seconds to import
    from tasks.delivery.explanations import GradCam, lay_over, write_picture  # noqa: PLC0415
    from tasks.delivery.with_torch import load_parts  # noqa: PLC0415
    from tasks.runtime.device import configure_torch  # noqa: PLC0415

    cam = GradCam(*load_parts(model), configure_torch(machine, seed=0))

    def explain(name: str, pixels: Pixels, predicted: str) -> None:
        asked = np.array([model.classes.index(predicted)])
        write_picture(folder, name, lay_over(pixels, cam.heatmaps(pixels[None], asked)[0]))

    return explain


def _without(names: Sequence[str], done: Counter[str]) -> Iterator[str]:
    """Leave out as many of each name as are done."""
    left = done.copy()
    for name in names:
        if left[name] > 0:
            left[name] -= 1
        else:
            yield name


def _batches(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while batch := list(islice(items, size)):
        yield batch


def read_command(argv: Sequence[str] | None) -> Arguments:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tasks.predict", description=__doc__)
    parser.add_argument(
        "source", help="folder of images, csv with a column path, image, or - for paths on stdin"
    )
    parser.add_argument("out", type=Path, help="table to write: .csv, .jsonl or .parquet")
    parser.add_argument("--model", type=Path, default=MODEL, help=f"exported model ({MODEL})")
    parser.add_argument(
        "--on-bad",
        choices=get_args(OnBad),
        default="row",
        help="bad files: only a row with the error (row), or also exit status 1 (fail)",
    )
    parser.add_argument("--probabilities", action="store_true", help="also a column for each class")
    parser.add_argument(
        "--explain",
        type=Path,
        metavar="FOLDER",
        help="also write a picture of each new answer: the image with a heatmap of what spoke for "
        "the class (takes several times as long)",
    )
    return Arguments(**vars(parser.parse_args(argv)))


def main(argv: Sequence[str] | None) -> None:
    """Read the model and the source, write the answers.

    Raises:
        DataError: Files were bad and the policy is `fail`; all answers are written by then.
    """
    asked, machine = read_command(argv), read_machine()
    inputs = list_inputs(asked.source, without=[asked.out, *filter(None, [asked.explain])])
    model = read_delivered(asked.model)
    classes = model.classes if asked.probabilities else []
    started = time.monotonic()
    with AnswerFile(asked.out, classes, model.name) as answers:
        engine = open_engine(model, machine, rows=len(inputs.names))
        explain = open_explain(asked.explain, model, machine) if asked.explain else None
        new = predict(
            inputs, model, engine, answers, workers=machine.decode_workers, explain=explain
        )
    words = f"{plural(answers.errors, 'file')} could not be used; {asked.out} says why"
    if answers.errors and asked.on_bad == "fail":
        raise DataError(words)
    log.info(
        "%s in %s, %d of them new, %.3g a second, model %s%s",
        plural(answers.done.total() + new, "row"),
        asked.out,
        new,
        new / max(time.monotonic() - started, 1e-9),
        model.name,
        _say_strange(answers.strange, new) + (f"; {words}" if answers.errors else ""),
    )
    if asked.explain:
        log.info(
            "%s in %s, named by path; rows that the table had before got none",
            plural(new - answers.errors, "heatmap"),
            asked.explain,
        )


def _say_strange(strange: int, new: int) -> str:
    if not strange:
        return ""
    return f"; {strange} of {plural(new, 'new image')} unlike those of training (in_domain 0)"


if __name__ == "__main__":
    sys.exit(run_stage("predict", main, timed=False))
