"""Name the backbone: the one of params.yaml, or one of several candidates by their features.

Where `backbone.name` is auto, every candidate makes the features of some training images, and
these are compared; nothing of val and test is looked at.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.artifacts.pixels import PixelStore, open_pixels
from tasks.artifacts.records import BackboneChoice, write_record
from tasks.artifacts.tables import Manifest, read_manifest
from tasks.params import AUTO, Params
from tasks.runtime.entry import Read, StagePaths, Write, read_arguments, run_stage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Paths(StagePaths):
    """What the stage reads and writes."""

    manifest: Read
    train: Read
    choice: Write


def select(manifest: Manifest, store: PixelStore, params: Params) -> BackboneChoice:
    """Name the backbone of the parameters, or choose between the candidates.

    Args:
        manifest: Labels and groups.
        store: Packed training pixels.
        params: Seed, name, weights and candidates, and how intervals are made.

    Raises:
        WeightsError: The weights of a candidate cannot be had.
    """
    named = params.backbone
    if named.name != AUTO:
        return BackboneChoice(name=named.name, weights=named.weights, images=0, ranking=[])
    from tasks.transferability.ranking import choose_backbone  # noqa: PLC0415 (timm takes seconds)

    return choose_backbone(
        manifest,
        store,
        params.select,
        params.similarity,
        weights=named.weights,
        seed=params.seed,
    )


def say_choice(choice: BackboneChoice) -> str:
    """Say in one sentence which backbone it is and why."""
    if not choice.ranking:
        return f"{choice.name}, as backbone.name says"
    shares = ", ".join(
        f"{one.name} {one.ridge_accuracy.value:.1%} [{one.ridge_accuracy.low:.1%}, "
        f"{one.ridge_accuracy.high:.1%}]"
        for one in choice.ranking
    )
    return (
        f"{choice.name}: no later candidate is better beyond doubt on {choice.images:,} training "
        f"images (ridge, without the image's group: {shares})"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Read what augment packed, name the backbone, write the choice."""
    what = "Name the backbone, or choose one of the candidates by their features"
    paths, params = read_arguments(Paths, "select", what, argv)
    manifest = read_manifest(paths.manifest)
    choice = select(manifest, open_pixels(manifest, [paths.train])["train"], params)
    write_record(paths.choice, choice)
    log.info("%s", say_choice(choice))


if __name__ == "__main__":
    sys.exit(run_stage("select", main))
