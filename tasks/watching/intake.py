"""From files to what the model makes of them, what they look like, and the strangest pictures."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tasks.artifacts.arrays import Features, Pixels
from tasks.delivery.appearance import Appearance
from tasks.delivery.in_domain import InDomain
from tasks.delivery.onnx_answers import LOGITS, OUTPUTS, Answers
from tasks.errors import ImageError
from tasks.images.contact_sheet import Strip, draw_contact_sheet
from tasks.images.views import ImageView
from tasks.watching.shifts import Seen

FEATURES = OUTPUTS.index("features")
STRANGEST = 24  # pictures shown


@dataclass(frozen=True)
class Incoming:
    """The files that a look saw first.

    Attributes:
        names: Of the usable ones.
        bad: Of the others.
        seen: What the model makes of the usable ones.
        strangest: Score, name and pixels of the images farthest from the domain, farthest first.
    """

    names: list[str]
    bad: list[str]
    seen: Seen
    strangest: list[tuple[float, str, Pixels]]


class Intake:
    """Takes files batch by batch; memory holds a row an image, and pictures of a few.

    Args:
        engine: Runs the model.
        domain: What the model knows.
        most: Usable images whose features are kept, drawn by chance.
        rng: Draws them.
    """

    def __init__(
        self, engine: Answers, domain: InDomain, most: int, rng: np.random.Generator
    ) -> None:
        self._engine, self._domain, self._most, self._rng = engine, domain, most, rng
        self._drawn: list[tuple[float, int, Features]] = []  # the largest numbers stay
        self._names: list[str] = []
        self._bad: list[str] = []
        self._strangest: list[tuple[float, str, Pixels]] = []
        nothing = np.empty((0, domain.held_out.shape[1]), np.float32)
        no_looks = Appearance.unknown(0)
        self._parts = [Seen(nothing, np.empty(0), np.empty(0, np.int64), no_looks)]

    def take(self, batch: Sequence[tuple[str, ImageView | ImageError]]) -> None:
        """Take names with what the model is to see, or with why there is nothing."""
        sound = [(name, view) for name, view in batch if not isinstance(view, ImageError)]
        self._bad += [name for name, view in batch if isinstance(view, ImageError)]
        if not sound:
            return
        found = self._run([view for _, view in sound])
        self._draw(found.features)
        self._parts.append(replace(found, features=found.features[:0]))
        self._names += [name for name, _ in sound]
        ranked = [
            (score, name, view.pixels)
            for score, (name, view) in zip(found.scores.tolist(), sound, strict=True)
        ]
        self._strangest = heapq.nlargest(
            STRANGEST, self._strangest + ranked, key=lambda one: one[:2]
        )

    def give(self) -> Incoming:
        """Give what was taken."""
        seen = Seen.join(self._parts)
        if self._drawn:
            rows = sorted(self._drawn, key=lambda one: one[1])
            seen = replace(seen, features=np.stack([features for *_, features in rows]))
        return Incoming(self._names, self._bad, seen, self._strangest)

    def _draw(self, features: Features) -> None:
        """Keep some of all rows so far, each with the same chance."""
        numbers = self._rng.random(len(features)).tolist()
        for place, (number, row) in enumerate(zip(numbers, features, strict=True)):
            heapq.heappush(self._drawn, (number, len(self._names) + place, row))
            if len(self._drawn) > self._most:
                heapq.heappop(self._drawn)

    def _run(self, views: Sequence[ImageView]) -> Seen:
        pixels = np.stack([view.pixels for view in views])
        outputs = self._engine(pixels)
        # As coarse as those of the reference.
        features: Features = outputs[FEATURES].astype(np.float16).astype(np.float32)
        predicted = np.argmax(outputs[LOGITS], axis=1)
        looks = Appearance.measure(pixels, [view.facts for view in views])
        return Seen(features, self._domain.scores(features), predicted, looks)


def draw_strangest(strangest: Sequence[tuple[float, str, Pixels]]) -> bytes:
    """Draw the images farthest from the domain, the farthest first, as JPEG."""
    return draw_contact_sheet(
        [Strip(Path(name).name, pixels[None]) for _, name, pixels in strangest]
    )
