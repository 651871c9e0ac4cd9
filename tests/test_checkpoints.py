"""A checkpoint gives back the very state, or is recognized as damaged or of another training."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tells

from tasks.artifacts.arrays import write_tensors
from tasks.artifacts.records import Estimate, Phase
from tasks.artifacts.tables import HistoryRow
from tasks.errors import ArtifactError
from tasks.training.resume.checkpoints import (
    CheckpointFolder,
    Snapshot,
    Tally,
    Tensors,
    TrainState,
    read_train_state,
    write_state,
)
from tasks.training.resume.workspace import fingerprint


def tensors(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    kernel = torch.randn((4, 3, 3, 3), generator=generator)
    return {
        "backbone.conv.weight": kernel.contiguous(memory_format=torch.channels_last),
        "backbone.bn.num_batches_tracked": torch.tensor(seed),
        "head.bias": torch.randn(3, generator=generator),
    }


def make_state(phase: int = 1, epoch: int = 2, *, best: bool = True, steps: int = 0) -> TrainState:
    logits = np.random.default_rng(phase).normal(size=(5, 3)).astype(np.float32)
    row = HistoryRow(1, 1, {"head": 1 / 3, "blocks.4": 1e-5}, 0.1, 0.2, 0.3, 0.4)
    done = Phase(
        name="unfrozen from blocks.4",
        unfrozen_from=5,
        epochs=3,
        best_epoch=2,
        stopped="patience",
        val_loss=0.5,
        val_accuracy=0.75,
        change_in_val_accuracy=Estimate(value=0.1, low=-0.1, high=0.3, n=5),
        kept=True,
        reason="kept",
    )
    return TrainState(
        phase=phase,
        epoch=epoch,
        start=Snapshot(0, tensors(1), logits),
        best=Snapshot(1, tensors(2), 2 * logits) if best else None,
        weights=tensors(3),
        moments={"head.bias.exp_avg": torch.ones(3), "head.bias.step": torch.tensor(7.0)},
        history=(row,),
        finished=(done,),
        judged=(3 * logits,),
        phase_average=tensors(4),
        micro_batch=8 if best else None,
        tally=Tally(steps, steps / 3, steps * 0.1, 5 * steps, 8 * steps) if steps else Tally(),
    )


def assert_same(one: TrainState, other: TrainState) -> None:
    for name in ("phase", "epoch", "history", "finished", "micro_batch", "tally", "place"):
        assert getattr(one, name) == getattr(other, name)
    for name in ("weights", "moments", "phase_average"):
        assert_same_tensors(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(one.judged, other.judged)
    assert (one.best is None) == (other.best is None)
    pairs = [(one.start, other.start)]
    if one.best and other.best:
        pairs.append((one.best, other.best))
    for before, after in pairs:
        assert before.epoch == after.epoch
        np.testing.assert_array_equal(before.val_logits, after.val_logits)
        assert_same_tensors(before.weights, after.weights)


def assert_same_tensors(one: Tensors, other: Tensors) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.shape == other[name].shape, name
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize(("best", "steps"), [(True, 0), (False, 0), (True, 7)])
def test_a_state_survives_its_file(tmp_path: Path, best: bool, steps: int):
    state = make_state(best=best, steps=steps)
    write_state(tmp_path / "state.safetensors", state)
    assert_same(state, read_train_state(tmp_path / "state.safetensors"))


def test_the_two_newest_states_are_kept(tmp_path: Path):
    folder = CheckpointFolder(tmp_path / "one")
    for phase, epoch in [(1, 9), (1, 10), (2, 0), (2, 1)]:
        folder.save(make_state(phase, epoch))
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == [
        "phase-002-epoch-000000.safetensors",
        "phase-002-epoch-000001.safetensors",
    ]
    latest = folder.latest()
    assert latest is not None
    assert (latest.phase, latest.epoch) == (2, 1)


def test_epoch_ten_is_newer_than_epoch_nine(tmp_path: Path):
    folder = CheckpointFolder(tmp_path / "one")
    for epoch in (9, 10):
        folder.save(make_state(1, epoch))
    latest = folder.latest()
    assert latest is not None
    assert latest.epoch == 10


def test_a_step_is_newer_than_the_epoch_before_it_and_older_than_its_own(tmp_path: Path):
    folder = CheckpointFolder(tmp_path / "one")
    for place in [(1, 0, 4), (1, 1, 0), (1, 1, 9), (1, 1, 10), (1, 2, 0), (2, 0, 0), (2, 0, 1)]:
        folder.save(make_state(*place[:2], steps=place[2]))
        assert folder.newest() == place
        latest = folder.latest()
        assert latest is not None
        assert (latest.phase, latest.epoch, latest.tally.steps) == place


def test_no_folder_is_no_state(tmp_path: Path):
    assert CheckpointFolder(tmp_path / "none").latest() is None


def flip(content: bytes, position: int) -> bytes:
    damaged = bytearray(content)
    damaged[position] ^= 1
    return bytes(damaged)


def digest_in(content: bytes) -> bytes:
    return content.partition(b'"digest":"')[2][:64]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "length of the header": lambda content: flip(content, 3),
    "header": lambda content: flip(content, 100),
    "a byte in the middle": lambda content: flip(content, len(content) // 2),
    "one of the last bytes": lambda content: flip(content, -5),
    "cut by a byte": lambda content: content[:-1],
    "cut in half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "wrong digest": lambda content: content.replace(digest_in(content), b"0" * 64),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_file_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
):
    folder = CheckpointFolder(tmp_path / "one")
    for epoch in (1, 2):
        folder.save(make_state(1, epoch))
    newest = tmp_path / "one" / "phase-001-epoch-000002.safetensors"
    content = newest.read_bytes()
    newest.write_bytes(DAMAGES[damage](content))
    assert newest.read_bytes() != content
    latest = folder.latest()
    assert latest is not None
    assert_same(latest, make_state(1, 1))
    (record,) = caplog.records
    damaged = "phase-001-epoch-000002.damaged"
    assert tells(record.message, f"{newest}: ", damaged, "going on from phase-001-epoch-000001")
    assert (tmp_path / "one" / damaged).read_bytes() == DAMAGES[damage](content)
    assert folder.newest() == (1, 1, 0)


def test_damage_within_an_epoch_falls_back_to_the_step_before_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    folder = CheckpointFolder(tmp_path / "one")
    for steps in (3, 20):
        folder.save(make_state(1, 1, steps=steps))
    newest = tmp_path / "one" / "phase-001-epoch-000001-step-000000020.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    latest = folder.latest()
    assert latest is not None
    assert_same(latest, make_state(1, 1, steps=3))
    (message,) = caplog.messages
    assert tells(message, f"{newest}: ", "from phase-001-epoch-000001-step-000000003")


def test_a_folder_of_damaged_files_is_no_state(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = CheckpointFolder(tmp_path / "one")
    for epoch in (1, 2):
        folder.save(make_state(1, epoch))
    for path in (tmp_path / "one").iterdir():
        path.write_bytes(b"")
    assert folder.latest() is None
    assert len(caplog.records) == 2
    assert "from the start" in caplog.messages[1]
    for epoch in (0, 1):  # what the next run saves is older than what was damaged, and stays
        folder.save(make_state(1, epoch))
        latest = folder.latest()
        assert latest is not None
        assert latest.epoch == epoch


def test_the_newest_file_is_known_without_reading_it(tmp_path: Path):
    folder = CheckpointFolder(tmp_path / "one")
    assert folder.newest() is None
    for phase, epoch in [(1, 10), (2, 0)]:
        folder.save(make_state(phase, epoch))
    assert folder.newest() == (2, 0, 0)


def test_every_flipped_byte_is_noticed(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    write_state(path, make_state())
    content = path.read_bytes()
    for position in range(0, len(content), 53):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError):
            read_train_state(path)


def test_a_whole_file_that_is_no_checkpoint_is_refused(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    write_tensors(path, {}, {"position": "{}", "digest": hashlib.sha256(b"{}").hexdigest()})
    with pytest.raises(ArtifactError, match="is no checkpoint"):
        read_train_state(path)


def test_states_of_another_training_are_not_read(tmp_path: Path):
    CheckpointFolder(tmp_path / "one").save(make_state())
    assert CheckpointFolder(tmp_path / "other").latest() is None
    assert CheckpointFolder(tmp_path / "one").latest() is not None


def test_saving_again_replaces_a_state(tmp_path: Path):
    folder = CheckpointFolder(tmp_path / "one")
    folder.save(make_state())
    changed = replace(make_state(), weights=tensors(9))
    folder.save(changed)
    latest = folder.latest()
    assert latest is not None
    assert_same(latest, changed)


def make_project(root: Path) -> tuple[list[Path], list[Path]]:
    (root / "store").mkdir(parents=True)
    (root / "store" / "000.npy").write_bytes(b"pixels" * 100)
    (root / "manifest.csv").write_text("path,label\n")
    (root / "code").mkdir()
    (root / "code" / "loop.py").write_text("step = 1\n")
    return [root / "manifest.csv", root / "store"], [root / "code"]


def test_a_fingerprint_does_not_depend_on_where_the_project_lies(tmp_path: Path):
    one, other = make_project(tmp_path / "a"), make_project(tmp_path / "b" / "c")
    assert fingerprint(one[0], ["lr=1"], one[1]) == fingerprint(other[0], ["lr=1"], other[1])


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("store/000.npy", b"pixels" * 99 + b"pixelt"),
        ("manifest.csv", b"path,class\n"),
        ("code/loop.py", b"step = 2\n"),
        ("store/001.npy", b""),
    ],
)
def test_a_fingerprint_changes_with_any_input_and_any_line_of_code(
    tmp_path: Path, file: str, content: bytes
):
    inputs, code = make_project(tmp_path)
    before = fingerprint(inputs, ["lr=1"], code)
    (tmp_path / file).write_bytes(content)
    assert fingerprint(inputs, ["lr=1"], code) != before


@pytest.mark.parametrize("name", ["__pycache__/loop.cpython-311.pyc", "notes.txt"])
def test_a_fingerprint_ignores_what_is_no_source_beside_the_code(tmp_path: Path, name: str):
    inputs, code = make_project(tmp_path)
    before = fingerprint(inputs, ["lr=1"], code)
    (code[0] / name).parent.mkdir(exist_ok=True)
    (code[0] / name).write_bytes(b"compiled")
    assert fingerprint(inputs, ["lr=1"], code) == before


def test_a_fingerprint_tells_modules_of_one_name_in_two_packages_apart(tmp_path: Path):
    prints = set()
    for package in ("a", "b"):
        inputs, code = make_project(tmp_path / package)
        (code[0] / package).mkdir()
        (code[0] / package / "one.py").write_text("x = 1\n")
        prints.add(fingerprint(inputs, ["lr=1"], code))
    assert len(prints) == 2


def test_a_fingerprint_changes_with_any_value(tmp_path: Path):
    inputs, code = make_project(tmp_path)
    texts = [["lr=1"], ["lr=2"], ["lr=1", ""], ["l", "r=1"]]
    assert len({fingerprint(inputs, values, code) for values in texts}) == 4


def test_a_changed_block_of_a_large_file_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tasks.training.resume.workspace.SAMPLED_BYTES", 1000)
    monkeypatch.setattr("tasks.training.resume.workspace.BLOCKS", 4)
    monkeypatch.setattr("tasks.training.resume.workspace.BLOCK_BYTES", 10)
    path = tmp_path / "large"
    path.write_bytes(bytes(4000))
    before = fingerprint([path], [], [])
    path.write_bytes(bytes(3000) + b"x" + bytes(999))
    assert fingerprint([path], [], []) != before
    path.write_bytes(bytes(4001))
    assert fingerprint([path], [], []) != before
