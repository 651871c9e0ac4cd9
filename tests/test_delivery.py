"""The exported model without torch: ONNX files that answer as torch does, a script beside them."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, tells
from made_run import Run, Runs
from PIL import Image, ImageCms
from test_export import (
    CLASSES,
    PLAIN,
    SETS,
    SIDE,
    shipped_model,
    write_picture,
)
from test_extract import fill_store
from torch import nn

from tasks.artifacts.pixels import PixelStore
from tasks.artifacts.records import SPLITS, Conversion, Fit, Metrics, OnnxFile, Split, read_record
from tasks.artifacts.tables import Manifest, ManifestRow, PredictionRow, read_rows
from tasks.backbones.engine import TorchEngine
from tasks.delivery import onnx_files
from tasks.delivery.folder import read_delivered
from tasks.delivery.onnx_answers import OnnxAnswers
from tasks.delivery.onnx_files import AnswerNetwork, Samples, expect_loss, write_onnx_files
from tasks.errors import ArtifactError
from tasks.images.decoding.decode import clean_view, decode_image, draft_side, frame_image
from tasks.report import main as report
from tasks.reporting.export import export_model

# Refuses to import what is neither of Python, nor one of the three packages, nor what those need.
BARE = """\
import sys
needed = {"onnxruntime", "PIL", "numpy", "flatbuffers", "google", "packaging", "sympy", "mpmath"}
class Bare:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in needed | {"_distutils_hack"} and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Bare())
import runpy
runpy.run_path(sys.argv.pop(0) and sys.argv[0], run_name="__main__")
"""


def classify_alone(folder: Path, paths: list[Path]) -> list[list[str]]:
    """What the shipped script prints, run where nothing else can be imported."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", BARE, str(folder / "predict.py"), *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def make_samples(root: Path, counts: tuple[int, int, int] = (12, 9, 7)) -> Samples:
    """Stores of noise, of every split."""
    rows: list[ManifestRow] = []
    stores: dict[Split, PixelStore] = {}
    for split, count in zip(SPLITS, counts, strict=True):
        stores[split] = fill_store(root / split, count, views=0, seed=count)
        rows += [
            ManifestRow(f"{split}{n}", CLASSES[n % 3], split, f"{n}", f"{n}", 40, 40, "RGB")
            for n in range(count)
        ]
    return Samples(stores, Manifest(rows), seed=3, threads=1)


# the whole of a run -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reported(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose fine-tuned model ships, with its report. Not to be changed."""
    run = runs("fine-tuned").copy(tmp_path_factory.mktemp("reported"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGRAFT_THREADS", "1")
        report(run.arguments("report"))
    return run


def test_the_script_alone_gives_the_test_accuracy(reported: Run) -> None:
    paths = reported.paths
    predictions = read_rows(paths.predictions, PredictionRow)
    rows = classify_alone(paths.export, [reported.root / row.path for row in predictions])
    assert [row[1] for row in rows] == [row.predicted for row in predictions]
    found = [float(row[2]) for row in rows]
    np.testing.assert_allclose(found, [row.probability for row in predictions], atol=2e-6)
    metrics = read_record(paths.metrics, Metrics)
    assert metrics.shipped == "finetuned"
    assert metrics.finetuned is not None
    right = np.mean([row[1] == known.label for row, known in zip(rows, predictions, strict=True)])
    assert right == pytest.approx(metrics.finetuned.accuracy.value)


def test_what_was_measured_is_told(reported: Run) -> None:
    about = json.loads((reported.paths.export / "regraft.json").read_text())
    onnx = about["onnx"]
    assert onnx["shipped"]
    assert onnx["test_images"] == len(read_rows(reported.paths.predictions, PredictionRow))
    assert onnx["answers_that_differ"] == 0
    assert onnx["largest_difference"] < 1e-5
    assert onnx["bytes"] == (reported.paths.export / "model.onnx").stat().st_size
    kept = (reported.paths.export / "model_int8.onnx").exists()
    lost = about["int8"]["val_accuracy_lost"], about["int8"]["expected_accuracy_lost"]
    assert about["int8"]["shipped"] == kept == (max(lost) <= 0.005)
    assert about["onnx"]["expected_accuracy_lost"] == 0
    told = json.loads((reported.paths.export / "calibration.json").read_text())
    assert told["temperature"] == about["temperature"]
    assert (told["fitted_on"], told["set_coverage"], told["false_alarm"]) == ("val", 0.9, 0.05)
    assert len(told["set_thresholds"]) == len(about["classes"])
    labels = (reported.paths.export / "labels.txt").read_text().splitlines()
    assert labels == about["classes"]


def test_the_sums_are_those_of_sha256sum_and_a_changed_file_is_told(
    reported: Run, tmp_path: Path
) -> None:
    run = reported.copy(tmp_path)
    folder = run.paths.export
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True)
    assert read_delivered(folder).classes == run.findings.health.classes
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactError, match=r"model\.onnx is not the file that was exported"):
        read_delivered(folder)
    (folder / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx is missing; copy the folder again"):
        read_delivered(folder)


def test_shortened_sums_are_told(reported: Run, tmp_path: Path) -> None:
    folder = reported.copy(tmp_path).paths.export
    lines = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
    for dropped in ["", *(line for line in lines if not line.endswith(("int8.onnx\n", ".py\n")))]:
        left = [line for line in lines if dropped and line != dropped]
        (folder / "SHA256SUMS").write_text("".join(left))
        with pytest.raises(ArtifactError, match="SHA256SUMS is damaged; copy the folder again, or"):
            read_delivered(folder)


def test_a_folder_without_a_model_or_of_another_version_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"holds no exported model; `make run` makes one"):
        read_delivered(tmp_path)
    (tmp_path / "regraft.json").write_text('{"format": 1}')
    with pytest.raises(ArtifactError, match=r"another version of Regraft \(format 1, expected 5\)"):
        read_delivered(tmp_path)


# the script --------------------------------------------------------------------------------------


def read_as_the_script(folder: Path, path: Path, conversion: Conversion, fit: Fit) -> Any:
    """Pixels as the shipped script reads them; it is run here, where it can be looked into."""
    known = {**conversion.model_dump(mode="json"), "image_px": SIDE, "fit": fit}
    about = {"preprocessing": known, "limits": {"max_pixels": 10**6, "min_side_px": 8}}
    (folder / "regraft.json").write_text(json.dumps(about))
    (folder / "labels.txt").touch()
    names: dict[str, Any] = {"__file__": str(folder / "predict.py"), "__name__": "script"}
    code = (ROOT / "tasks/delivery/alone.py").read_text(encoding="utf-8")
    exec(compile(code, "predict.py", "exec"), names)
    return names["make_square"](names["read_image"](str(path)))


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("name", [name for name in SETS if name != "colors.png"])
def test_the_script_reads_the_pixels_that_training_saw(name: str, fit: Any, tmp_path: Path) -> None:
    write_picture(tmp_path / name)
    np.testing.assert_array_equal(
        read_as_the_script(tmp_path, tmp_path / name, SETS[name], fit),
        read_as_training(tmp_path / name, SETS[name], fit),
    )


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("name", ["large.jpg", "turned.jpg", "srgb.png", "palette.gif", "bits.tif"])
def test_the_script_reads_large_and_turned_files_as_training_did(
    name: str, fit: Fit, tmp_path: Path
) -> None:
    rng = np.random.default_rng(4)
    small = Image.fromarray(rng.integers(0, 255, (7, 11, 3), np.uint8))
    picture, options = small.resize((417, 263), Image.Resampling.BICUBIC), dict[str, Any]()
    if name == "turned.jpg":
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {"exif": exif}
    elif name == "srgb.png":
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        options = {"icc_profile": srgb.tobytes()}
    elif name == "palette.gif":
        picture = picture.quantize(60)
        options = {"transparency": 3}
    elif name == "bits.tif":
        picture = picture.convert("1")
    picture.save(tmp_path / name, **options)
    np.testing.assert_array_equal(
        read_as_the_script(tmp_path, tmp_path / name, PLAIN, fit),
        read_as_training(tmp_path / name, PLAIN, fit),
    )


@pytest.mark.parametrize("turn", [6, 8])
@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16"])
def test_the_script_turns_tiffs_as_training_did(mode: str, turn: int, tmp_path: Path) -> None:
    rng, exif = np.random.default_rng(5), Image.Exif()
    exif[0x0112] = turn
    if mode == "I;16":
        picture = Image.fromarray(rng.integers(0, 1 << 16, (40, 64), np.uint16))
    else:
        picture = Image.fromarray(rng.integers(0, 255, (40, 64, 3), np.uint8)).convert(mode)
    picture.save(tmp_path / "turned.tif", exif=exif)
    np.testing.assert_array_equal(
        read_as_the_script(tmp_path, tmp_path / "turned.tif", PLAIN, "squash"),
        read_as_training(tmp_path / "turned.tif", PLAIN, "squash"),
    )


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nan.tif", "NaN"),
        ("lab.tif", "mode LAB"),
        ("small.png", "7 x 90 pixels are too few"),
        ("large.png", "1001 x 1000 pixels are too many"),
        ("pipe.png", "no regular file"),
        ("none.png", "no regular file"),
    ],
)
def test_the_script_refuses_what_training_refuses(name: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if name == "nan.tif":
        Image.fromarray(np.full((40, 40), np.nan, np.float32)).save(file)
    elif name == "lab.tif":
        Image.new("RGB", (40, 40), "red").convert("LAB").save(file)
    elif name == "pipe.png":
        os.mkfifo(file)
    elif name != "none.png":
        Image.new("L", (7, 90) if name == "small.png" else (1001, 1000)).save(file)
    with pytest.raises(ValueError, match=told):
        read_as_the_script(tmp_path, file, PLAIN, "squash")


def read_as_training(path: Path, conversion: Conversion, fit: Fit) -> Any:
    decoded = decode_image(
        path.read_bytes(),
        max_pixels=10**6,
        draft_px=draft_side(SIDE),
        conversion=conversion,
    )
    return clean_view(frame_image(decoded.image, image_px=SIDE, fit=fit), SIDE)


def test_the_script_goes_on_after_what_it_does_not_read(reported: Run, tmp_path: Path) -> None:
    write_picture(tmp_path / "colors.png")
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").touch()
    odd = tmp_path / b"caf\xe9.png".decode("utf-8", "surrogateescape")
    Image.new("RGB", (40, 30), "red").save(odd)
    names = ["colors.png", "text.jpg", "empty.png"]
    done = subprocess.run(
        [sys.executable, str(reported.paths.export / "predict.py"), *names, odd],
        capture_output=True,
        cwd=tmp_path,
        check=True,
    )
    first, second, empty, third = done.stdout.splitlines()
    assert first == b"colors.png\t\t\t16-bit colors are not read here"
    assert second == b"text.jpg\t\t\tno image of a known format"
    assert empty == b"empty.png\t\t\tempty file"
    assert b"caf\xe9.png\t" in third
    assert third.split(b"\t")[1] in {b"defective", b"functional"}


def test_the_script_writes_a_row_for_any_name_and_tells_its_use(
    reported: Run, tmp_path: Path
) -> None:
    names = ["a\tb.png", "c\nd.png"]
    script = [sys.executable, str(reported.paths.export / "predict.py")]
    done = subprocess.run([*script, *names], capture_output=True, text=True, check=True)
    rows = list(csv.reader(io.StringIO(done.stdout, newline=""), delimiter="\t"))
    assert [row[0] for row in rows] == names
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "python predict.py IMAGE" in done.stderr
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write) as closed:
        done = subprocess.run(
            [*script, *names], stdout=closed, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.stderr == ""


# the ONNX files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "test_efficientnet",
        "resnet10t",
        "test_vit",
        "test_convnext",
        "test_nfnet",
        "tf_mobilenetv3_small_minimal_100",
    ],
)
def test_onnx_answers_as_torch_does_in_batches_of_any_size(name: str, tmp_path: Path) -> None:
    shipped = shipped_model(name, "mlp", temperature=1.7)
    model = AnswerNetwork(shipped.backbone, shipped.head, 1.7).eval()
    samples = make_samples(tmp_path / "stores")
    whole, _ = write_onnx_files(tmp_path, model, shipped.input, samples)
    assert whole.shipped, whole.reason
    pixels = samples.stores["test"].rows(range(7))
    expected = TorchEngine(model, shipped.input, torch.device("cpu"))(pixels)
    run = OnnxAnswers(tmp_path / "model.onnx", 1)
    for size in (1, 7):
        for one, other in zip(run(pixels[:size]), expected, strict=True):
            np.testing.assert_allclose(one, other[:size], atol=1e-4 * np.abs(other).max())
    np.testing.assert_allclose(expected[0].sum(axis=1), 1, atol=1e-5)


def test_integers_are_not_shipped_where_val_loses_by_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = shipped_model("test_efficientnet")
    model = AnswerNetwork(shipped.backbone, shipped.head, 1.0).eval()
    samples = make_samples(tmp_path / "stores")
    monkeypatch.setattr(onnx_files, "INT8_LOSS", -2.0)
    whole, small = write_onnx_files(tmp_path, model, shipped.input, samples)
    assert whole.shipped
    assert not small.shipped
    assert tells(small.reason, "accuracy may fall by more than -200 points", "lost on 9 val images")
    assert small.test_images == 7
    assert not (tmp_path / "model_int8.onnx").exists()


def test_integers_are_shipped_with_what_they_cost(tmp_path: Path) -> None:
    shipped = shipped_model("resnet10t")
    model = AnswerNetwork(shipped.backbone, shipped.head, 1.0).eval()
    samples = make_samples(tmp_path / "stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_files, "INT8_LOSS", 1.0)
        _, small = write_onnx_files(tmp_path, model, shipped.input, samples)
    assert (small.shipped, small.weight_bits) == (True, 7)
    assert small.bytes == (tmp_path / "model_int8.onnx").stat().st_size
    assert small.bytes < (tmp_path / "model.onnx").stat().st_size
    assert small.largest_difference is not None
    assert 0 < small.largest_difference < 1


@pytest.mark.parametrize(("expected", "shipped"), [(0.005, True), (0.0051, False)])
def test_integers_may_lose_as_much_as_is_allowed_on_val_and_as_expected(
    expected: float, shipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = OnnxFile(
        shipped=True, reason="", weight_bits=7, val_accuracy=0.925, expected_accuracy_lost=expected
    )

    class Trial:
        samples = None

        def compare(self, file: Path, *, weight_bits: int) -> Any:
            return record, 0.0

    monkeypatch.setattr(onnx_files, "_quantize", lambda *_, **__: None)
    trial: Any = Trial()
    whole = record.model_copy(update={"val_accuracy": 0.93})
    (tmp_path / "model_int8.onnx").touch()
    small = onnx_files._write_small(tmp_path, trial, whole)
    assert (small.val_accuracy_lost, small.shipped) == (0.005, shipped)


def test_the_expected_loss_is_what_accuracy_loses_where_probabilities_are_true() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), 200_000)
    labels = (probabilities.cumsum(axis=1) > rng.random((len(probabilities), 1))).argmax(axis=1)
    best = probabilities.argmax(axis=1)
    other = np.where(rng.random(len(best)) < 0.1, rng.integers(0, 4, len(best)), best)
    lost = np.mean(best == labels) - np.mean(other == labels)
    expected = expect_loss(probabilities.astype(np.float32), other)
    assert expected.min() == 0
    assert expected.mean() == pytest.approx(lost, abs=0.003)
    assert expect_loss(probabilities.astype(np.float32), best).max() == 0


@pytest.mark.parametrize("error", [ArtifactError, MemoryError])
@pytest.mark.parametrize("place", ["export_onnx", "quantize_static"])
def test_a_fault_of_the_machine_is_none_of_the_network(
    place: str, error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error("full")

    shipped = shipped_model("test_efficientnet")
    model = AnswerNetwork(shipped.backbone, shipped.head, 1.0).eval()
    monkeypatch.setattr(onnx_files, place, fail)
    with pytest.raises(error, match="full"):
        write_onnx_files(tmp_path, model, shipped.input, make_samples(tmp_path / "stores"))


class Forked(nn.Module):
    """A network whose answer is another one where it is run on other numbers of images."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.backbone(images)
        return found * int(images.shape[0])


class Refused(Forked):
    """A network that the exporter does not know."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(super().forward(images).reshape(-1, 16, 16)).real


@pytest.mark.parametrize("kind", [Forked, Refused])
def test_a_network_that_onnxruntime_runs_otherwise_or_not_at_all_is_told(
    kind: Any, tmp_path: Path
) -> None:
    shipped = shipped_model("test_efficientnet")
    backbone = kind(shipped.backbone)
    head = shipped.head if kind is Forked else nn.Linear(16, 3)
    model = AnswerNetwork(backbone, head, 1.0).eval()
    samples = make_samples(tmp_path / "stores")
    whole, small = write_onnx_files(tmp_path, model, shipped.input, samples)
    assert not whole.shipped
    assert not small.shipped
    assert "onnxruntime cannot run this network (" in whole.reason
    assert not list(tmp_path.glob("*.onnx"))


def test_the_same_model_gives_the_same_files(tmp_path: Path) -> None:
    shipped, samples = shipped_model("test_efficientnet"), make_samples(tmp_path / "stores")
    for name in ("a", "b"):
        export_model(tmp_path / name, shipped, {}, samples)
    sums = [(tmp_path / name / "SHA256SUMS").read_text() for name in ("a", "b")]
    assert sums[0] == sums[1]
    assert "model.onnx" in sums[0]
