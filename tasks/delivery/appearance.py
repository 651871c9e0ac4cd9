"""How images look and what their files are: what changes when a lamp, lens, camera or format does.

The facts are those by which labels may be told without content (`tasks.auditing.shortcuts`).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np

from tasks.artifacts.arrays import Array, Floats, Ints, Pixels
from tasks.artifacts.tables import FactRow
from tasks.images.texture import LUMA, STATISTICS, measure_texture

Fact = Literal[
    "brightness", "border", "sharpness", "megapixels", "aspect", "bytes_per_pixel", "quantization"
]
FACTS: tuple[Fact, ...] = get_args(Fact)
RING = 16  # the border is so many parts of a side wide


@dataclass(frozen=True)
class Appearance:
    """What is known of N images.

    Attributes:
        numbers: In the order of FACTS, float64 (N, 7); NaN is unknown.
        kinds: Format, mode and camera of every file, N; empty is unknown.
    """

    numbers: Floats
    kinds: list[str]

    @classmethod
    def unknown(cls, count: int) -> Self:
        """Nothing is known of so many images."""
        return cls(np.full((count, len(FACTS)), np.nan), [""] * count)

    @classmethod
    def measure(cls, views: Iterable[Pixels], facts: Sequence[FactRow]) -> Self:
        """Measure images; each has its square view, uint8 (R, R, 3), and the facts of its file."""
        numbers = [measure_appearance(*pair) for pair in zip(views, facts, strict=True)]
        return cls(np.array(numbers).reshape(-1, len(FACTS)), [name_kind(row) for row in facts])

    @classmethod
    def join(cls, parts: Sequence["Appearance"]) -> Self:
        """Put together what is known of several."""
        numbers = np.concatenate([part.numbers for part in parts])
        return cls(numbers, [kind for part in parts for kind in part.kinds])

    @classmethod
    def unpack(cls, arrays: dict[str, Array]) -> Self:
        """Take what `pack` gave out of some tensors.

        Raises:
            KeyError: They lack it.
            ValueError: It is damaged.
        """
        numbers, kinds = arrays.pop("appearance"), json.loads(arrays.pop("kinds").tobytes())
        return cls(numbers.astype(np.float64), kinds)

    def pack(self) -> dict[str, Array]:
        """Give it as tensors."""
        kinds = json.dumps(self.kinds).encode()
        return {"appearance": self.numbers, "kinds": np.frombuffer(kinds, np.uint8)}

    def of(self, images: Ints) -> "Appearance":
        """Give it of some of the images, in their order."""
        return Appearance(self.numbers[images], [self.kinds[image] for image in images.tolist()])


def measure_appearance(pixels: Pixels, facts: FactRow) -> Floats:
    """Measure one image; float64 (7,), in the order of FACTS.

    Args:
        pixels: The square view that the network sees, uint8 (R, R, 3), R >= 16.
        facts: Of its file.

    Returns:
        The mean gray value and that of the outermost sixteenth of the view, in [0, 255]; the
        standard deviation of the Laplacian over that of the gray values, NaN of one gray
        (`tasks.images.texture`); width x height in millions; width / height; bytes of the file a
        pixel; the mean of a JPEG's quantization tables, NaN of other formats.
    """
    gray = (pixels @ np.array(LUMA)) / 1000
    ring = max(1, len(gray) // RING)
    inner = gray[ring:-ring, ring:-ring]
    border = (gray.sum() - inner.sum()) / (gray.size - inner.size)
    sharpness = measure_texture(pixels)[STATISTICS.index("sharpness")]
    size = facts.width * facts.height
    return np.array(
        [
            gray.mean(),
            border,
            sharpness,
            size / 1e6,
            facts.width / facts.height,
            facts.file_bytes / size,
            facts.quantization or np.nan,
        ]
    )


def name_kind(facts: FactRow) -> str:
    """Name the kind of a file: `JPEG, RGB, Canon EOS 5D`."""
    return ", ".join([facts.format, facts.mode, facts.camera or "no camera named"])
