"""The ruler: data sets that readers know, measured likewise, and where new data lies among them."""

from collections.abc import Sequence
from pathlib import Path

from tasks.artifacts import read_record
from tasks.records import ImageSource, KnownSet, Record


class Ruler(Record):
    """Known data sets measured with one backbone (data/cards/ruler*.json)."""

    backbone: str
    weights_sha256: str
    image_px: int
    source: str  # name of the source card
    provenance: str  # the command that measured it
    sets: list[KnownSet]

    def without(self, origin: ImageSource) -> "Ruler":
        """Give the ruler without the packaged data set that is being measured, if it is on it."""
        sets = [
            known
            for known in self.sets
            if origin.kind != "package" or f"({origin.name})" not in known.name
        ]
        return self.model_copy(update={"sets": sets})


def find_ruler(folder: Path, weights_sha256: str) -> Ruler | None:
    """Find the ruler of these weights among `ruler*.json`, None where there is none.

    Raises:
        ArtifactError: A ruler is damaged.
    """
    rulers = (read_record(path, Ruler) for path in sorted(folder.glob("ruler*.json")))
    return next((ruler for ruler in rulers if ruler.weights_sha256 == weights_sha256), None)


def place_on_ruler(value: float, sets: Sequence[KnownSet]) -> str:
    """Say in words between which known sets an MMD^2 lies, such as `between a (0.05) and b (0.12)`.

    Args:
        value: MMD^2 of the data.
        sets: At least one.
    """
    ordered = sorted(sets, key=lambda known: (known.mmd, known.name))
    nearer = [known for known in ordered if known.mmd <= value]
    farther = [known for known in ordered if known.mmd > value]
    if not nearer:
        return f"nearer than {_mark(farther[0])}, the nearest known set"
    if not farther:
        return f"farther than {_mark(nearer[-1])}, the farthest known set"
    return f"between {_mark(nearer[-1])} and {_mark(farther[0])}"


def _mark(known: KnownSet) -> str:
    return f"{known.name} ({known.mmd:.3f})"
