"""What can go wrong between Regraft, Prefect and DVC, told to the user in one message.

RegraftError (tasks.errors)
├── GraphError      the project or its graph cannot be read, or has no such stage
├── IsolationError  a run with overrides cannot be set up or kept
├── ProjectError    a new project cannot be made as asked
└── ServerError     the Prefect server cannot be started, or does not answer
"""

from tasks.errors import RegraftError


class GraphError(RegraftError):
    """The project or its dvc.yaml cannot be used, or has no stage of that name."""


class IsolationError(RegraftError):
    """A run with overrides cannot be set up, or its results cannot be kept as an experiment."""


class ProjectError(RegraftError):
    """A new project cannot be made where or from what the user says."""


class ServerError(RegraftError):
    """The Prefect server cannot be started, or does not answer."""
