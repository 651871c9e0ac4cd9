"""The flow `pipeline`: DVC's graph as a Prefect run, one task run a stage."""

# No `from __future__ import annotations`: Prefect could not build the parameters of a served run.

from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import WithJsonSchema

from flows.overrides import ParamsOverrides, changes
from flows.recovery import settle_run
from flows.run import Wish, run_stages
from flows.stage import STAGES

NO_OVERRIDES = ParamsOverrides()
# A choice in the form: the stages with parameters, and those without. What dvc.yaml really holds
# is known when a run starts.
StageName = Annotated[str, WithJsonSchema({"type": "string", "enum": ["check", *STAGES, "audit"]})]


@flow(
    name="pipeline",
    persist_result=False,
    on_crashed=[settle_run],
    on_cancellation=[settle_run],
)
def pipeline(
    stages: tuple[StageName, ...] = (),
    overrides: ParamsOverrides = NO_OVERRIDES,
    hide_test: bool = False,
) -> State[Any]:
    """Run the stages of dvc.yaml; DVC runs, restores or leaves each one, as `dvc repro` does.

    Args:
        stages: Only these stages, in the graph's order. Empty: all of them.
        overrides: Values of params.yaml for this run alone. With any of them set the run works in
            a copy of the project and comes back as a DVC experiment; your files stay as they are.
        hide_test: Keep test off the page, as for one of several runs that val is to choose from.
    """
    return run_stages(Wish(stages, values=changes(overrides), test_is_hidden=hide_test))
