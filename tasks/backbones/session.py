"""How onnxruntime is set up on a CPU; torch, which takes seconds to import, is not needed here."""

from pathlib import Path

import onnxruntime


def start_session(model: bytes | Path, threads: int) -> onnxruntime.InferenceSession:
    """Start a session that gives the same answers to the same batch.

    Args:
        model: The graph, or the file that holds it.
        threads: Of each operation.

    Raises:
        Exception: Whatever onnxruntime raises of a graph that it cannot run.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.use_deterministic_compute = True
    # Idle threads sleep: spinning takes the cores from whatever else this machine does.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
