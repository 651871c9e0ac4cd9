"""The flow `sweep` with its runs on a Dask cluster; needs the extra `dask`.

REGRAFT_DASK_ADDRESS names the scheduler of a cluster that runs; without it a cluster of processes
starts on this machine and ends with the sweep. Workers need the project at the same path; those of
a cluster that runs go on with what they have begun when a sweep is cancelled.
"""

# No `from __future__ import annotations`: Prefect could not build the parameters of a served run.

import os
from typing import Any

from prefect.task_runners import TaskRunner
from prefect_dask.task_runners import DaskTaskRunner

from flows.stages.locks import lanes_of
from flows.sweep import sweep
from tasks.runtime.machine import read_machine

_ADDRESS = os.environ.get("REGRAFT_DASK_ADDRESS")
_LOCAL = {"n_workers": len(lanes_of(read_machine())), "threads_per_worker": 1}

_CLUSTER: TaskRunner[Any] = (
    DaskTaskRunner(address=_ADDRESS) if _ADDRESS else DaskTaskRunner(cluster_kwargs=_LOCAL)
)

sweep_dask = sweep.with_options(name="sweep-dask", task_runner=_CLUSTER)
