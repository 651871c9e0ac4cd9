"""What any training here steps by: the order of images and views, and the rate over time.

Both are functions of (seed, phase, epoch, step) alone.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tasks.artifacts.arrays import Ints

ORDER, VIEWS, LAYERS = 0x4F52, 0x5649, 0x4C59  # purposes of the random numbers drawn here


@dataclass(frozen=True, slots=True)
class Batch:
    """The images of one step and the row of the pixel store that stands for each, int64 (n,)."""

    images: Ints
    rows: Ints


def count_steps(images: int, batch_size: int) -> int:
    """Steps of an epoch: full batches and the rest, but no batch of one image beside others."""
    return max(1, images // batch_size + (images % batch_size > 1))


def epoch_batches(
    images: int, views: int, batch_size: int, *, seed: int, phase: int, epoch: int
) -> Iterator[Batch]:
    """Yield every image once, in random order, each in its clean or one of its augmented views.

    A last batch of a single image joins the one before, because batch norm cannot be trained on it.

    Args:
        images: Number of images, N.
        views: Augmented views of each, K; row `image * (K + 1) + view`, view 0 is the clean one.
        batch_size: Images a step, at least 2.
        seed: The run's seed.
        phase: Number of the phase.
        epoch: Number of the epoch within the phase.
    """
    order = np.random.default_rng([seed, ORDER, phase, epoch]).permutation(images)
    drawn = np.random.default_rng([seed, VIEWS, phase, epoch]).integers(0, views + 1, images)
    steps = count_steps(images, batch_size)
    for step in range(steps):
        stop = images if step == steps - 1 else (step + 1) * batch_size
        chosen = order[step * batch_size : stop]
        yield Batch(images=chosen, rows=chosen * (views + 1) + drawn[chosen])


def layer_seed(seed: int, *, phase: int, epoch: int, step: int, process: int) -> int:
    """Seed of torch's global generator for a step: dropout and drop path draw from it.

    Each process has its own: what is dropped depends on how many there are.

    Args:
        seed: The run's seed.
        phase: Number of the phase.
        epoch: Number of the epoch within the phase.
        step: Number of the step within the epoch, from 0.
        process: Number of the process, from 0.
    """
    place = [seed, LAYERS, phase, epoch, step, process]
    return int(np.random.SeedSequence(place).generate_state(1)[0])


def warmup_cosine(step: int, *, steps: int, warmup_fraction: float) -> float:
    """Give the share of the peak rate at a step: (0, 1] in the warm-up, then down to almost 0.

    Args:
        step: From 0 to steps - 1.
        steps: Steps in all.
        warmup_fraction: Share of the steps over which the rate rises linearly, in [0, 1).

    Source: Goyal et al. 2017, 1706.02677 (warm-up); Loshchilov and Hutter 2017, 1608.03983
    (cosine).
    """
    warmup = round(steps * warmup_fraction)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
