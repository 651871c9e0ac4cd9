"""The probe: what a backbone's normalization layers see in training images, untrained features.

Similarity is judged from it, so that no later stage has to run the backbone again.
"""

import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from tasks.artifacts.arrays import Array, Ints, Pixels, write_tensors
from tasks.artifacts.pixels import PixelStore
from tasks.artifacts.records import InputSpec
from tasks.artifacts.sampling import choose_rows, number_groups
from tasks.artifacts.tables import ManifestRow
from tasks.backbones.catalogue import Backbone
from tasks.backbones.engine import make_engine
from tasks.backbones.groups import PooledFeatures, untyped
from tasks.backbones.normalization import LayerInputs, fit_running_statistics, measure_inputs
from tasks.backbones.source_head import SourceHead
from tasks.params import ExtractParams
from tasks.runtime.device import find_device, normalize
from tasks.runtime.machine import Machine
from tasks.runtime.progress import Meter, progress

PROBE_PURPOSE = 0x9B0B  # tells the random numbers that choose probe images from all others
SAMPLE_IMAGES = 8  # on which an engine is compared with torch
MOST_WORKERS = 4  # batches in memory at a time are several times as many
PARTS = 20  # at most, each left out in turn for the interval of the shift
LONGEST_MEANING = 50  # characters of a class whose names alone do not tell it
FITTED_IMAGES = 128  # that set the running statistics of the untrained network
Images = TypeVar("Images", Pixels, torch.Tensor)


@dataclass(frozen=True, slots=True)
class ProbeImages:
    """Clean training images on which the probe is measured.

    Attributes:
        store: Packed training pixels.
        rows: Image numbers, ascending: (n,).
        parts: The part of each of them, from 0 without gaps; a group lies in one part: (n,).
        mixed: Some of them in random order, on which untrained statistics are fitted; they leave no
            last batch of one image, which has no variance where a layer sees one position.
        batch_size: Images a forward pass.
    """

    store: PixelStore
    rows: Ints
    parts: Ints
    mixed: Ints
    batch_size: int

    def pixels(self) -> Iterator[Pixels]:
        """Yield uint8 (N, R, R, 3), in the order of `rows`."""
        return self.store.batches(self.store.row_of(self.rows), self.batch_size)

    def by_part(self, spec: InputSpec) -> Iterator[Iterator[torch.Tensor]]:
        """Yield what a backbone expects, one part after the other."""
        for part in range(int(self.parts.max()) + 1):
            yield self._normalized(self.rows[self.parts == part], spec)

    def mixed_up(self, spec: InputSpec) -> Iterator[torch.Tensor]:
        """Yield what a backbone expects, in the order of `mixed`."""
        return self._normalized(self.mixed, spec)

    def _normalized(self, images: Ints, spec: InputSpec) -> Iterator[torch.Tensor]:
        for pixels in self.store.batches(self.store.row_of(images), self.batch_size):
            yield normalize(torch.from_numpy(pixels), spec)


@dataclass(frozen=True, slots=True)
class Probe:
    """What is measured on the probe's images.

    Attributes:
        rows: Image numbers in train, ascending: (n,).
        parts: The part of each of them, of which `layers` hold what they see: (n,).
        random_features: float32 (n, D) of the same architecture with random weights.
        layers: Inputs of the normalization layers in forward order; empty where there are none.
        head: The classifier of the pretraining; None where its classes have no known names.
    """

    rows: Ints
    parts: Ints
    random_features: NDArray[np.float32]
    layers: list[LayerInputs]
    head: SourceHead | None


def choose_probe_images(
    store: PixelStore, rows: Sequence[ManifestRow], params: ExtractParams, seed: int
) -> ProbeImages:
    """Choose training images for the probe, each class by its share, and deal them into parts.

    The choice depends on the seed and each image's hash, so that further images displace few.

    Args:
        store: Packed training pixels.
        rows: The training images, in the manifest's order.
        params: The `extract` block.
        seed: The run's seed.
    """
    chosen = choose_rows(rows, params.shift_images, seed=seed)
    rng = np.random.default_rng([seed, PROBE_PURPOSE])
    units = number_groups([rows[number].group for number in chosen])
    parts = rng.permutation(int(units.max()) + 1)[units] % PARTS
    mixed = rng.permutation(chosen)
    fitted = min(len(chosen), FITTED_IMAGES)
    fitted -= fitted > 1 and fitted % params.batch_size == 1
    return ProbeImages(store, chosen, parts, mixed[:fitted], params.batch_size)


def measure_probe(
    backbone: Backbone, untrained: Backbone, images: ProbeImages, machine: Machine
) -> Probe:
    """Measure the inputs of the normalization layers, and features without any pretraining.

    Args:
        backbone: The pretrained network.
        untrained: The same architecture with random weights. Its running statistics are fitted to
            the images first, otherwise its features would vanish or explode with depth.
        images: Training images.
        machine: Device, threads and engine.
    """
    device, workers = find_device(machine), _workers(machine)
    total = 2 * len(images.rows) + len(images.mixed)
    with progress("probe", total) as meter:
        layers = measure_layers(
            backbone, (_metered(part, meter) for part in images.by_part(backbone.input)), machine
        )
        fit_running_statistics(
            untrained.model.to(device),
            _metered(images.mixed_up(untrained.input), meter),
            workers=workers,
        )
        module = PooledFeatures(untrained.model.cpu())
        engine = make_engine(module, untrained.input, machine, sample_pixels(images.store))
        features = [engine(pixels)[0] for pixels in _metered(images.pixels(), meter)]
    return Probe(
        images.rows, images.parts, np.concatenate(features), layers, find_source_head(backbone)
    )


def measure_layers(
    backbone: Backbone, parts: Iterable[Iterable[torch.Tensor]], machine: Machine
) -> list[LayerInputs]:
    """Measure the inputs of the normalization layers on a machine, where the model stays.

    Args:
        backbone: The pretrained network.
        parts: Batches of each part of the images, normalized.
        machine: Device and threads.
    """
    model = backbone.model.to(find_device(machine))
    return measure_inputs(model, parts, workers=_workers(machine))


def _workers(machine: Machine) -> int:
    on_gpu = find_device(machine).type == "cuda"
    return 1 if on_gpu else min(machine.compute_threads, MOST_WORKERS)


def _metered(batches: Iterable[Images], meter: Meter) -> Iterator[Images]:
    for batch in batches:
        yield batch
        meter.advance(len(batch))


def find_source_head(backbone: Backbone) -> SourceHead | None:
    """Take the classifier of the pretraining off a backbone, with ImageNet's names of its classes.

    None where there is none, where it is not one linear layer on the pooled features (tried on one
    image), or where the names are not known: a file's classes may be anything, those of packaged
    and downloaded weights are ImageNet's where timm has a list of that many.
    """
    model = untyped(backbone.model)
    classifier = model.get_classifier()
    subset = infer_imagenet_subset(model) if isinstance(classifier, nn.Linear) else None
    if subset is None or backbone.weights not in ("packaged", "hub"):
        return None
    side = backbone.input.image_px
    image = torch.rand((1, 3, side, side), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        image = image.to(classifier.weight.device)
        alone, whole = classifier(PooledFeatures(model)(image)), model(image)
    if not torch.allclose(alone, whole, rtol=1e-3, atol=1e-3 * float(whole.abs().max())):
        return None
    info = ImageNetInfo(subset)
    bias = torch.zeros(len(whole[0])) if classifier.bias is None else classifier.bias
    return SourceHead(
        weight=classifier.weight.detach().float().cpu().numpy(),
        bias=bias.detach().float().cpu().numpy(),
        names=_name_classes(info, len(whole[0])),
        keys=info.label_names(),
        source=subset.replace("imagenet", "ImageNet"),
    )


def _name_classes(info: ImageNetInfo, count: int) -> list[str]:
    """Name each class by its first name, the usual one.

    Where another class has it too, by all its names; where that has these, by what it means.
    """
    detailed = [info.index_to_description(i, detailed=True) for i in range(count)]
    whole = [info.index_to_description(i) for i in range(count)]
    first = [names.split(",")[0] for names in whole]
    firsts, wholes = (Counter(map(str.lower, names)) for names in (first, whole))
    return [
        short if firsts[short.lower()] == 1
        else names if wholes[names.lower()] == 1
        else textwrap.shorten(meaning, LONGEST_MEANING, placeholder="\N{HORIZONTAL ELLIPSIS}")
        for short, names, meaning in zip(first, whole, detailed, strict=True)
    ]  # fmt: skip


def sample_pixels(store: PixelStore) -> Pixels:
    """Give some images spread over a store, on which an engine is compared with torch."""
    images = np.linspace(0, store.info.count - 1, SAMPLE_IMAGES).astype(np.int64)
    return store.rows(store.row_of(np.unique(images)))


def write_probe(path: Path, probe: Probe) -> None:
    """Write the probe as safetensors.

    The note `layers` lists [layer name, layer group] of batch-norm layers, `moments` the same of
    other normalization layers, `head` names the classes of the source head.
    """
    tensors: dict[str, Array] = {
        "rows": probe.rows,
        "parts": probe.parts,
        "random_features": probe.random_features,
    }
    for number, layer in enumerate(probe.layers):
        prefix = "moments" if layer.running_mean is None else "bn"
        for key in ("mean", "var", "running_mean", "running_var", "part_means", "part_vars"):
            if (values := getattr(layer, key)) is not None:
                tensors[f"{prefix}.{number:03d}.{key}"] = values.astype(np.float32)
    batch = [[layer.name, layer.group] for layer in probe.layers if layer.running_mean is not None]
    others = [[layer.name, layer.group] for layer in probe.layers if layer.running_mean is None]
    note = {"layers": json.dumps(batch)} | ({"moments": json.dumps(others)} if others else {})
    if probe.head is not None:
        tensors |= {"head.weight": probe.head.weight, "head.bias": probe.head.bias}
        told = {key: getattr(probe.head, key) for key in ("source", "names", "keys")}
        note["head"] = json.dumps(told)
    write_tensors(path, tensors, note)
