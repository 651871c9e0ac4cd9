"""model.onnx and model_int8.onnx: pixels in, calibrated probabilities out, measured against torch.

Normalization and temperature are in the graph, so that nothing about them can differ where it runs.
A file that answers otherwise than torch is not shipped, and the record says why.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from torch import Tensor, nn

from tasks.artifacts.arrays import Ints, Pixels
from tasks.artifacts.files import write_bytes
from tasks.artifacts.pixels import PixelStore
from tasks.artifacts.records import InputSpec, OnnxFile, Split
from tasks.artifacts.sampling import choose_rows
from tasks.artifacts.tables import Manifest
from tasks.artifacts.words import plural
from tasks.backbones.engine import (
    TOLERANCE,
    TRACED_ROWS,
    FromPixels,
    Outputs,
    TorchEngine,
    difference,
    refuse_difference,
)
from tasks.backbones.onnx_export import export_onnx
from tasks.delivery.onnx_answers import INPUT, OUTPUTS, WHOLE, Answers, OnnxAnswers
from tasks.errors import ArtifactError, first_line

log = logging.getLogger(__name__)

SMALL = "model_int8.onnx"
INT8_LOSS = 0.005  # of accuracy that model_int8.onnx may cost, measured or expected
COMPARED = 2000  # images of val and of test on which files are compared; all where there are fewer
RANGED = 128  # training images that tell how large activations become
BATCH_SIZE = 32
HELD_OUT: tuple[Split, ...] = ("val", "test")
# What stays in floating point: the head, which costs nothing, and the first convolutions, whose
# few channels suffer most (on solar cells 12 % of the answers changed with them, 2 % without).
FLOAT_OPERATIONS = frozenset({"Gemm", "Div", "Softmax"})
FLOAT_CONVOLUTIONS = 7


@dataclass(frozen=True)
class Samples:
    """Images that the files are made and measured with.

    Attributes:
        stores: Packed pixels of every split.
        manifest: Their labels.
        seed: The run's seed, by which images are chosen where there are many.
        threads: Of onnxruntime.
    """

    stores: dict[Split, PixelStore]
    manifest: Manifest
    seed: int
    threads: int

    def choose(self, split: Split, most: int) -> Ints:
        """Choose at most so many images of a split; their numbers, (n,)."""
        return choose_rows(self.manifest.of(split), most, seed=self.seed)

    def batches(self, split: Split, images: Ints, size: int = BATCH_SIZE) -> Iterator[Pixels]:
        """Give the clean views of images, uint8 (n, R, R, 3) each."""
        store = self.stores[split]
        return store.batches(store.row_of(images), size)


class AnswerNetwork(nn.Module):
    """Backbone, head and temperature: normalized images to probabilities, features and logits."""

    def __init__(self, backbone: nn.Module, head: nn.Module, temperature: float) -> None:
        super().__init__()
        self.backbone, self.head, self.temperature = backbone, head, temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give (N, C), (N, D) and (N, C)."""
        features = self.backbone(images)
        logits = self.head(features)
        return (logits / self.temperature).softmax(dim=1), features, logits


def write_onnx_files(
    folder: Path, answers: AnswerNetwork, spec: InputSpec, samples: Samples
) -> tuple[OnnxFile, OnnxFile]:
    """Write the files that answer as torch does, and say how well both do.

    Args:
        folder: Where they go.
        answers: The model, in eval mode.
        spec: What the backbone expects.
        samples: Images of every split.

    Returns:
        Of model.onnx and of model_int8.onnx.

    Raises:
        ArtifactError: The disk is full, or a store cannot be read.
    """
    trial = _Trial(samples, TorchEngine(answers, spec, torch.device("cpu")))
    try:
        whole = _write_whole(folder / WHOLE, answers, spec, trial)
    except (ArtifactError, MemoryError):  # of the machine
        raise
    except Exception as err:  # exporter and runtime raise errors of many kinds
        (folder / WHOLE).unlink(missing_ok=True)
        reason = f"onnxruntime cannot run this network ({first_line(err)})"
        refused = OnnxFile(shipped=False, reason=reason)
        return refused, refused
    return whole, _write_small(folder, trial, whole)


class _Trial:
    """What torch says about images of val and test, and how another engine compares."""

    def __init__(self, samples: Samples, reference: Answers) -> None:
        self.samples = samples
        self._images = {split: samples.choose(split, COMPARED) for split in HELD_OUT}
        self._expected = self._answer(reference)

    def _answer(self, engine: Answers) -> dict[Split, Outputs]:
        return {split: self._answer_split(engine, split) for split in HELD_OUT}

    def _answer_split(self, engine: Answers, split: Split) -> Outputs:
        found = [engine(batch) for batch in self.samples.batches(split, self._images[split])]
        return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))

    def compare(self, file: Path, *, weight_bits: int) -> tuple[OnnxFile, float]:
        """Measure a file; give its record and its largest relative difference of any output."""
        answers = self._answer(OnnxAnswers(file, self.samples.threads))
        found, expected = answers["test"], self._expected["test"]
        right = (
            answers["val"][0].argmax(1) == self.samples.manifest.labels("val")[self._images["val"]]
        )
        at_stake = [
            expect_loss(self._expected[split][0], answers[split][0].argmax(1)) for split in HELD_OUT
        ]
        record = OnnxFile(
            shipped=True,
            reason="",
            bytes=file.stat().st_size,
            weight_bits=weight_bits,
            test_images=len(found[0]),
            largest_difference=float(f"{np.abs(found[0] - expected[0]).max():.1e}"),
            answers_that_differ=int(np.sum(found[2].argmax(1) != expected[2].argmax(1))),
            val_images=len(right),
            val_accuracy=float(right.mean()),
            expected_accuracy_lost=float(np.concatenate(at_stake).mean()),
        )
        return record, difference(found, expected)


def expect_loss(probabilities: NDArray[np.float32], answers: Ints) -> NDArray[np.float32]:
    """Give how much likelier each image's likeliest class is than another answer, (N,), from 0 up.

    Where the probabilities are calibrated, the mean is what accuracy loses by the other answers. It
    needs no labels, and is much surer than counting who is right: of n answers that differ, right
    and wrong ones cancel to within a square root of n by chance alone.

    Args:
        probabilities: Calibrated, (N, C).
        answers: Class indices, (N,).
    """
    chosen = np.take_along_axis(probabilities, answers[:, None], axis=1)[:, 0]
    return np.asarray(probabilities.max(axis=1) - chosen)


def _write_whole(file: Path, answers: AnswerNetwork, spec: InputSpec, trial: _Trial) -> OnnxFile:
    """Write model.onnx; raises what stands in the way, EngineError where it answers otherwise."""
    images = trial.samples.choose("train", TRACED_ROWS)
    shape = (TRACED_ROWS, spec.image_px, spec.image_px, 3)
    example = np.resize(next(trial.samples.batches("train", images)), shape)
    module = FromPixels(answers, spec)
    write_bytes(
        file,
        export_onnx(module, torch.tensor(example), input_name=INPUT, output_names=OUTPUTS),
    )
    record, largest = trial.compare(file, weight_bits=32)
    refuse_difference(largest, TOLERANCE)
    return record.model_copy(update={"reason": "it answers as torch does"})


# integers ----------------------------------------------------------------------------------------


def _write_small(folder: Path, trial: _Trial, whole: OnnxFile) -> OnnxFile:
    """Write model_int8.onnx if accuracy loses little by it.

    Weights of 7 bits come first: processors without VNNI add products of 8 bits up in too few.
    """
    tried: list[OnnxFile] = []
    for bits in (7, 8):
        try:
            _quantize(folder, trial.samples, weight_bits=bits)
            record, _ = trial.compare(folder / SMALL, weight_bits=bits)
        except (ArtifactError, MemoryError):
            raise
        except Exception as err:  # quantizer and runtime raise errors of many kinds
            (folder / SMALL).unlink(missing_ok=True)
            return OnnxFile(shipped=False, reason=f"it cannot be made ({first_line(err)})")
        lost = round((whole.val_accuracy or 0.0) - (record.val_accuracy or 0.0), 9)
        record = record.model_copy(update={"val_accuracy_lost": lost})
        if _cost(record) <= INT8_LOSS:
            return record.model_copy(update={"reason": _say_kept(record)})
        tried.append(record)
    (folder / SMALL).unlink()
    best = min(tried, key=_cost)
    return best.model_copy(update={"shipped": False, "bytes": None, "reason": _say_lost(best)})


def _cost(record: OnnxFile) -> float:
    return max(record.val_accuracy_lost or 0.0, record.expected_accuracy_lost or 0.0)


def _say_kept(record: OnnxFile) -> str:
    said = f"accuracy stays within {100 * INT8_LOSS:g} points ({_say_cost(record)})"
    return said if record.weight_bits == 7 else f"{said}; made for processors with VNNI"


def _say_lost(record: OnnxFile) -> str:
    return f"accuracy may fall by more than {100 * INT8_LOSS:g} points ({_say_cost(record)})"


def _say_cost(record: OnnxFile) -> str:
    lost, expected = record.val_accuracy_lost or 0.0, record.expected_accuracy_lost or 0.0
    return (
        f"{100 * lost:.1f} lost on {plural(record.val_images, 'val image')}; {100 * expected:.1f} "
        "to be expected by the probabilities of all answers that change on val and test"
    )


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
    """Hands training images to the quantizer."""

    def __init__(self, samples: Samples) -> None:
        self._batches = samples.batches("train", samples.choose("train", RANGED), 1)

    def get_next(self) -> dict[str, Pixels] | None:
        """Give the input of the next run; None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def _quantize(folder: Path, samples: Samples, *, weight_bits: int) -> None:
    model = onnx.load(folder / WHOLE)
    head = [node.name for node in model.graph.node if node.op_type in FLOAT_OPERATIONS]
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    with _quiet():
        quantize_static(
            folder / WHOLE,
            folder / SMALL,
            _Reader(samples),
            per_channel=True,
            reduce_range=weight_bits == 7,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[*head, *convolutions[:FLOAT_CONVOLUTIONS]],
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizer from advising, on the log of everybody, what this graph does not need."""
    root = logging.getLogger()

    def drop(record: logging.LogRecord) -> bool:
        return record.name != root.name

    root.addFilter(drop)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeFilter(drop)
