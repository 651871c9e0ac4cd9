"""What pictures look like in numbers: spectrum, detail, sharpness, color, even areas.

Of packed pixels, so that new data and the images of a source card are measured alike.
"""

import math
from collections.abc import Iterable
from functools import cache

import numpy as np

from tasks.artifacts.arrays import Floats, Ints, Pixels

STATISTICS = ("slope", "entropy", "sharpness", "chroma", "even")  # columns of `measure_textures`
STEPS = np.linspace(0, 1, 21)  # of the quantiles that are kept of a set
GRAY = 2.0  # chroma below which a picture is gray
MOSTLY_EVEN = 0.45  # even share from which on it is mostly even (docs/benchmarks/look.md)

LUMA = (299, 587, 114)  # thousandths, so that grays stay whole numbers
LEAST_PX = 32  # side of a picture; below, its spectrum is noise
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
        photographs, NaN of one gray and below 32 px. entropy: bits, of 32 steps of gray, mean of
        blocks of 16 px. sharpness: standard deviation of the Laplacian over that of the gray
        values, 4.5 of white noise, NaN of one gray. chroma: largest minus smallest channel, mean,
        in [0, 255]. even: share of neighboring pixels that are the same in every channel, in
        [0, 1].
    """
    gray = pixels @ np.array(LUMA) / 1000
    spread = float(gray.std())
    varied = spread > 1e-6
    return np.array(
        [
            spectrum_slope(gray) if varied and len(gray) >= LEAST_PX else np.nan,
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
        gray: float64 (R, R), R >= 32, of more than one value.

    Source: Field 1987, Relations between the statistics of natural images and the response
    properties of cortical cells (power falls as the frequency to about -2 in photographs).
    """
    side = len(gray)
    window = np.hanning(side)
    centered = (gray - gray.mean()) * window[:, None] * window
    power = np.abs(np.fft.rfft2(centered)) ** 2
    rings = _rings(side)
    sums = np.bincount(rings.ravel(), power.ravel())
    cycles = np.arange(LOWEST_CYCLES, side // FINEST)
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
    """Shannon entropy of 32 steps of gray in a block, bits, mean over blocks; in [0, 5].

    Args:
        gray: float64 (R, R), in [0, 255]; what is over beyond whole blocks is left out.
    """
    count = len(gray) // BLOCK_PX
    whole = (gray[: count * BLOCK_PX, : count * BLOCK_PX] * (GRAYS / 256)).astype(np.int64)
    blocks = whole.reshape(count, BLOCK_PX, count, BLOCK_PX).transpose(0, 2, 1, 3)
    flat = blocks.reshape(count * count, -1) + GRAYS * np.arange(count * count)[:, None]
    shares = np.bincount(flat.ravel(), minlength=GRAYS * count * count) / BLOCK_PX**2
    some = shares[shares > 0]
    return float((some * np.log2(1 / some)).sum() / count**2)


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


def gray_share(textures: Floats) -> float:
    """Share of the pictures (N, 5) without color; 0 of none."""
    chroma = textures[:, STATISTICS.index("chroma")]
    return float(np.mean(chroma < GRAY)) if len(chroma) else 0.0


def mostly_even_share(textures: Floats) -> float:
    """Share of the pictures (N, 5) that are mostly even; 0 of none."""
    even = textures[:, STATISTICS.index("even")]
    return float(np.mean(even >= MOSTLY_EVEN)) if len(even) else 0.0


def unpadded(pixels: Pixels, width: int, height: int) -> Pixels | None:
    """Cut the square in the middle out of a picture that was padded, so that no padding is in it.

    Args:
        pixels: uint8 (R, R, 3), all of a picture with padding at two of its sides.
        width: Of the picture before.
        height: The same, or the other way around.

    Returns:
        The square as high and wide as the picture's shorter side; None below `LEAST_PX`.
    """
    if width == height:
        return pixels
    edge = len(pixels) * (1 - min(width, height) / max(width, height)) / 2
    # Two pixels more: where padding ends, resizing mixes it with the picture.
    start = math.ceil(edge) + 2
    side = len(pixels) - 2 * start
    return pixels[start : start + side, start : start + side] if side >= LEAST_PX else None
