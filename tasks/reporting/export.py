"""The model to deploy: a folder that needs no code of Regraft, for timm and for onnxruntime.

config.json, model.safetensors   timm's format: architecture, preprocessing, class names, weights
head.json, head.safetensors      only where the head is more than timm's linear classifier
model.onnx                       uint8 pixels to calibrated probabilities, features and logits
model_int8.onnx                  the same in integers, where accuracy on val stays
labels.txt                       class names, in the order of the probabilities
calibration.json                 temperature, thresholds of sets of classes and of the domain
reference.safetensors            what tells the domain: features of classes and of held-out images
predict.py                       classifies files with onnxruntime, Pillow and numpy alone
regraft.json                     class names, temperature, preprocessing with the conversion of
                                 transparency and deep values to 8-bit sRGB, test results, and what
                                 was measured of the ONNX files
SHA256SUMS                       of all files, for `sha256sum --check`
"""

import inspect
import shutil
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from tasks import delivery
from tasks.artifacts.arrays import write_tensors
from tasks.artifacts.files import hash_file, replacing_folder, write_text
from tasks.artifacts.records import (
    Calibration,
    Conversion,
    Fit,
    InputSpec,
    OnnxFile,
    write_json,
    write_record,
)
from tasks.delivery.folder import FORMAT, SUMS, hash_files
from tasks.delivery.in_domain import REFERENCE, InDomain
from tasks.delivery.onnx_files import AnswerNetwork, Samples, write_onnx_files
from tasks.delivery.with_torch import load_exported
from tasks.errors import ArtifactError
from tasks.reporting.text import count, plural, size

SAMPLE = 0x45585054  # purpose of the random numbers drawn here
SAMPLE_IMAGES = 2
TOLERANCE = 1e-4  # of the largest logit; bit-equal where timm runs the same kernels

ALONE = Path(str(delivery.__file__)).with_name("alone.py")  # becomes predict.py

CROP_MODES: Mapping[Fit, str] = {"squash": "squash", "crop": "center", "pad": "border"}
WEIGHTS = ("model.safetensors", "head.safetensors")
CARRIED = ("fixed_input_size", "pool_size", "first_conv", "classifier")


@dataclass(frozen=True)
class ShippedModel:
    """The model that ships.

    Attributes:
        name: timm's name of the architecture.
        backbone: Normalized images to pooled features (N, D), in eval mode.
        head: Pooled features to logits (N, C), in eval mode.
        input: What the backbone expects.
        fit: How an image becomes square.
        conversion: How an image of any mode becomes 8-bit sRGB.
        classes: Class names by logit.
        calibration: How logits become probabilities and sets of classes.
        known: Tells whether an image is like those of training.
        limits: What makes an image file a bad one: `max_pixels` and `min_side_px`.
    """

    name: str
    backbone: nn.Module
    head: nn.Module
    input: InputSpec
    fit: Fit
    conversion: Conversion
    classes: Sequence[str]
    calibration: Calibration
    known: InDomain
    limits: Mapping[str, int]

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Give the logits of normalized images."""
        found: Tensor = self.head(self.backbone(images))
        return found


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        whole: Whether timm alone gives the logits; if not, it gives features and the head is apart.
        files: Name and size in bytes of every file.
        sha256: Of model.safetensors.
        difference: Largest difference of a logit between the pipeline's model and the reloaded one.
        onnx: What was measured of model.onnx.
        int8: The same of model_int8.onnx.
    """

    whole: bool
    files: tuple[tuple[str, int], ...]
    sha256: str
    difference: float
    onnx: OnnxFile
    int8: OnnxFile

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return sum(size for name, size in self.files if name in WEIGHTS)

    @property
    def words(self) -> list[str]:
        """What the ONNX files are and how they differ from torch, a sentence each."""
        if not self.onnx.shipped:
            return [f"There is no model.onnx: {self.onnx.reason}."]
        whole = (
            f"model.onnx takes pixels, with normalization inside, and gives calibrated "
            f"probabilities and features; {_say_parity(self.onnx)}."
        )
        if not self.int8.shipped:
            return [whole, f"There is no model_int8.onnx: {self.int8.reason}."]
        return [
            whole,
            f"model_int8.onnx ({size(self.int8.bytes or 0)}) does so in integers: "
            f"{self.int8.reason}; {_say_parity(self.int8)}.",
        ]


def _say_parity(file: OnnxFile) -> str:
    differ = file.answers_that_differ or 0
    return (
        f"on {plural(file.test_images, 'test image')} {count(differ)} "
        f"{'answer differs' if differ == 1 else 'answers differ'} from torch's, a probability by "
        f"{file.largest_difference:.1g} at most"
    )


NOT_MADE = OnnxFile(shipped=False, reason="no images were given to measure it with")


def export_model(
    folder: Path, shipped: ShippedModel, about: Mapping[str, Any], samples: Samples | None = None
) -> Exported:
    """Write the folder and load it again to see that it gives the same logits.

    Args:
        folder: Replaced whole.
        shipped: The model.
        about: Facts that regraft.json tells beside classes and preprocessing.
        samples: Images that the ONNX files are measured with; None leaves these files out.

    Raises:
        ArtifactError: The folder cannot be written, or what timm loads from it is another model.
    """
    whole = _with_classifier(shipped)
    with replacing_folder(folder) as temporary:
        model, classes = whole or shipped.backbone, len(shipped.classes) if whole else 0
        write_tensors(temporary / "model.safetensors", _arrays(model))
        write_json(temporary / "config.json", _timm_config(shipped, model, classes))
        if whole is None:
            layers = _in_a_row(shipped.head)
            write_tensors(temporary / "head.safetensors", _arrays(layers))
            write_json(temporary / "head.json", _describe_head(layers))
        difference = _check(temporary, shipped)
        onnx, int8 = _write_for_onnxruntime(temporary, shipped, samples)
        measured = {"onnx": onnx.model_dump(mode="json"), "int8": int8.model_dump(mode="json")}
        told = _about(shipped, {**measured, **about}, whole=whole is not None)
        write_json(temporary / "regraft.json", told)
        write_text(temporary / SUMS, hash_files(temporary))
        sizes = tuple((file.name, file.stat().st_size) for file in sorted(temporary.iterdir()))
        sha256 = hash_file(temporary / "model.safetensors")
    return Exported(whole is not None, sizes, sha256, difference, onnx, int8)


def _write_for_onnxruntime(
    folder: Path, shipped: ShippedModel, samples: Samples | None
) -> tuple[OnnxFile, OnnxFile]:
    """Write what is needed to classify without timm."""
    write_text(folder / "labels.txt", "".join(f"{name}\n" for name in shipped.classes))
    write_record(folder / "calibration.json", shipped.calibration)
    shipped.known.write(folder / REFERENCE)
    if samples is None:
        return NOT_MADE, NOT_MADE
    answers = AnswerNetwork(shipped.backbone, shipped.head, shipped.calibration.temperature)
    onnx, int8 = write_onnx_files(folder, answers, shipped.input, samples)
    if onnx.shipped:
        shutil.copyfile(ALONE, folder / "predict.py")
    return onnx, int8


def _with_classifier(shipped: ShippedModel) -> nn.Module | None:
    """Put the head into the architecture's own classifier; None where it does not fit."""
    if not isinstance(shipped.head, nn.Linear):
        return None
    model: Any = deepcopy(shipped.backbone)
    own = set(model.state_dict())
    model.reset_classifier(len(shipped.classes))
    classifier = model.get_classifier()
    if (
        not isinstance(classifier, nn.Linear)
        or classifier.weight.shape != shipped.head.weight.shape
        or len(set(model.state_dict()) - own) != 2  # more than one weight and one bias is new
    ):
        return None
    classifier.load_state_dict(shipped.head.state_dict())
    whole: nn.Module = model.eval()
    images = _sample(shipped.input)
    return whole if _difference(shipped.logits(images), _run(whole, images)) is not None else None


def _sample(spec: InputSpec) -> Tensor:
    """Noise in the place of normalized images."""
    rng = np.random.default_rng([0, SAMPLE])
    shape = (SAMPLE_IMAGES, 3, spec.image_px, spec.image_px)
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


@torch.inference_mode()
def _run(model: nn.Module, images: Tensor) -> Tensor:
    outputs: Tensor = model(images)
    return outputs


def _difference(expected: Tensor, found: Tensor) -> float | None:
    """Largest difference of two tensors; None where it is more than rounding."""
    if expected.shape != found.shape:
        return None
    difference = float((expected - found).abs().max())
    return difference if difference <= TOLERANCE * (1 + float(expected.abs().max())) else None


def _arrays(module: nn.Module) -> dict[str, Any]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in module.state_dict().items()}


def _timm_config(shipped: ShippedModel, model: Any, classes: int) -> dict[str, Any]:
    """config.json as `timm.models.save_for_hf` writes it, with this pipeline's preprocessing."""
    source = model.pretrained_cfg
    side = shipped.input.image_px
    preprocessing = {
        "input_size": [3, side, side],
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": CROP_MODES[shipped.fit],
        "mean": list(shipped.input.mean),
        "std": list(shipped.input.std),
        "num_classes": classes,
    }
    config: dict[str, Any] = {
        "architecture": shipped.name.split(".")[0],
        "num_classes": classes,
        "num_features": int(model.num_features),
        "pretrained_cfg": {key: source[key] for key in CARRIED if key in source} | preprocessing,
    }
    if classes:
        config["label_names"] = list(shipped.classes)
    if source.get("fixed_input_size"):
        config["model_args"] = {"img_size": side}
    return config


def _in_a_row(head: nn.Module) -> nn.Sequential:
    """Give a head as named layers of torch.nn."""
    return head if isinstance(head, nn.Sequential) else nn.Sequential(OrderedDict(out=head))


def _describe_head(layers: nn.Sequential) -> dict[str, Any]:
    """Say of which layers a head is made, so that torch.nn can build it again."""
    return {
        "layers": [
            {"name": name, "kind": type(layer).__name__, "arguments": _arguments(layer)}
            for name, layer in layers.named_children()
        ]
    }


def _arguments(layer: nn.Module) -> dict[str, Any]:
    """Give the numbers and switches that a layer was built with; torch.nn keeps them by name."""
    names = inspect.signature(type(layer)).parameters
    found = {name: getattr(layer, name, None) for name in names}
    return {name: value for name, value in found.items() if isinstance(value, int | float | tuple)}


def _about(shipped: ShippedModel, about: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "architecture": shipped.name,
        "head": "in model.safetensors" if whole else "in head.safetensors",
        "classes": list(shipped.classes),
        "temperature": shipped.calibration.temperature,
        "limits": dict(shipped.limits),
        "preprocessing": {
            "color": "sRGB, from the profile of the image if it has one",
            "background": list(shipped.conversion.background),
            "integers": list(shipped.conversion.integers),
            "floats": list(shipped.conversion.floats),
            "image_px": shipped.input.image_px,
            "fit": shipped.fit,
            "interpolation": "bicubic",
            "mean": list(shipped.input.mean),
            "std": list(shipped.input.std),
        },
        **about,
    }


def _check(folder: Path, shipped: ShippedModel) -> float:
    """Load the folder with timm alone and compare the logits."""
    model, head = load_exported(folder, f"the exported {shipped.name}")
    images = _sample(shipped.input)
    found = _run(model if head is None else nn.Sequential(model, head), images)
    difference = _difference(shipped.logits(images), found)
    if difference is None:
        raise ArtifactError(
            f"exported {shipped.name}, loaded with timm {timm.__version__}, gives other logits than"
            " the trained model; nothing was exported. Use the timm version of constraints.txt"
        )
    return difference
