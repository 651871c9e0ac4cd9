"""The container image: its steps make an environment in which the project of a clone runs."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import ROOT
from toy import ToyProject

pytest_plugins = ["toy_fixtures"]
pytestmark = pytest.mark.slow


def steps() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def ignored(path: str) -> bool:
    """Tell whether .dockerignore leaves a path out; its last pattern that fits decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text().split():
        pattern = line.removeprefix("!")
        if pattern in {"*", path.split("/", maxsplit=1)[0], path}:
            out = not line.startswith("!")
    return out


def test_what_is_copied_into_the_image_is_not_ignored() -> None:
    copied = [name for word, rest in steps() if word == "COPY" for name in rest.split()[:-1]]
    assert {"pyproject.toml", "constraints.txt", "flows", "tasks"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    assert not [name for name in copied if ignored(name)]
    assert all(ignored(name) for name in ("data", ".git", "params.yaml", ".venv", ".regraft"))


class Image:
    """What the steps make, in a folder of its own; apt and pip's downloads are taken as done."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root
        self.environment = {**os.environ, "EXTRA": ""}

    def do(self, word: str, rest: str) -> None:
        getattr(self, f"_{word.lower()}", lambda rest: None)(rest)

    def _workdir(self, rest: str) -> None:
        self.folder = self.root / rest.lstrip("/")
        self.folder.mkdir(parents=True, exist_ok=True)

    def _copy(self, rest: str) -> None:
        *names, target = rest.split()
        for name in names:
            whole = (ROOT / name).is_dir()
            (shutil.copytree if whole else shutil.copy)(ROOT / name, self.folder / target)

    def _env(self, rest: str) -> None:
        for name, value in re.findall(r"(\S+)=(\S+)", rest.replace("/opt", f"{self.root}/opt")):
            self.environment[name] = value.replace("$PATH", self.environment["PATH"])

    def _run(self, rest: str) -> None:
        for command in rest.split(" && "):
            if not command.startswith(("apt-get ", "{ ", "rm -rf /var")):
                self._run_one(command.replace("python3 ", f"{sys.executable} ", 1))

    def _run_one(self, command: str) -> None:
        packages, own = sysconfig.get_paths()["purelib"], dict(self.environment)
        if " pip install " in command:  # what it would fetch are the packages that are here
            command += " --no-index --no-build-isolation"
            own["PYTHONPATH"] = packages
        subprocess.run(command, shell=True, check=True, cwd=self.folder, env=own)
        for found in (self.folder / ".venv").glob("lib/python*/site-packages"):
            (found / "packages.pth").write_text(packages)


@pytest.mark.timeout(600)
def test_the_steps_of_the_image_make_what_runs_a_clone(
    tmp_path: Path, fresh_toy: ToyProject
) -> None:
    image = Image(tmp_path / "image")
    for word, rest in steps():
        image.do(word, rest)
    assert not (image.root / "opt/regraft/flows").exists()

    fresh_toy.add_flows()
    clone = image.folder / "clone"
    subprocess.run(["git", "clone", "--quiet", fresh_toy.root, clone], check=True)

    def say(*command: str) -> str:
        return subprocess.check_output(command, cwd=clone, env=image.environment, text=True)

    script = "import sys, flows.pipeline, flows.sweep_dask; print(sys.prefix, flows.__file__)"
    assert say("python", "-c", script).split() == [
        str(image.root / "opt/regraft/.venv"),
        str(clone / "flows/__init__.py"),
    ]
    assert "Running stage 'join'" in say("dvc", "repro")


def has_engine() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(not has_engine(), reason="needs a running Docker engine")
@pytest.mark.timeout(1800)
def test_the_image_is_built() -> None:
    tag = "regraft-test"
    subprocess.run(["docker", "build", "--tag", tag, str(ROOT)], check=True)
    script = "import prefect, torch, timm, dvc, prefect_dask"
    subprocess.run(["docker", "run", "--rm", tag, "python", "-c", script], check=True)
