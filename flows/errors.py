"""What can go wrong between Regraft, Prefect and DVC, told to the user in one message.

RegraftError (tasks.errors)
├── GitError        git refuses what is asked of it
├── GraphError      the project or its graph cannot be read, or has no such stage
├── IsolationError  a run with overrides cannot be set up or kept
├── ProjectError    a new project cannot be made as asked
├── PromotionError  a candidate does not come into use
└── ServerError     the Prefect server cannot be started, or does not answer
"""

from tasks.errors import RegraftError


class GitError(RegraftError):
    """Git refuses what is asked of it."""


class GraphError(RegraftError):
    """The project or its dvc.yaml cannot be used, or has no stage of that name."""


class IsolationError(RegraftError):
    """A run with overrides cannot be set up, or its results cannot be kept as an experiment."""


class ProjectError(RegraftError):
    """A new project cannot be made where or from what the user says."""


class PromotionError(RegraftError):
    """A candidate does not come into use: it is not whole, not better, or cannot be found."""


class ServerError(RegraftError):
    """The Prefect server cannot be started, or does not answer."""
