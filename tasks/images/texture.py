"""What pictures look like in numbers: spectrum, detail, sharpness, color, even areas.

Of packed pixels, so that new data and the images of a source card are measured alike.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import numpy as np

from tasks.artifacts.arrays import Floats, Ints, Pixels

STATISTICS = ("slope", "entropy", "sharpness", "chroma", "even")  # columns of `measure_textures`
STEPS = np.linspace(0, 1, 21)  # of the quantiles that are kept of a set
GRAY = 2.0  # chroma below which a picture is gray
MOSTLY_EVEN = 0.45  # even share from which on it is mostly even (docs/benchmarks/look.md)

LUMA = (0.299, 0.587, 0.114)
LOWEST_CYCLES = 4  # an image; below, the window and single objects tell more than the texture
FINEST = 3  # pixels a cycle; above, resizing tells more than the picture
BLOCK_PX, GRAYS = 16, 32  # of the local entropy, at most log2(32) = 5 bits


def measure_textures(pictures: Iterable[Pixels]) -> Floats:
    """Measure pictures one at a time, as `measure_texture`: float64 (N, 5)."""
    rows = [measure_texture(pixels) for pixels in pictures]
    return np.array(rows, dtype=np.float64).reshape(-1, len(STATISTICS))


def measure_texture(pixels: Pixels) -> Floats:
    """Measure one picture; the columns are STATISTICS.

    Args:
        pixels: uint8 (R, R, 3), R >= 16.

    Returns:
        float64 (5,). slope: exponent of the power spectrum, 0 of white noise, about -2 of
        photographs, NaN of one gray. entropy: bits, mean of blocks of 16 px. sharpness: standard
        deviation of the Laplacian over that of the gray values, 4.5 of white noise, NaN of one
        gray. chroma: largest minus smallest channel, mean, in [0, 255]. even: share of neighboring
        pixels that are the same in every channel, in [0, 1].
    """
    gray = pixels @ np.array(LUMA)
    spread = float(gray.std())
    varied = spread > 1e-6
    return np.array(
        [
            spectrum_slope(gray) if varied else np.nan,
            local_entropy(gray),
            float(_laplacian(gray).std()) / spread if varied else np.nan,
            float(np.ptp(pixels, axis=2).mean()),
            even_share(pixels),
        ]
    )


def spectrum_slope(gray: Floats) -> float:
    """Exponent of the power spectrum over the spatial frequency, by least squares on log axes.

    Power is averaged over rings of one cycle an image; octaves weigh the same.

    Args:
        gray: float64 (R, R), of more than one value.

    Source: Field 1987, Relations between the statistics of natural images and the response
    properties of cortical cells (power falls as the frequency to about -2 in photographs).
    """
    side = len(gray)
    window = np.hanning(side)
    centered = (gray - gray.mean()) * window[:, None] * window
    power = np.abs(np.fft.rfft2(centered)) ** 2
    rings = _rings(side)
    sums = np.bincount(rings.ravel(), power.ravel())
    cycles = np.arange(LOWEST_CYCLES, max(side // FINEST, LOWEST_CYCLES + 2))
    mean = sums[cycles] / np.bincount(rings.ravel())[cycles]
    logs = np.log(np.maximum(mean, np.finfo(np.float64).tiny))
    slope = np.polyfit(np.log(cycles), logs, 1, w=cycles**-0.5)[0]
    return float(slope)


@cache
def _rings(side: int) -> Ints:
    """Spatial frequency of each term of rfft2, rounded to whole cycles an image."""
    down, across = np.fft.fftfreq(side, 1 / side), np.fft.rfftfreq(side, 1 / side)
    rings: Ints = np.rint(np.hypot(down[:, None], across)).astype(np.int64)
    return rings


def local_entropy(gray: Floats) -> float:
    """Shannon entropy of the gray values of a block, bits, mean over blocks; in [0, 5].

    Args:
        gray: float64 (R, R), in [0, 255]; what is over beyond whole blocks is left out.
    """
    count = len(gray) // BLOCK_PX
    whole = (gray[: count * BLOCK_PX, : count * BLOCK_PX] * (GRAYS / 256)).astype(np.int64)
    blocks = whole.reshape(count, BLOCK_PX, count, BLOCK_PX).transpose(0, 2, 1, 3)
    flat = blocks.reshape(count * count, -1) + GRAYS * np.arange(count * count)[:, None]
    shares = np.bincount(flat.ravel(), minlength=GRAYS * count * count) / BLOCK_PX**2
    some = shares[shares > 0]
    return float(-(some * np.log2(some)).sum() / count**2)


def _laplacian(gray: Floats) -> Floats:
    middle = gray[1:-1, 1:-1]
    result: Floats = (
        gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:] - 4 * middle
    )
    return result


def even_share(pixels: Pixels) -> float:
    """Share of horizontal and vertical neighbors that are the same in every channel."""
    across = (pixels[:, 1:] == pixels[:, :-1]).all(axis=2)
    down = (pixels[1:] == pixels[:-1]).all(axis=2)
    return float((across.sum() + down.sum()) / (across.size + down.size))


def tabulate(textures: Floats) -> dict[str, list[float]]:
    """Keep the quantiles of each statistic at 0, 5, ..., 100 % of the pictures (N, 5).

    A statistic that no picture has (all of one gray) is left out.
    """
    columns = zip(STATISTICS, textures.T, strict=True)
    finite = ((name, column[np.isfinite(column)]) for name, column in columns)
    return {
        name: [round(float(value), 6) for value in np.quantile(column, STEPS)]
        for name, column in finite
        if len(column)
    }


def share_above(table: Mapping[str, Sequence[float]], statistic: str, value: float) -> float:
    """Share of the pictures of a table whose statistic is above a value, linear between steps."""
    return float(1 - np.interp(value, table[statistic], STEPS, left=0, right=1))
