"""Two states of a project beside each other: commits, experiments or the files as they are.

What differs in params.yaml and in the metrics is DVC's own answer; the intervals are paired by
image, as those of a sweep and of a report are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flows.stages.graph import Changes, diff_metrics, diff_params, files_at
from tasks.artifacts.arrays import Bools, read_array
from tasks.artifacts.records import Estimate, read_json
from tasks.artifacts.tables import Manifest, PredictionRow, read_manifest, read_rows
from tasks.artifacts.words import listed, plural
from tasks.errors import ArtifactError
from tasks.judging.metrics import right_images
from tasks.judging.statistics import paired_accuracy_interval
from tasks.params import Params
from tasks.params_file import load_params

MANIFEST = "data/ingest/manifest.csv"
METRICS, PREDICTIONS = "data/evaluate/metrics.json", "data/evaluate/predictions.csv"
VAL_LOGITS = {
    "finetuned": "data/finetune/val_logits.npy",
    "baseline": "data/baseline/val_logits.npy",
}
NEEDED = (MANIFEST, METRICS, PREDICTIONS, *VAL_LOGITS.values())
SPLITS = {"val": "val, which chooses by val_loss where this is in doubt", "test": "test"}
ABSENT = "-"

Image = tuple[str, str, str]  # path, content and label: what tells one judged image from the others


@dataclass(frozen=True, slots=True)
class Rightness:
    """Whether the shipped model of one state was right about each image of a split.

    Attributes:
        right: By image.
        groups: By image.
    """

    right: Mapping[Image, bool]
    groups: Mapping[Image, str]


def compare_states(root: Path, one: str, other: str) -> Iterator[str]:
    """Tell what differs between two states and what it did, a line each.

    Args:
        root: The project.
        one: A commit, branch, tag or experiment, or `workspace` for the files as they are.
        other: What it is compared with; differences are this one minus the first.

    Raises:
        GraphError: There is no such state, or DVC cannot read it.
    """
    params = load_params(root / "params.yaml")
    names = (one, other)
    yield from _differences("params", diff_params(root, one, other), names)
    metrics = diff_metrics(root, one, other)
    yield from _differences("metrics", metrics, names)
    files = [files_at(root, state, NEEDED) for state in names]
    for split, read in (("val", _on_val), ("test", right_on_test)):
        where = f"accuracy on {SPLITS[split]}"
        sides, lacking = read_sides(read, names, files)
        if lacking:
            yield f"{where}: {_alone(metrics, split, names)}; not paired by image: {lacking}"
        else:
            yield f"{where}: {say_pair(names, _pair(sides, params))}"


def read_sides(
    read: Callable[[Mapping[str, Path]], Rightness],
    names: Sequence[str],
    files: Sequence[Mapping[str, Path]],
) -> tuple[list[Rightness], str]:
    """Read what each state was right about; say what lacks for that.

    Args:
        read: Reads one state.
        names: Of the states.
        files: Of each state: path in the project -> file in DVC's cache.
    """
    sides: list[Rightness] = []
    lacking: dict[str, list[str]] = {}  # what lacks -> the states that lack it
    for state, found in zip(names, files, strict=True):
        try:
            sides.append(read(found))
        except ArtifactError as err:
            lacking.setdefault(str(err), []).append(state)
    return sides, "; ".join(f"of {listed(who)} {what}" for what, who in lacking.items())


def _differences(what: str, changes: Changes, names: tuple[str, str]) -> Iterator[str]:
    """Write the values that differ as a table, those of val before those of test."""
    rows = [(key, _show(old), _show(new)) for key, (old, new) in changes.items() if old != new]
    if not rows:
        yield f"{what}: no difference"
        return
    rows = [(what, *names), *sorted(rows, key=lambda row: (not row[0].startswith("val"), row[0]))]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        padded = [f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)]
        yield "  ".join(padded).rstrip()


def _show(value: Any) -> str:
    if value is None:
        return ABSENT
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# what each state was right about -----------------------------------------------------------------


def _on_val(files: Mapping[str, Path]) -> Rightness:
    """Judge the val images by the logits of the model that was shipped."""
    manifest = read_manifest(_file(files, MANIFEST))
    shipped = read_json(_file(files, METRICS))["shipped"]  # of whatever version the others are
    logits = np.array(read_array(_file(files, VAL_LOGITS[shipped])), dtype=np.float32)
    right = right_images(logits, manifest.labels("val"))
    images = _images(manifest, "val")
    answered = zip(images.values(), right.tolist(), strict=True)
    return Rightness(dict(answered), _groups(manifest))


def right_on_test(files: Mapping[str, Path]) -> Rightness:
    """Judge the test images by what evaluate wrote of each.

    Args:
        files: MANIFEST and PREDICTIONS, as `files_at` gives them.

    Raises:
        ArtifactError: There is none, or DVC's cache lacks it.
    """
    manifest = read_manifest(_file(files, MANIFEST))
    rows = read_rows(_file(files, PREDICTIONS), PredictionRow)
    images = _images(manifest, "test")
    return Rightness(
        {images[row.path]: row.correct for row in rows if row.path in images}, _groups(manifest)
    )


def _file(files: Mapping[str, Path], path: str) -> Path:
    found = files.get(path)
    if found is None:
        raise ArtifactError(f"there are no results: its dvc.lock names no {path}")
    if not found.is_file():
        raise ArtifactError(f"{path} is not in DVC's cache here (`dvc pull`, or run it again)")
    return found


def _images(manifest: Manifest, split: str) -> dict[str, Image]:
    rows = [row for row in manifest.rows if row.split == split]
    return {row.path: (row.path, row.sha256, row.label) for row in rows}


def _groups(manifest: Manifest) -> dict[Image, str]:
    return {(row.path, row.sha256, row.label): row.group for row in manifest.rows}


# the two beside each other -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Paired:
    """Two states on the images that both judged, bool (N,) each, N > 0.

    Attributes:
        before: What the first was right about.
        after: The other.
        gain: Accuracy of the other minus that of the first.
        confidence: Of its interval.
        most: Images of the state that has more.
    """

    before: Bools
    after: Bools
    gain: Estimate
    confidence: float
    most: int


def _pair(sides: Sequence[Rightness], params: Params) -> Paired | None:
    judged = params.evaluate
    return pair_by_image(
        *sides, confidence=judged.confidence, resamples=judged.bootstrap, seed=params.seed
    )


def pair_by_image(
    one: Rightness, other: Rightness, *, confidence: float, resamples: int, seed: int
) -> Paired | None:
    """Compare two states on the images that both judged; None where there are none."""
    shared = [image for image in one.right if image in other.right]
    if not shared:
        return None
    before, after = (np.array([side.right[image] for image in shared]) for side in (one, other))
    gain = paired_accuracy_interval(
        before,
        after,
        [other.groups[image] for image in shared],
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    return Paired(before, after, gain, confidence, max(len(one.right), len(other.right)))


def say_pair(names: tuple[str, str], pair: Paired | None) -> str:
    """Say the accuracies and their difference."""
    if pair is None:
        return f"{names[0]} and {names[1]} have no image in common"
    before, after, gain = pair.before, pair.after, pair.gain
    assert gain.low is not None
    assert gain.high is not None
    images = plural(len(before), "image") + f" of {pair.most:,}" * (len(before) < pair.most)
    return (
        f"{100 * before.mean():.1f} -> {100 * after.mean():.1f} %, {100 * gain.value:+.1f} points "
        f"[{100 * gain.low:.1f}, {100 * gain.high:.1f}], {100 * pair.confidence:.3g} % "
        f"interval paired by image; {images} that both have: {np.sum(after & ~before)} right only "
        f"in {names[1]}, {np.sum(before & ~after)} only in {names[0]}"
    )


def _alone(metrics: Changes, split: str, names: tuple[str, str]) -> str:
    """Say the accuracy of each state by itself, with its own interval where metrics have one."""
    parts = [metrics.get(f"{split}_accuracy{end}", (None, None)) for end in ("", "_low", "_high")]
    said = []
    for name, (value, low, high) in zip(names, zip(*parts, strict=True), strict=True):
        share = ABSENT if value is None else f"{100 * value:.1f} %"
        bounds = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
        said.append(f"{name} {share}{bounds}")
    return ", ".join(said)
