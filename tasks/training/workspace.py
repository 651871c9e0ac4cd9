"""Where an interrupted training leaves what the next one goes on from."""

import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workspace:
    """Folders for what an interrupted run can go on from."""

    checkpoints: Path
    activations: Path

    def remove(self) -> None:
        """Delete both."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        shutil.rmtree(self.activations, ignore_errors=True)
