"""Runs an exported model in torch, from what timm loads: on a GPU, or without an ONNX file."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from tasks.artifacts.arrays import Pixels, read_tensors
from tasks.artifacts.records import InputSpec, read_json
from tasks.backbones.engine import Engine, make_engine
from tasks.delivery.folder import DeliveredModel
from tasks.delivery.onnx_files import AnswerNetwork
from tasks.errors import ArtifactError
from tasks.runtime.machine import Machine


def load_exported(folder: Path, name: str) -> tuple[Any, nn.Module | None]:
    """Load an exported folder: what timm makes of it, and the head where that lies apart.

    Raises:
        ArtifactError: timm cannot; the message calls the folder by `name`.
    """
    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except RuntimeError as err:
        reason = " ".join(str(err).split())[:200]
        raise ArtifactError(
            f"timm {timm.__version__} cannot load {name} ({reason}); use the version of "
            "constraints.txt"
        ) from err
    return model, _load_head(folder) if (folder / "head.json").is_file() else None


def _load_head(folder: Path) -> nn.Module:
    """Build the head that head.json describes, as `tasks.reporting.card` prints it."""
    form, arrays = read_json(folder / "head.json"), read_tensors(folder / "head.safetensors")
    layers = nn.Sequential(
        OrderedDict(
            (layer["name"], getattr(nn, layer["kind"])(**layer["arguments"]))
            for layer in form["layers"]
        )
    )
    layers.load_state_dict({name: torch.from_numpy(arrays[name].copy()) for name in arrays})
    return layers.eval()


def load_parts(model: DeliveredModel) -> tuple[nn.Module, nn.Module, InputSpec]:
    """Load backbone and head of an exported model apart, and what images the backbone expects.

    Raises:
        ArtifactError: timm cannot load the folder.
    """
    backbone, head = load_exported(model.folder, str(model.folder))
    if head is None:
        head = backbone.get_classifier()
        backbone.reset_classifier(0)
    config = backbone.pretrained_cfg
    return (
        backbone,
        head,
        InputSpec(image_px=model.image_px, mean=config["mean"], std=config["std"]),
    )


def make_torch_answers(
    model: DeliveredModel, machine: Machine, sample: Pixels, *, rows: int
) -> Engine:
    """Make the engine of a model for this machine, as for frozen networks.

    Args:
        model: The exported model.
        machine: Device, threads and engine.
        sample: uint8 (n, R, R, 3), some images.
        rows: Images that it will run over.

    Raises:
        ArtifactError: timm cannot load the folder.
        EngineError: REGRAFT_ENGINE forces an engine that cannot run the network, or the device
            asked for is missing.
    """
    backbone, head, spec = load_parts(model)
    answers = AnswerNetwork(backbone, head, model.calibration.temperature).eval()
    return make_engine(answers, spec, machine, sample, rows=rows)
