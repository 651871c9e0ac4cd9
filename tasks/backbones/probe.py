"""The probe: what a backbone's batch-norm layers see in training images, and untrained features.

Similarity is judged from it, so that no later stage has to run the backbone again.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.artifacts.arrays import Array, Ints, Pixels, write_tensors
from tasks.artifacts.pixels import PixelStore
from tasks.artifacts.records import InputSpec
from tasks.artifacts.sampling import choose_rows, number_groups
from tasks.artifacts.tables import ManifestRow
from tasks.backbones.catalogue import Backbone
from tasks.backbones.engine import make_engine
from tasks.backbones.groups import PooledFeatures
from tasks.backbones.normalization import LayerInputs, fit_running_statistics, measure_inputs
from tasks.params import ExtractParams
from tasks.runtime.device import find_device, normalize
from tasks.runtime.machine import Machine
from tasks.runtime.progress import Meter, progress

PROBE_PURPOSE = 0x9B0B  # tells the random numbers that choose probe images from all others
SAMPLE_IMAGES = 8  # on which an engine is compared with torch
MOST_WORKERS = 4  # batches in memory at a time are several times as many
PARTS = 20  # at most, each left out in turn for the interval of the shift
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
        layers: Inputs of the batch-norm layers in forward order; empty where there are none.
    """

    rows: Ints
    parts: Ints
    random_features: NDArray[np.float32]
    layers: list[LayerInputs]


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
    """Measure the inputs of the batch-norm layers, and features without any pretraining.

    Args:
        backbone: The pretrained network.
        untrained: The same architecture with random weights. Its running statistics are fitted to
            the images first, otherwise its features would vanish or explode with depth.
        images: Training images.
        machine: Device, threads and engine.
    """
    device = find_device(machine)
    workers = 1 if device.type == "cuda" else min(machine.compute_threads, MOST_WORKERS)
    total = 2 * len(images.rows) + len(images.mixed)
    with progress("probe", total) as meter:
        layers = measure_inputs(
            backbone.model.to(device),
            (_metered(part, meter) for part in images.by_part(backbone.input)),
            workers=workers,
        )
        fit_running_statistics(
            untrained.model.to(device),
            _metered(images.mixed_up(untrained.input), meter),
            workers=workers,
        )
        module = PooledFeatures(untrained.model.cpu())
        engine = make_engine(module, untrained.input, machine, sample_pixels(images.store))
        features = [engine(pixels)[0] for pixels in _metered(images.pixels(), meter)]
    return Probe(images.rows, images.parts, np.concatenate(features), layers)


def _metered(batches: Iterable[Images], meter: Meter) -> Iterator[Images]:
    for batch in batches:
        yield batch
        meter.advance(len(batch))


def sample_pixels(store: PixelStore) -> Pixels:
    """Give some images spread over a store, on which an engine is compared with torch."""
    images = np.linspace(0, store.info.count - 1, SAMPLE_IMAGES).astype(np.int64)
    return store.rows(store.row_of(np.unique(images)))


def write_probe(path: Path, probe: Probe) -> None:
    """Write the probe as safetensors; the note `layers` lists [layer name, layer group]."""
    tensors: dict[str, Array] = {
        "rows": probe.rows,
        "parts": probe.parts,
        "random_features": probe.random_features,
    }
    for number, layer in enumerate(probe.layers):
        for key in ("mean", "var", "running_mean", "running_var", "part_means", "part_vars"):
            tensors[f"bn.{number:03d}.{key}"] = getattr(layer, key).astype(np.float32)
    names = [[layer.name, layer.group] for layer in probe.layers]
    write_tensors(path, tensors, {"layers": json.dumps(names)})
