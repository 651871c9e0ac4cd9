"""How far an engine may be from torch in float32, which is the reference of all engines."""

import numpy as np
from numpy.typing import NDArray

from tasks.errors import EngineError

TOLERANCE = 1e-4  # largest difference between engine and torch, relative to torch's largest value
HALF_TOLERANCE = 0.05  # the same in bfloat16

Pixels = NDArray[np.uint8]
Outputs = tuple[NDArray[np.float32], ...]


def refuse_difference(found: float, tolerance: float) -> None:
    """Refuse an engine that differs from torch.

    Raises:
        EngineError: The difference is larger than allowed, or not a number.
    """
    if not found <= tolerance:
        raise EngineError(
            f"it differs from torch by {found:.1e} of the largest value, allowed: {tolerance:g}"
        )


def difference(found: Outputs, expected: Outputs) -> float:
    """Largest absolute difference of any output, relative to that output's largest value."""
    differences = [
        np.abs(one - other).max(initial=0.0) / max(np.abs(other).max(initial=0.0), 1e-12)
        for one, other in zip(found, expected, strict=True)
    ]
    return float(max(differences))
