"""A small DVC project of four stages, for tests of the flows: fetch -> left, right -> join."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from conftest import ROOT
from ruamel.yaml import YAML

SAME_COMMITS = {f"GIT_{role}_DATE": "2026-01-01T00:00:00Z" for role in ("AUTHOR", "COMMITTER")}

STAGES = ["fetch", "left", "right", "join"]

GRAPH = """\
stages:
  fetch:
    cmd: python work.py source.txt out/fetch.txt
    deps: [work.py, source.txt]
    outs: [out/fetch.txt]
  left:
    cmd: python work.py out/fetch.txt out/left.txt
    deps: [work.py, out/fetch.txt]
    params: [seed, finetune.head_lr]
    outs: [out/left.txt]
  right:
    cmd: python work.py out/fetch.txt out/right.txt
    deps: [work.py, out/fetch.txt]
    params: [evaluate.ece_bins]
    outs: [out/right.txt]
  join:
    cmd: python work.py out/left.txt out/right.txt out/join.txt
    deps: [work.py, out/left.txt, out/right.txt]
    outs: [out/join.txt]
"""

# What every stage runs: joins its inputs and its parameter; a file `<stage>.break` makes it fail,
# `<stage>.lack` once for a lack of the machine, `<stage>.sleep` makes it wait and name its process.
WORK = """\
import os, pathlib, sys, time
*inputs, output = map(pathlib.Path, sys.argv[1:])
stage = os.environ["DVC_STAGE"]
print(stage, "starts", file=sys.stderr)
if pathlib.Path(f"{stage}.break").exists():
    print("about to stop")
    sys.exit(f"{stage} stopped: " + pathlib.Path(f"{stage}.break").read_text())
lack = pathlib.Path(f"{stage}.lack")
if lack.exists():
    print(f"{stage} stopped: " + lack.read_text(), file=sys.stderr)
    lack.unlink()
    sys.exit(75)
if pathlib.Path(f"{stage}.sleep").exists():
    pathlib.Path(f"{stage}.pid").write_text(str(os.getpid()))
    time.sleep(float(pathlib.Path(f"{stage}.sleep").read_text()))
output.parent.mkdir(exist_ok=True)
key = {"left": "head_lr", "right": "ece_bins"}.get(stage)
values = [line for line in open("params.yaml") if line.split(":")[0].strip() == key]
output.write_text("".join([path.read_text() for path in inputs] + values))
"""


class ToyProject:
    """A git and DVC project in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self, graph: str = GRAPH) -> None:
        """Make the four stages of the toy."""
        self.write("dvc.yaml", graph)
        self.write("work.py", WORK)
        self.write("source.txt", "source\n")
        self.write(".gitignore", ".regraft/\n*.break\n*.lack\n*.sleep\n*.pid\n")
        shutil.copy(ROOT / "params.yaml", self.root)
        self.write("data/groups.csv", "path,group\n")
        self.write("data/corrections.csv", "path,label,drop\n")
        self.set("ingest.source", "source.txt")
        self.set("finetune.head_lr", 0.0005)  # the tests name values, whatever the default is
        self.git("init", "--quiet", "--initial-branch=main")
        self.git("config", "user.name", "Toy")
        self.git("config", "user.email", "toy@localhost")
        self.write(".dvc/config", "[core]\n    analytics = false\n    check_update = false\n")
        self.write(".dvc/.gitignore", "/config.local\n/tmp\n/cache\n")
        self.commit("Start")

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def need(self, file: str = "'${ingest.source}'") -> None:
        """Let the first stage depend on one more file or folder, that of the images by default."""
        self.write("dvc.yaml", GRAPH.replace("source.txt]", f"source.txt, {file}]"))

    def read(self, name: str) -> str:
        return (self.root / name).read_text()

    def add_flows(self) -> None:
        """Copy the project's own code and deployment, so that the flow can be served from here."""
        for name in ("flows", "tasks"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, self.root / name, ignore=ignored)
        shutil.copy(ROOT / "prefect.yaml", self.root)
        self.commit("Add the flows")

    def commit(self, message: str) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)

    def git(self, *arguments: str) -> str:
        return _run("git", *arguments, cwd=self.root)

    def dvc(self, *arguments: str) -> str:
        return _run(sys.executable, "-m", "dvc", *arguments, cwd=self.root)

    def set(self, path: str, value: Any) -> None:
        yaml = YAML()
        tree = yaml.load(self.root / "params.yaml")
        *blocks, leaf = path.split(".")
        node = tree
        for block in blocks:
            node = node[block]
        node[leaf] = value
        yaml.dump(tree, self.root / "params.yaml")

    @property
    def lock(self) -> bytes:
        return (self.root / "dvc.lock").read_bytes()


def _run(*command: str, cwd: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        check=False,
        cwd=cwd,
        env={**os.environ, **(SAME_COMMITS if command[0] == "git" else {}), "PATH": path},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
