"""A flow for each stage that has parameters: rerun it, with what follows from it or alone."""

# No `from __future__ import annotations`: Prefect could not build the parameters of a served run.

from typing import Any, Literal

from prefect import Flow, flow
from prefect.client.schemas.objects import State

from flows.overrides import changes, overrides_of
from flows.recovery import settle_run
from flows.run import Wish, run_stages
from tasks.params import Params

Reach = Literal["this stage and what follows from it", "this stage alone"]
FOLLOW: Reach = "this stage and what follows from it"

# What in params.yaml is no stage's own block, and the stages that offer it beside theirs.
SHARED = {
    "seed": (),
    "class_balanced": ("baseline", "race", "finetune"),
    "backbone": ("select",),
}
STAGES = tuple(name for name in Params.model_fields if name not in SHARED)


def _flow_of(stage: str) -> Flow[..., State[Any]]:
    """Make the flow of a stage, whose form offers the parameters of that stage alone."""
    shared = [block for block, readers in SHARED.items() if stage in readers]
    overrides_type = overrides_of(stage, *shared)
    nothing = overrides_type()

    @flow(name=stage, persist_result=False, on_crashed=[settle_run], on_cancellation=[settle_run])
    def run(
        reach: Reach = FOLLOW,
        force: bool = False,
        overrides: overrides_type = nothing,  # type: ignore[valid-type]
    ) -> State[Any]:
        """Rerun one stage of dvc.yaml; DVC runs, restores or leaves it, as `dvc repro` does.

        Args:
            reach: Which stages. Those before it are left as they are; the log names stale ones.
            force: Run this stage although nothing changed, as after a change that DVC cannot see.
            overrides: Values of params.yaml for this run alone. With any of them set the run works
                in a copy of the project and comes back as a DVC experiment.
        """
        again = [stage] if force else []
        return run_stages(Wish([stage], reach == FOLLOW, again, changes(overrides)))

    return run


globals().update({stage: _flow_of(stage) for stage in STAGES})
