"""Runs an exported ONNX file, as an engine; torch is not needed, which takes seconds to import."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.artifacts.arrays import Pixels
from tasks.backbones.session import start_session

WHOLE = "model.onnx"
INPUT, OUTPUTS = "pixels", ("probabilities", "features", "logits")
LOGITS = OUTPUTS.index("logits")
Answers = Callable[[Pixels], tuple[NDArray[np.float32], ...]]  # whatever runs such a model


class OnnxAnswers:
    """Runs an ONNX file as an engine: uint8 (N, R, R, 3) to the outputs of `OUTPUTS`.

    Args:
        file: The file.
        threads: Of onnxruntime.
    """

    def __init__(self, file: Path, threads: int) -> None:
        self._session = start_session(file, threads)

    def __call__(self, pixels: Pixels) -> tuple[NDArray[np.float32], ...]:
        """Give the outputs of a batch."""
        found = self._session.run(list(OUTPUTS), {INPUT: np.ascontiguousarray(pixels)})
        return tuple(found)
