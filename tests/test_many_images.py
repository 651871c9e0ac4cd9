"""Memory does not grow with the number of images: stages on thousands of tiny ones.

REGRAFT_MEMORY_IMAGES=200000 pytest -m slow tests/test_many_images.py -s   runs it at full size.
"""

import hashlib
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from bench.processes import run_measured, thread_limits
from conftest import ROOT, with_values
from PIL import Image
from ruamel.yaml import YAML

from tasks.artifacts.records import ImageSource, Split, write_record
from tasks.artifacts.tables import Manifest, ManifestRow, write_manifest
from tasks.images.decoding.conversion import settle_conversion
from tasks.params import Params

IMAGES = int(os.environ.get("REGRAFT_MEMORY_IMAGES", "20000"))
FEW = 2_000  # images whose peak the larger set's is compared with
MANY = 200_000  # images whose peak, extrapolated, must stay within the limit
LIMIT = 3 * 2**30
SIDE, CLASSES = 16, 2
SMALL = {
    "backbone.name": "test_resnet",
    "backbone.weights": "random",
    "augment.image_px": SIDE,
    "augment.views": 1,
    "extract.batch_size": 256,
    "extract.shift_images": 64,
    "baseline.mlp_hidden": 16,
    "baseline.mlp_epochs": 2,
    "baseline.l2_strengths": [0.1, 1.0],
}


def write_images(folder: Path, count: int) -> Manifest:
    """Write tiny images, a thousand a folder, and list them; 20 % are val, 20 % test."""
    splits: list[Split] = ["train", "train", "train", "val", "test"]
    noise = np.random.default_rng(0).integers(0, 156, (count, SIDE, SIDE), dtype=np.uint8)
    rows = []
    for number in range(count):
        label = number % CLASSES
        noise[number, :, : SIDE // 2] += np.uint8(100 * label)
        path = Path(f"{number // 1000:04d}") / f"{number:07d}.bmp"
        (folder / path.parent).mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        Image.fromarray(noise[number]).save(content, "BMP")
        (folder / path).write_bytes(content.getvalue())
        sha256 = hashlib.sha256(content.getvalue()).hexdigest()
        split = splits[number // CLASSES % len(splits)]
        rows.append(
            ManifestRow(path.as_posix(), f"class {label}", split, sha256, sha256, SIDE, SIDE, "L")
        )
    return Manifest(rows)


def arguments(root: Path) -> dict[str, list[str]]:
    """The command line of each stage."""
    pixels = [f"--{split}={root / 'pixels' / split}" for split in ("train", "val", "test")]
    features = [f"--{split}-features={root / 'features' / split}" for split in ("train", "val")]
    listed = f"--manifest={root / 'manifest.csv'}"
    return {
        "augment": [
            listed, f"--origin={root / 'source.json'}",
            f"--conversion={root / 'conversion.json'}", *pixels,
            f"--sheet={root / 'sheet.jpg'}", f"--policy={root / 'policy.json'}",
        ],
        "select": [listed, pixels[0], f"--choice={root / 'choice.json'}"],
        "extract": [
            listed, f"--choice={root / 'choice.json'}", *pixels, *features,
            f"--test-features={root / 'features' / 'test'}",
            f"--probe={root / 'probe.safetensors'}", f"--backbone={root / 'backbone.json'}",
        ],
        "baseline": [
            listed, *features, f"--head={root / 'head.safetensors'}",
            f"--summary={root / 'baseline.json'}", f"--val-logits={root / 'logits.npy'}",
            *pixels[:2], f"--suspects={root / 'suspects.csv'}",
            f"--suspect-pixels={root / 'suspects.npy'}",
        ],
    }  # fmt: skip


def measure_peaks(root: Path, count: int, params: Params) -> dict[str, int]:
    """Run the stages over so many images; the most memory that each held."""
    root.mkdir()
    with (root / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(params.model_dump(), file)
    write_manifest(root / "manifest.csv", write_images(root / "images", count))
    origin = ImageSource(
        kind="folder", name="made", root=str(root / "images"), package=None, license=None,
        citation=None, label_rule=None,
    )  # fmt: skip
    write_record(root / "source.json", origin)
    write_record(root / "conversion.json", settle_conversion([]))
    environment = {**thread_limits(1), "PYTHONPATH": str(ROOT), "REGRAFT_SCRATCH": str(root)}
    peaks = {}
    for stage, given in arguments(root).items():
        command = [sys.executable, "-m", f"tasks.{stage}", f"--params={root / 'params.yaml'}"]
        measured = run_measured(
            [*command, *given], cwd=root, environment=environment, log=root / "log.txt"
        )
        peaks[stage] = measured.peak_bytes
        print(f"{stage}: {count:,} images, {measured.seconds:.0f} s, "  # noqa: T201
              f"{measured.peak_bytes / 2**20:,.0f} MiB")  # fmt: skip
    return peaks


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_memory_stays_within_its_limit_however_many_images(tmp_path: Path, default_params: Params):
    params = with_values(default_params, SMALL)
    few = measure_peaks(tmp_path / "few", FEW, params)
    many = measure_peaks(tmp_path / "many", IMAGES, params)
    for stage, peak in many.items():
        growth = (peak - few[stage]) / (IMAGES - FEW)
        print(f"{stage}: {growth:,.0f} bytes an image")  # noqa: T201
        assert peak < LIMIT, stage
        assert peak + growth * max(0, MANY - IMAGES) < LIMIT, stage
