"""The audit stage on a small run: what it writes, what it refuses, what it says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import share, tells
from made_run import Run, Runs
from PIL import Image

from tasks.artifacts.arrays import read_array
from tasks.artifacts.records import (
    Audit,
    ClassShortcut,
    ShortcutAudit,
    Telltale,
    TwinAudit,
    read_record,
)
from tasks.artifacts.tables import (
    FactRow,
    PairRow,
    TwinRow,
    read_manifest,
    read_rows,
    write_rows,
)
from tasks.audit import find_twins, main, say_files, say_twin_share
from tasks.errors import ArtifactError


@pytest.fixture(scope="module")
def run(runs: Runs) -> Run:
    return runs("fine-tuned")


def written(run: Run) -> dict[str, bytes]:
    folder = run.root / "data/audit"
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_val_and_test_image_has_its_nearest_training_image(run: Run) -> None:
    rows = read_rows(run.root / "data/audit/twins.csv", TwinRow)
    manifest = read_manifest(run.paths.manifest)
    labels = {row.path: (row.split, row.label) for row in manifest.rows}
    held_out = [row.path for split in ("val", "test") for row in manifest.of(split)]  # type: ignore[arg-type]
    assert [row.path for row in rows] == held_out
    for row in rows:
        assert labels[row.nearest] == ("train", labels[row.path][1])
        assert -1.0001 <= row.likeness <= 1.0001


def test_the_same_inputs_give_the_same_bytes(runs: Runs, tmp_path: Path) -> None:
    copy = runs("fine-tuned").copy(tmp_path)
    before = written(copy)
    main(copy.arguments("audit"))
    assert written(copy) == before


def test_a_planted_twin_is_found_and_shown_beside_its_training_image(
    runs: Runs, tmp_path: Path
) -> None:
    copy = runs("fine-tuned").copy(tmp_path)
    manifest = read_manifest(copy.paths.manifest)
    folder = copy.root / "data/extract"
    train, test = (
        np.array(read_array(folder / name / "features.npy")) for name in ("train", "test")
    )
    label = manifest.labels("test")[0]
    twin = int(np.flatnonzero(manifest.labels("train") == label)[0])
    test[0] = train[twin, :1]
    np.save(folder / "test" / "features.npy", test)
    main(copy.arguments("audit"))
    first = read_rows(copy.root / "data/audit/pairs/index.csv", PairRow)[0]
    assert first.path == manifest.of("test")[0].path
    assert first.nearest == manifest.of("train")[twin].path
    with Image.open(copy.root / "data/audit/pairs" / first.file) as picture:
        assert picture.size == (64, 32)


def test_features_of_another_run_are_refused(runs: Runs, tmp_path: Path) -> None:
    copy = runs("fine-tuned").copy(tmp_path)
    path = copy.root / "data/extract/val/features.npy"
    np.save(path, np.array(read_array(path))[:-1])
    with pytest.raises(ArtifactError, match=r"features of 19 images.* 20 in val; run extract"):
        main(copy.arguments("audit"))


def test_facts_of_another_run_are_refused(runs: Runs, tmp_path: Path) -> None:
    copy = runs("fine-tuned").copy(tmp_path)
    path = copy.root / "data/ingest/facts.csv"
    first, *others = read_rows(path, FactRow)
    write_rows(path, FactRow, [replace(first, path="other.png"), *others])
    with pytest.raises(ArtifactError, match=r"facts\.csv.*run the stage ingest"):
        main(copy.arguments("audit"))


def test_a_set_without_test_images_is_audited(run: Run) -> None:
    manifest = read_manifest(run.paths.manifest)
    kept = type(manifest)([row for row in manifest.rows if row.split != "test"])
    features = {
        split: np.array(read_array(run.root / f"data/extract/{split}/features.npy"))[:, 0]
        for split in ("train", "val")
    }
    empty = features["val"][:0]
    found = find_twins(kept, {**features, "test": empty}, seed=1)  # type: ignore[dict-item]
    assert set(found.audit.shares) == {"val"}


# words -------------------------------------------------------------------------------------------


def twin_audit(value: float, half: float) -> TwinAudit:
    return TwinAudit(
        threshold=14, shares={"test": share(value, half, 500)}, within_train=None, classes={}
    )


def test_many_twins_are_told_with_their_number_and_what_to_do() -> None:
    assert tells(
        say_twin_share(twin_audit(0.4, 0.05)), "200 of 500", "40%", "groups.csv", "propose_groups"
    )


@pytest.mark.parametrize("value", [0.0, 0.03])
def test_hardly_any_twin_is_not_told(value: float) -> None:
    assert say_twin_share(twin_audit(value, 0.02)) == ""


def test_what_the_files_tell_is_named_with_its_class_and_what_to_do() -> None:
    told = ClassShortcut(
        name="covid",
        auc=share(0.97, 0.02),
        told_by=[Telltale(fact="mode", auc=0.95, words="mode is RGB in 90% of the class")],
    )
    found = ShortcutAudit(
        facts=["mode"], images=60, chance=0.5, balanced_accuracy=share(0.9, 0.05), told=[told],
        told_classes=1,
    )  # fmt: skip
    words = say_files(found)
    assert tells(words, "covid", "0.97", "mode is RGB", "not enough", "mask")
    assert say_files(found.model_copy(update={"told": [], "told_classes": 0})) == ""
    assert say_files(None) == ""


def test_the_record_of_a_run_is_whole(run: Run) -> None:
    audit = read_record(run.root / "data/audit/audit.json", Audit)
    assert audit.twins.shares["test"].n == 40
    assert audit.look_facts is not None
