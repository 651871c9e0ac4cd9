"""What can go wrong between Regraft, Prefect and DVC, told to the user in one message.

RegraftError (tasks.errors)
├── GraphError      the project or its graph cannot be read, or has no such stage
├── IsolationError  a run with overrides cannot be set up or kept
└── ServerError     the Prefect server cannot be started
"""

from tasks.errors import RegraftError


class GraphError(RegraftError):
    """The project or its dvc.yaml cannot be used, or has no stage of that name."""


class IsolationError(RegraftError):
    """A run with overrides cannot be set up, or its results cannot be kept as an experiment."""


class ServerError(RegraftError):
    """The Prefect server cannot be started."""
