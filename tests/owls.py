"""Models in use and candidates, good and bad: results are made, nothing is trained."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from test_compare import manifest, write_results
from test_export import known_features
from toy import ToyProject

from flows.commands.promote import judge_candidate, put_into_use
from flows.stages.in_use import LINK, is_in_place
from flows.stages.registry import read_registry
from tasks.artifacts.records import Calibration, Fit, write_json, write_record
from tasks.delivery.folder import FORMAT, SUMS, hash_files
from tasks.delivery.in_domain import REFERENCE

MODEL = "data/report/model"
OWLS = {  # experiments on the commit that is wrong about ten images
    "swift-owl": range(0),
    "dull-owl": [*range(8), 10],
    "bad-owl": range(20),
    "new-owl": range(1),
}
FIT: Fit = "squash"


def silent(line: str) -> None:
    """Take a line and do nothing."""


def write_model(folder: Path, weights: bytes) -> None:
    """An exported folder as `read_delivered` wants it, with other weights."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    preprocessing = {"background": [255] * 3, "integers": [0, 255], "floats": [0.0, 1.0]}
    about = {
        "format": FORMAT,
        "classes": ["a", "b"],
        "preprocessing": {**preprocessing, "image_px": 32, "fit": FIT},
        "limits": {"max_pixels": 10_000, "min_side_px": 1},
    }
    write_json(folder / "regraft.json", about)
    calibration = Calibration(
        temperature=1.0,
        fitted_on="val",
        images=20,
        set_coverage=0.9,
        set_thresholds=[0.5, 0.5],
        in_domain=1.0,
        false_alarm=0.05,
    )
    write_record(folder / "calibration.json", calibration)
    known_features(4).write(folder / REFERENCE)
    (folder / "labels.txt").write_text("a\nb\n")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    (folder / SUMS).write_text(hash_files(folder))


def add_results(toy: ToyProject, name: str, wrong: list[int], images: int = 20) -> None:
    """What a run leaves, its exported model included."""
    rows = [
        replace(row, group=row.path)  # as many groups as there can be, so that few images tell
        for row in manifest()
        if row.split != "test" or int(row.path[5:]) < images
    ]
    write_model(toy.root / MODEL, name.encode())
    write_results(toy, wrong, rows, MODEL)


def keep_experiment(toy: ToyProject, name: str) -> None:
    """Make an experiment of the files as they are, as DVC names it, and take them back."""
    head = toy.git("rev-parse", "HEAD").strip()
    toy.commit(name)
    toy.git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", "HEAD")
    toy.git("reset", "--quiet", "--hard", head)


def use(toy: ToyProject, candidate: str, why: str = "") -> str:
    verdict = judge_candidate(toy.root, candidate, silent)
    decision = verdict.by_itself or "approved"
    return put_into_use(toy.root, verdict, decision, "Ada", why, silent)


def in_use(toy: ToyProject) -> str:
    """Whose model is in use, by the link; tags and link must agree."""
    commit = read_registry(toy.root).in_use
    assert commit is not None
    assert is_in_place(toy.root, commit)
    return (toy.root / LINK / "model.safetensors").read_text()


def record(toy: ToyProject, number: int) -> dict[str, Any]:
    text = toy.git("for-each-ref", "--format=%(contents)", f"refs/tags/classifier#prod#{number}")
    found: dict[str, Any] = json.loads(text.partition("\n\n")[2])
    return found
