"""Fixtures around candidates; name this module in `pytest_plugins`, with toy_fixtures."""

import shutil
from pathlib import Path

import pytest
from owls import MODEL, OWLS, add_results, keep_experiment, use
from toy import ToyProject


@pytest.fixture(scope="session")
def made_owls(finished: ToyProject, tmp_path_factory: pytest.TempPathFactory) -> ToyProject:
    """A commit with results, and experiments with better and worse ones."""
    toy = ToyProject(tmp_path_factory.mktemp("owls") / "toy")
    shutil.copytree(finished.root, toy.root, symlinks=True)
    toy.write(".gitignore", toy.read(".gitignore") + "/models\n")
    artifact = f"artifacts:\n  classifier:\n    path: {MODEL}\n    type: model\n"
    toy.write("dvc.yaml", toy.read("dvc.yaml") + artifact)
    add_results(toy, "first", [*range(10)])
    toy.commit("Ten")
    for name, wrong in OWLS.items():
        add_results(toy, name, [*wrong], images=16 if name == "new-owl" else 20)
        keep_experiment(toy, name)
    return toy


@pytest.fixture
def owls(made_owls: ToyProject, tmp_path: Path) -> ToyProject:
    shutil.copytree(made_owls.root, tmp_path / "toy", symlinks=True)
    return ToyProject(tmp_path / "toy")


@pytest.fixture
def used(owls: ToyProject) -> ToyProject:
    """With the first model in use."""
    use(owls, "HEAD")
    return owls
