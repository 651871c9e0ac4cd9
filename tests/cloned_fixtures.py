"""Fixtures around a clone of the whole project: test modules name this one in `pytest_plugins`."""

import shutil
import subprocess
from pathlib import Path

import pytest
from cloned import Project
from conftest import ROOT
from test_contracts import STAGES
from toy import ToyProject

pytest_plugins = ["toy_fixtures"]

NOT_COPIED = ("docs/", "tests/")


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory, dvc_state: None) -> Path:
    """A git repository that holds the project as it is here, as a fresh clone would find it."""
    root = tmp_path_factory.mktemp("origin") / "regraft"
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT).decode().split("\0")
    for name in listed:
        if name and not name.startswith(NOT_COPIED) and (ROOT / name).exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    project = ToyProject(root)
    project.git("init", "--quiet", "--initial-branch=main")
    project.git("config", "user.name", "Regraft")
    project.git("config", "user.email", "regraft@localhost")
    project.git("config", "receive.denyCurrentBranch", "ignore")
    project.commit("Regraft")
    return root


@pytest.fixture(scope="module")
def ran(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone with images of its own after `dvc repro`, results committed. Not to be changed."""
    project = Project.clone(origin, tmp_path_factory.mktemp("ran") / "cells")
    project.add_images()
    assert project.repro() == STAGES
    project.commit("My images")
    return project


@pytest.fixture
def project(ran: Project, tmp_path: Path) -> Project:
    return ran.copy(tmp_path / "cells")
