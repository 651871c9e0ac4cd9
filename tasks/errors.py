"""The exception tree. A message says what is wrong, where, what was found, what is allowed.

RegraftError
├── ParamsError     params.yaml or a REGRAFT_ environment variable (also a ValueError)
├── DataError       the user's images, labels, groups or descriptors (also a ValueError)
│   └── ImageError  one image file; its reason becomes a row of quarantine.csv
├── ArtifactError   a file that a stage reads is missing, damaged or from another run
├── WeightsError    backbone weights that cannot be had or do not fit
├── EngineError     an engine that cannot run the network
├── TrainingError   training that cannot go on
└── PeerError       another process of the same stage has ended
"""


class RegraftError(Exception):
    """Base of every error that a user's input or machine can cause; shown without a traceback."""


class ParamsError(RegraftError, ValueError):
    """A value of params.yaml or of the environment is unknown, of wrong type or out of range."""


class DataError(RegraftError, ValueError):
    """The images, labels, groups or the descriptor given by the user cannot be used as they are."""


class ImageError(DataError):
    """One image file cannot be used; the message is a short reason without the path."""


class ArtifactError(RegraftError):
    """A file that a stage reads is missing, damaged or does not fit the others."""


class WeightsError(RegraftError):
    """Backbone weights are missing, do not match their sha256 or do not fit the architecture."""


class EngineError(RegraftError):
    """An engine was asked for that cannot run the network on this machine."""


class TrainingError(RegraftError):
    """Training cannot go on, and no earlier state is worth keeping."""


class PeerError(RegraftError):
    """Another process of the same stage has ended or does not answer; its own message tells why."""


def first_line(err: Exception) -> str:
    """Say in one line what went wrong."""
    return f"{type(err).__name__}: {str(err).partition(chr(10))[0]}"
