"""How fast the parts are, each in a process of its own: engines, stages on files, heads."""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from bench.processes import run_measured
from bench.results import ENGINE, FILES, FLOW, HEAD, TIMM_LOOP
from bench.scratch import Copy, measure_files

ROOT = Path(__file__).parent.parent.parent

BACKBONE, BATCH = "tf_efficientnet_lite0", 32
WARM_UP, ROUNDS = 4, 32  # batches
STRETCH_IMAGES, MOST_STRETCHES = 500, 3  # that go from files to features between two looks
ENGINE_BATCHES = 24  # of such a look at the engine alone
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
        for name in PARTS:
            measured = _measure_part(name, folder, environment, project=copy.root)
            for what, rate in measured.items():
                found[what].append(rate)
        found[FILES].append(measure_files(copy))
    return {what: float(np.median(rates)) for what, rates in found.items()}


def _measure_part(
    name: str, folder: Path, environment: Mapping[str, str], *, project: Path
) -> dict[str, float]:
    answer = folder / f"{name}.json"
    run_measured(
        [sys.executable, "-m", "bench.speed", name, str(answer)],
        cwd=project,
        environment={
            **environment,
            "PYTHONPATH": _paths(),
            "OPENBLAS_THREAD_TIMEOUT": "4",  # as `tasks` sets it; here numpy is loaded before it
        },
        log=folder / "log.txt",
    )
    measured: dict[str, float] = json.loads(answer.read_text())
    return measured


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


def _pixels(side: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (BATCH, side, side, 3), dtype=np.uint8)


def run_flow() -> dict[str, float]:
    """The engine that Regraft chooses here, alone and as what augment and extract do for a view.

    Both in turns in one process, so that a slow minute meets both; start and probe in neither. Runs
    in the folder of a project whose images are listed.
    """
    from tasks.runtime.machine import prepare_memory, read_machine

    prepare_memory()
    from tasks.artifacts.pixels import PixelStore
    from tasks.backbones.catalogue import load_backbone
    from tasks.backbones.engine import make_engine
    from tasks.backbones.feature_files import write_features
    from tasks.backbones.groups import PooledFeatures
    from tasks.runtime.progress import progress

    project, machine = Copy(Path(), sys.executable, {}), read_machine()
    params = project.params()
    pixels = _pixels(params.augment.image_px)
    backbone = load_backbone(BACKBONE, "packaged", image_px=params.augment.image_px, seed=0)
    engine = make_engine(PooledFeatures(backbone.model), backbone.input, machine, pixels[:8])
    seconds, views = defaultdict(float), 0
    stretches = project.stretches(STRETCH_IMAGES, MOST_STRETCHES)
    with progress("flow", sum(map(len, stretches))) as meter:
        for rows in stretches:
            with TemporaryDirectory(dir=".") as folder, _timing(seconds, FLOW):
                project.pack(rows, Path(folder, "pixels"), workers=machine.decode_workers)
                store = PixelStore.open(Path(folder, "pixels"))
                write_features(Path(folder, "features"), store, engine, params.extract, meter)
            views += len(rows) * (1 + params.augment.views)
            with _timing(seconds, ENGINE):
                for _ in range(ENGINE_BATCHES):
                    engine(pixels)
    return {
        ENGINE: len(stretches) * ENGINE_BATCHES * BATCH / seconds[ENGINE],
        FLOW: views / seconds[FLOW],
    }


@contextmanager
def _timing(seconds: dict[str, float], what: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[what] += time.monotonic() - started


def run_timm_loop() -> dict[str, float]:
    """A plain timm model in eval mode, nothing set, on normalized images in memory."""
    import timm
    import torch

    model = timm.create_model(BACKBONE).eval()
    side = Copy(Path(), sys.executable, {}).params().augment.image_px
    images = torch.randn(BATCH, 3, side, side)
    with torch.inference_mode():
        return {TIMM_LOOP: _rate(lambda: model(images))}


def run_head() -> dict[str, float]:
    """The linear head as `baseline` fits it: a path of strengths, chosen on val."""
    from tasks.runtime.machine import prepare_memory

    prepare_memory()
    from tasks.heads.features import Labeled
    from tasks.heads.linear import choose_linear
    from tasks.params_file import load_params

    params = load_params(ROOT / "params.yaml")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, HEAD_CLASSES, HEAD_ROWS + HEAD_VAL)
    centers = rng.normal(size=(HEAD_CLASSES, HEAD_FEATURES))
    features = rng.normal(size=(len(labels), HEAD_FEATURES)) + 0.2 * centers[labels]
    features *= np.arange(1, HEAD_FEATURES + 1) ** -0.5  # a few directions vary most, as in images
    features = features[:, None].astype(np.float32)
    groups = [str(number) for number in range(len(labels))]
    train, val = (
        Labeled(features[part], labels[part], groups[part])
        for part in (slice(HEAD_ROWS), slice(HEAD_ROWS, None))
    )
    started = time.monotonic()
    choose_linear(train, val, params.baseline.l2_strengths, classes=HEAD_CLASSES, seed=params.seed)
    return {HEAD: HEAD_ROWS / (time.monotonic() - started)}


PARTS: dict[str, Callable[[], dict[str, float]]] = {
    "flow": run_flow,
    "timm": run_timm_loop,
    "head": run_head,
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("answer", type=Path)
    given = parser.parse_args()
    given.answer.write_text(json.dumps(PARTS[given.part]()))
