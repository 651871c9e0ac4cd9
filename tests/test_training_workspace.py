"""What other trainings left is mentioned, never touched; a stopped one says where it goes on."""

import errno
import fcntl
import logging
import multiprocessing
import signal as signals
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from conftest import tells

from tasks.errors import ArtifactError, TrainingError
from tasks.training.resume.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "checkpoints" / "own", tmp_path / "activations" / "own")


def leave(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(count))


def test_what_other_trainings_left_is_mentioned_once_with_its_size_and_kept(
    workspace: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    others = [
        tmp_path / "checkpoints" / "other" / "phase-001-epoch-000001.safetensors",
        tmp_path / "activations" / "other" / "group-5-torch" / "train" / "000000.npy",
    ]
    for path in others:
        leave(path, 1_300_000)
    leave(workspace.checkpoints / "phase-001-epoch-000001.safetensors", 10_000_000)
    workspace.mention_others()
    (message,) = caplog.messages
    folders = [str(tmp_path / part / "other") for part in ("checkpoints", "activations")]
    assert tells(message, *folders, "2.6 MB", "not used", "may be deleted")
    assert str(workspace.checkpoints) not in message
    workspace.remove()
    assert all(path.exists() for path in others)
    assert not workspace.checkpoints.exists()


def test_nothing_left_is_not_mentioned(workspace: Workspace, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    workspace.mention_others()
    leave(workspace.checkpoints / "phase-001-epoch-000001.safetensors", 10)
    workspace.mention_others()
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("names", "place"),
    [
        ([], "from the start: no epoch was finished"),
        (["phase-001-epoch-000000"], "from the start of phase 1"),
        (["phase-001-epoch-000009", "phase-001-epoch-000010"], "from the end of epoch 10 of phase"),
        (["phase-002-epoch-000001-step-000000006"], "after step 6 of epoch 2 of phase 2"),
    ],
)
@pytest.mark.parametrize("signal", [KeyboardInterrupt(), SystemExit(143)], ids=["INT", "TERM"])
def test_a_stopped_training_says_in_one_line_where_the_next_goes_on(
    workspace: Workspace,
    caplog: pytest.LogCaptureFixture,
    names: list[str],
    place: str,
    signal: BaseException,
):
    for name in names:
        leave(workspace.checkpoints / f"{name}.safetensors", 10)
    with pytest.raises(type(signal)), workspace.saying_where_to_go_on():
        raise signal
    (message,) = caplog.messages
    assert message.startswith(f"stopped; the next run goes on {place}")


def test_only_the_first_process_says_it(workspace: Workspace, caplog: pytest.LogCaptureFixture):
    with pytest.raises(SystemExit), workspace.saying_where_to_go_on(first=False):
        raise SystemExit(143)
    assert caplog.messages == []


def test_a_training_that_fails_says_nothing_about_going_on(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
):
    with pytest.raises(ValueError, match="rates"), workspace.saying_where_to_go_on():
        raise ValueError("rates")
    assert caplog.messages == []


def hold(workspace: Workspace, held: Event) -> None:
    with workspace.holding():
        held.set()
        signals.pause()


@contextmanager
def another_run(workspace: Workspace) -> Iterator[multiprocessing.process.BaseProcess]:
    """Another process that holds the workspace until it is killed."""
    spawning = multiprocessing.get_context("spawn")
    held = spawning.Event()
    run = spawning.Process(target=hold, args=[workspace, held])
    run.start()
    try:
        assert held.wait(60)
        yield run
    finally:
        run.kill()
        run.join()


def test_a_second_run_of_the_same_training_is_refused_until_the_first_has_ended(
    workspace: Workspace,
):
    with another_run(workspace) as run:
        with (
            pytest.raises(TrainingError, match=r"own: another run .* REGRAFT_SCRATCH"),
            workspace.holding(patience=0),
        ):
            pass
        with workspace.holding(first=False):  # the others of several processes
            pass
        run.kill()
        with workspace.holding(), pytest.raises(TrainingError), workspace.holding(patience=0):
            pass


def test_a_scratch_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    workspace = Workspace(tmp_path / "checkpoints" / "own", tmp_path / "activations" / "own")
    with (
        pytest.raises(ArtifactError, match=r"own: cannot be written \(.*\); set REGRAFT_SCRATCH"),
        workspace.holding(),
    ):
        pass


def test_a_disk_without_locks_is_used_with_a_warning(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with workspace.holding():
        assert workspace.checkpoints.exists()
    facts = "cannot be locked", "No locks available", "no other run"
    assert tells(caplog.text, str(workspace.checkpoints), *facts)


def test_a_folder_that_its_holder_deletes_is_locked_anew(workspace: Workspace):
    with workspace.holding():
        workspace.remove()
        with workspace.holding(patience=0):
            assert workspace.checkpoints.exists()


def test_what_a_run_without_checkpoints_left_is_not_mentioned(
    workspace: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    with Workspace(tmp_path / "checkpoints" / "other", tmp_path / "activations").holding():
        pass
    workspace.mention_others()
    assert caplog.messages == []
