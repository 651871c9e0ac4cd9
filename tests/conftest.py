"""Shared fixtures: tiny labeled images and small parameters."""

import gc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.artifacts.records import AugmentPolicy, Conversion, Estimate, ImageSource
from tasks.params import Params
from tasks.params_file import load_params

ROOT = Path(__file__).parent.parent
HOSTILE = "<script>alert(1)</script>"

# Small enough for a test, large enough that every stage has something to do.
TINY: dict[str, Any] = {
    "backbone.name": "test_efficientnet",
    "backbone.weights": "random",
    "augment.image_px": 32,
    "augment.views": 1,
    "extract.batch_size": 16,
    "extract.shift_images": 32,
    "similarity.max_images": 64,
    "similarity.permutations": 20,
    "similarity.bootstrap": 20,
    "baseline.mlp_hidden": 8,
    "baseline.mlp_epochs": 3,
    "decide.ceiling_error": 0.0,
    "race.share": 1.0,
    "race.epochs": 1,
    "race.min_images": 4,
    "finetune.epochs": 2,
    "finetune.head_lr": 0.0005,
    "finetune.batch_size": 8,
    "finetune.scratch_epochs": 2,
    "evaluate.bootstrap": 100,
    "evaluate.ece_bins": 5,
    "evaluate.hardest": 4,
}


LONGEST = (
    "test_uses",
    "test_uses_ui",
    "test_graph_rerun",
    "test_pipeline_flow",
    "test_isolation",
    "test_finetune",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no process waits for one at the end."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_collection_finish() -> None:
    """Let garbage collection, which some tests ask for, pass over all that imports made."""
    gc.freeze()


def with_values(params: Params, values: Mapping[str, Any]) -> Params:
    """Give a copy of the parameters with other values at some key paths."""
    tree = params.model_dump()
    for path, value in values.items():
        *blocks, leaf = path.split(".")
        node = tree
        for block in blocks:
            node = node[block]
        assert leaf in node, path
        node[leaf] = value
    return Params.model_validate(tree)


@pytest.fixture(scope="session")
def default_params() -> Params:
    """The parameters as they stand in params.yaml."""
    return load_params(ROOT / "params.yaml")


@pytest.fixture(scope="session")
def tiny_params(default_params: Params) -> Params:
    """Parameters small enough for a test."""
    return with_values(default_params, TINY)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, default_params: Params) -> Iterator[Any]:
    """Give the run of a variant of `made_run`, up to the report; not to be changed."""
    from made_run import keep_runs

    with keep_runs(tmp_path_factory.mktemp("runs"), default_params) as runs:
        yield runs


def tells(text: str, *facts: str) -> bool:
    """Whether a text has all these facts, in whatever words."""
    return all(fact in text for fact in facts)


def make_origin(
    name: str = "made", kind: Literal["folder", "csv", "package"] = "folder", root: str = "images"
) -> ImageSource:
    """Where images lie, with nothing told beside."""
    return ImageSource(
        kind=kind, name=name, root=root, package=None, license=None, citation=None, label_rule=None
    )


POLICY = AugmentPolicy(
    policy="none", ranges={}, views=1, image_px=32, fit="crop", images={}, bytes={}, notes=[]
)
CONVERSION = Conversion(
    background=(255, 255, 255), integers=(0, 255), floats=(0.0, 1.0), transparent=0, deep=0,
    profiled=0, notes=[],
)  # fmt: skip


def share(value: float, half: float, n: int = 60) -> Estimate:
    """A share with a symmetric interval."""
    return Estimate(value=value, low=max(0.0, value - half), high=min(1.0, value + half), n=n)


def number(value: float, half: float, n: int = 60) -> Estimate:
    """A number with a symmetric interval."""
    return Estimate(value=value, low=value - half, high=value + half, n=n)


def draw_image(label: int, number: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A noisy image whose brightest channel and stripes tell the label; no two are alike."""
    rng = np.random.default_rng([label, number])
    pixels = rng.integers(0, 110, (size[1], size[0], 3))
    pixels[..., label % 3] += 100
    if label % 2:
        pixels[::4] += 40
    else:
        pixels[:, ::4] += 40
    blob = rng.integers(2, min(size) - 8, 2)
    pixels[blob[0] : blob[0] + 8, blob[1] : blob[1] + 8] = rng.integers(0, 255, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw_classes(
    root: Path, classes: tuple[str, ...] = ("cat", "dog", "fox"), images: int = 30
) -> None:
    """Fill a new folder with class folders of drawn images."""
    for label, name in enumerate(classes):
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(images):
            draw_image(label, number).save(folder / f"{number:03d}.png")


ImageFolder = Callable[..., Path]


@pytest.fixture
def image_folder(tmp_path: Path) -> ImageFolder:
    """Make a folder of class folders: `image_folder(classes=("cat", "dog", "fox"), images=30)`."""

    def make(
        classes: tuple[str, ...] = ("cat", "dog", "fox"), images: int = 30, name: str = "raw"
    ) -> Path:
        root = tmp_path / name
        draw_classes(root, classes, images)
        return root

    return make


@pytest.fixture
def restored_torch(monkeypatch):
    """Leave torch as it was for the tests that follow."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = fill
