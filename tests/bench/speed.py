"""How fast the parts are, each in a process of its own: engines, stages on files, heads."""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from bench.processes import run_measured
from bench.results import ENGINE, FILES, FLOW, TIMM_LOOP
from bench.scratch import Copy, measure_files, pack_split

ROOT = Path(__file__).parent.parent.parent

BACKBONE, SIDE, BATCH = "tf_efficientnet_lite0", 224, 32
WARM_UP, ROUNDS = 4, 32  # batches
REPEATS = 3  # of each part
HEAD_ROWS, HEAD_VAL, HEAD_FEATURES, HEAD_CLASSES = 12_000, 1_000, 1_280, 10

SCRIPT = Path(__file__)


def measure_speeds(folder: Path, environment: Mapping[str, str], copy: Copy) -> dict[str, float]:
    """Measure every part; the median of images (or rows) a second by name.

    Args:
        folder: Scratch folder.
        environment: Variables that every process sees.
        copy: Project whose images go from files to features; ingest has been run.
    """
    folder.mkdir(parents=True)
    found = defaultdict(list)
    for _ in range(REPEATS):  # all parts in turn, so that a slow minute does not meet one part only
        for name, (what, _) in PARTS.items():
            found[what].append(_measure_part(name, folder, environment, project=copy.root))
        found[FILES].append(measure_files(copy))
    return {what: float(np.median(rates)) for what, rates in found.items()}


def _measure_part(
    name: str, folder: Path, environment: Mapping[str, str], *, project: Path
) -> float:
    answer = folder / f"{name}.json"
    run_measured(
        [sys.executable, "-m", "bench.speed", name, str(answer)],
        cwd=project,
        environment={**environment, "PYTHONPATH": _paths()},
        log=folder / "log.txt",
    )
    return float(json.loads(answer.read_text()))


def _paths() -> str:
    tests = SCRIPT.parent.parent
    return f"{tests}:{tests.parent}"


def _rate(run: Callable[[], object]) -> float:
    """Images a second of something that runs over one batch."""
    for _ in range(WARM_UP):
        run()
    started = time.monotonic()
    for _ in range(ROUNDS):
        run()
    return ROUNDS * BATCH / (time.monotonic() - started)


def _pixels() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (BATCH, SIDE, SIDE, 3), dtype=np.uint8)


def run_engine() -> float:
    """The engine that Regraft chooses on this machine, on pixels in memory."""
    from tasks.machine import prepare_memory, read_machine

    prepare_memory()
    from tasks.backbones.catalogue import load_backbone
    from tasks.backbones.engine import make_engine
    from tasks.backbones.features import PooledFeatures

    backbone = load_backbone(BACKBONE, "packaged", image_px=SIDE, seed=0)
    pixels = _pixels()
    engine = make_engine(PooledFeatures(backbone.model), backbone.input, read_machine(), pixels[:8])
    return _rate(lambda: engine(pixels))


def run_flow() -> float:
    """What augment and extract do for every view of the project that this runs in.

    Neither the start of a process nor the probe is in it, as they are not in the engine's speed.
    """
    from tasks.machine import prepare_memory, read_machine

    prepare_memory()
    from bench.scratch import count_views

    from tasks.backbones.catalogue import load_backbone
    from tasks.backbones.engine import make_engine
    from tasks.backbones.feature_files import write_features
    from tasks.backbones.features import FeaturesAndLogits
    from tasks.images.store import PixelStore
    from tasks.progress import progress
    from tasks.records import SPLITS

    project, machine = Copy(Path(), sys.executable, {}), read_machine()
    params, total = project.params(), count_views(project)
    backbone = load_backbone(BACKBONE, "packaged", image_px=params.augment.image_px, seed=0)
    sample = np.zeros((8, params.augment.image_px, params.augment.image_px, 3), dtype=np.uint8)
    engine = make_engine(FeaturesAndLogits(backbone.model), backbone.input, machine, sample)
    with TemporaryDirectory(dir=".") as folder, progress("flow", total) as meter:
        started = time.monotonic()
        for split in SPLITS:
            pack_split(project, split, Path(folder, split), workers=machine.decode_workers)
            store = PixelStore.open(Path(folder, split))
            write_features(Path(folder, f"{split}-features"), store, engine, params.extract, meter)
        return total / (time.monotonic() - started)


def run_timm_loop() -> float:
    """A plain timm model in eval mode, nothing set, on normalized images in memory."""
    import timm
    import torch

    model = timm.create_model(BACKBONE).eval()
    images = torch.randn(BATCH, 3, SIDE, SIDE)
    with torch.inference_mode():
        return _rate(lambda: model(images))


def run_head() -> float:
    """The linear head as `baseline` fits it: a path of strengths, chosen on val."""
    from tasks.machine import prepare_memory

    prepare_memory()
    from tasks.params_file import load_params
    from tasks.training.logistic import Labelled
    from tasks.training.strength import choose_linear

    params = load_params(ROOT / "params.yaml")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, HEAD_CLASSES, HEAD_ROWS + HEAD_VAL)
    centers = rng.normal(size=(HEAD_CLASSES, HEAD_FEATURES))
    features = (rng.normal(size=(len(labels), HEAD_FEATURES)) + 0.2 * centers[labels])[:, None]
    features, groups = features.astype(np.float32), [str(number) for number in range(len(labels))]
    train, val = (
        Labelled(features[part], labels[part], groups[part])
        for part in (slice(HEAD_ROWS), slice(HEAD_ROWS, None))
    )
    started = time.monotonic()
    choose_linear(train, val, params.baseline.l2_strengths, classes=HEAD_CLASSES, seed=params.seed)
    return HEAD_ROWS / (time.monotonic() - started)


PARTS: dict[str, tuple[str, Callable[[], float]]] = {
    "engine": (ENGINE, run_engine),
    "flow": (FLOW, run_flow),
    "timm": (TIMM_LOOP, run_timm_loop),
    "head": ("linear head at all strengths of params.yaml, rows of 1,280 features", run_head),
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("answer", type=Path)
    given = parser.parse_args()
    given.answer.write_text(json.dumps(PARTS[given.part][1]()))
