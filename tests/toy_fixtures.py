"""Fixtures around the toy project: test modules name this module in `pytest_plugins`."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy import ToyProject


@pytest.fixture(scope="session")
def dvc_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what DVC remembers of files out of the machine's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path_factory.mktemp("dvc-site")))
        patch.setenv("DVC_NO_ANALYTICS", "true")
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, dvc_state: None) -> ToyProject:
    """A toy project after `dvc repro`, its results committed. Not to be changed."""
    project = ToyProject(tmp_path_factory.mktemp("finished") / "toy")
    project.create()
    project.dvc("repro")
    project.commit("Results")
    return project


@pytest.fixture
def toy(finished: ToyProject, tmp_path: Path) -> ToyProject:
    """A copy of the finished toy project."""
    shutil.copytree(finished.root, tmp_path / "toy", symlinks=True)
    return ToyProject(tmp_path / "toy")


@pytest.fixture
def fresh_toy(tmp_path: Path, dvc_state: None) -> ToyProject:
    """A toy project whose stages never ran."""
    project = ToyProject(tmp_path / "fresh")
    project.create()
    return project
