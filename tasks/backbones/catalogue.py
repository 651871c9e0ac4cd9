"""Backbones by name: a timm architecture with packaged, downloaded, given or random weights."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.models import PretrainedCfg
from torch import nn

from tasks.artifacts.records import InputSpec
from tasks.backbones.groups import PooledFeatures
from tasks.backbones.packaged import find_packaged
from tasks.backbones.weights import (
    fetch_from_hub,
    hash_state,
    load_state,
    read_packaged,
    read_safetensors,
    read_settings,
    strip_prefixes,
)
from tasks.errors import EngineError, ParamsError, WeightsError

WEIGHTS_PURPOSE = 0x57E1  # tells the random numbers of weights from those drawn for other purposes


@dataclass(frozen=True, slots=True)
class Backbone:
    """A pretrained network with its classifier, and all that must be known to use and credit it."""

    name: str
    weights: str
    model: (
        nn.Module
    )  # timm module in eval mode, on the CPU, with its pretrained classifier if it has one
    input: InputSpec
    weights_sha256: str
    license: str | None
    source: str | None
    feature_dim: int


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A filled architecture and where its weights are from."""

    model: nn.Module
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    license: str | None
    source: str | None


def load_backbone(name: str, weights: str, *, image_px: int, seed: int) -> Backbone:
    """Load a backbone.

    Args:
        name: timm architecture, with or without the tag of its weights (`resnet50.a1_in1k`).
        weights: packaged, hub, random or the path of a .safetensors file.
        image_px: Side of the images that it will see, pixels.
        seed: Of random weights; used by nothing else.

    Raises:
        ParamsError: timm knows no such architecture.
        WeightsError: The weights cannot be had, are not the pinned ones or do not fit.
        EngineError: The network takes no images of this size, or gives no pooled feature vector.
    """
    settings = settings_of(name)
    if weights == "packaged":
        loaded = _load_packaged(name, image_px)
    elif weights == "hub":
        loaded = _load_hub(name, image_px, settings)
    elif weights == "random":
        loaded = _load_random(name, image_px, seed, settings)
    else:
        loaded = _load_file(name, image_px, Path(weights), settings)
    spec = InputSpec(image_px=image_px, mean=loaded.mean, std=loaded.std)
    return Backbone(
        name=name,
        weights=weights,
        model=loaded.model,
        input=spec,
        weights_sha256=hash_state(loaded.model.state_dict()),
        license=loaded.license,
        source=loaded.source,
        feature_dim=_count_features(name, loaded.model, image_px),
    )


def create_architecture(name: str, *, image_px: int | None = None) -> nn.Module:
    """Create a timm architecture without classifier: normalized images to pooled features (N, D).

    Its weights are random (drawn from torch's global generator) and meant to be overwritten.

    Args:
        name: timm architecture.
        image_px: Side of its images, pixels; None for the architecture's own. Matters only to
            networks that are built for one size, such as vision transformers.

    Raises:
        ParamsError: timm knows no such architecture.
        EngineError: The architecture cannot be built for this size.
    """
    return _create(name, image_px=image_px, num_classes=0)


def _create(name: str, *, image_px: int | None, **options: Any) -> nn.Module:
    """Create a timm model in eval mode that says the size of its images in `pretrained_cfg`."""
    settings = settings_of(name)
    own_px = settings.input_size[-1]
    image_px = own_px if image_px is None else image_px
    if settings.fixed_input_size and image_px != own_px:
        options["img_size"] = image_px
    try:
        model = timm.create_model(name, **options)
    except (TypeError, AssertionError, ValueError) as err:
        raise EngineError(
            f"backbone {name} cannot be built for images of {image_px} px ({err}); set "
            f"augment.image_px to {own_px}"
        ) from err
    model.pretrained_cfg["input_size"] = (3, image_px, image_px)
    created: nn.Module = model.eval()
    return created


def settings_of(name: str) -> PretrainedCfg:
    """Give what timm knows of a backbone.

    Raises:
        ParamsError: It knows no such architecture, or no such tag of its weights.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(
            name, timm.list_models(include_tags=False), n=3, cutoff=0.5
        )
        hint = f"did you mean {', '.join(near)}?" if near else "see timm.list_models()"
        raise ParamsError(f"timm {timm.__version__} knows no backbone {name!r}; {hint}")
    try:
        return timm.get_pretrained_cfg(name) or PretrainedCfg()
    except RuntimeError as err:
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise ParamsError(
            f"timm {timm.__version__} knows no tag {name!r}; allowed: "
            f"{', '.join(tags) or name.partition('.')[0]}"
        ) from err


def _load_packaged(name: str, image_px: int) -> _Loaded:
    packaged = find_packaged(name)
    model = _create(name, image_px=image_px)
    model.load_state_dict(read_packaged(packaged, model.state_dict()))
    return _Loaded(model, packaged.mean, packaged.std, packaged.license, packaged.source)


def _load_hub(name: str, image_px: int, settings: PretrainedCfg) -> _Loaded:
    path = fetch_from_hub(name, settings.hf_hub_id, settings.hf_hub_filename)
    read_safetensors(path)  # so that a damaged download is named before timm opens it
    try:
        model = _create(
            name, image_px=image_px, pretrained=True, pretrained_cfg_overlay={"file": str(path)}
        )
    except RuntimeError as err:
        reason = " ".join(str(err).split())[:300]
        raise WeightsError(
            f"{path}: does not fit {name} ({reason}); remove it from the cache"
        ) from err
    source = f"https://huggingface.co/{settings.hf_hub_id}"
    return _Loaded(model, settings.mean, settings.std, settings.license, source)


def _load_random(name: str, image_px: int, seed: int, settings: PretrainedCfg) -> _Loaded:
    drawn = int(
        np.random.SeedSequence([seed, WEIGHTS_PURPOSE]).generate_state(1, np.uint64)[0] >> 1
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(drawn)
        model = create_architecture(name, image_px=image_px)
    return _Loaded(model, settings.mean, settings.std, None, None)


def _load_file(name: str, image_px: int, path: Path, settings: PretrainedCfg) -> _Loaded:
    tensors = strip_prefixes(read_safetensors(path), where=str(path))
    beside = read_settings(path)
    classes = _classes_in(tensors, settings)
    model = _create(name, image_px=image_px, num_classes=classes)
    load_state(model, tensors, where=str(path))
    mean, std = (_three(beside.get(key), getattr(settings, key)) for key in ("mean", "std"))
    license_name = beside.get("license")
    return _Loaded(model, mean, std, str(license_name) if license_name else None, path.name)


def _classes_in(tensors: Mapping[str, torch.Tensor], settings: PretrainedCfg) -> int:
    """Outputs of the classifier that a file holds; 0 if it holds none."""
    named = settings.classifier
    first = named[0] if isinstance(named, (tuple, list)) else named
    weight = tensors.get(f"{first}.weight")
    return 0 if weight is None else len(weight)


def _three(found: object, otherwise: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = found if isinstance(found, list) else otherwise
    return float(red), float(green), float(blue)


def _count_features(name: str, model: nn.Module, image_px: int) -> int:
    """Number of pooled features, from one forward pass."""
    image = torch.rand((1, 3, image_px, image_px), generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            features = PooledFeatures(model)(image)
    except (RuntimeError, AssertionError) as err:
        raise EngineError(
            f"backbone {name} takes no images of {image_px} px ({str(err).splitlines()[0]}); "
            "change augment.image_px"
        ) from err
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        raise EngineError(
            f"backbone {name} gives no single vector of pooled features for an image; choose "
            "another backbone"
        )
    return features.shape[1]
