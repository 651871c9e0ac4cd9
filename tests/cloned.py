"""The whole project as a user has it: a clone with images of one's own, drawn and few."""

import shutil
import subprocess
from pathlib import Path

from conftest import TINY, draw_classes
from ruamel.yaml import YAML
from toy import ToyProject


class Project(ToyProject):
    """A clone of the whole project, with a user's images in data/raw."""

    @classmethod
    def clone(cls, origin: Path, root: Path) -> "Project":
        """Clone it and do what README says for images of one's own."""
        subprocess.run(["git", "clone", "--quiet", str(origin), str(root)], check=True)
        project = cls(root)
        project.git("config", "user.name", "User")
        project.git("config", "user.email", "user@localhost")
        return project

    def add_images(self) -> None:
        draw_classes(self.root / "data/raw")
        for path, value in {**TINY, "ingest.source": "data/raw"}.items():
            self.set(path, value)

    def copy(self, root: Path) -> "Project":
        shutil.copytree(self.root, root, symlinks=True)
        return Project(root)

    def repro(self, *arguments: str) -> list[str]:
        """Run `dvc repro` and name the stages whose command ran."""
        lines = self.dvc("repro", *arguments).splitlines()
        return [line.split("'")[1] for line in lines if line.startswith("Running stage")]

    def experiments(self) -> list[str]:
        return self.dvc("exp", "list", "--name-only").split()

    def hash_in(self, revision: str, path: str) -> str:
        """The md5 of an out in the dvc.lock of a revision."""
        stages = YAML(typ="safe").load(self.git("show", f"{revision}:dvc.lock"))["stages"].values()
        outs = (out for stage in stages for out in stage["outs"])
        return str(next(out["md5"] for out in outs if out["path"] == path))

    def reference(self, experiment: str) -> str:
        found = self.git("for-each-ref", "--format=%(refname)", "refs/exps/").split()
        return next(name for name in found if name.endswith(f"/{experiment}"))
