"""The plan: which groups each phase trains, at which rates, for how long."""

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.errors import ArtifactError
from tasks.params import FinetuneParams
from tasks.records import Decision
from tasks.training.freezing import TrainingGroup


@dataclass(frozen=True)
class PhasePlan:
    """One phase.

    Attributes:
        number: From 1.
        of: Phases in all.
        name: For people.
        unfrozen_from: Lowest trained backbone group.
        epochs: Most epochs.
        patience: Epochs without a lower val loss that end it.
        rates: Peak rate of each trained group by name, the head's included.
        adapt_norm: Whether trained norm layers normalize by the batch and update their statistics.
    """

    number: int
    of: int
    name: str
    unfrozen_from: int
    epochs: int
    patience: int
    rates: dict[str, float]
    adapt_norm: bool


def phase_cuts(decision: Decision, groups: Sequence[TrainingGroup]) -> list[int]:
    """Give the lowest trained group of each phase; none where only the head is to be trained.

    Args:
        decision: The arm and the lowest unfrozen group of each phase.
        groups: The backbone's groups in forward order, then the head.

    Raises:
        ArtifactError: The decision names a group that the backbone does not have, or a later phase
            does not unfreeze more than the one before.
    """
    if decision.arm == "feature_extraction":
        return []
    top = len(groups) - 1
    cuts = decision.phases
    if not cuts or not all(0 <= cut <= top for cut in cuts) or cuts != sorted(set(cuts))[::-1]:
        raise ArtifactError(
            f"decision.json: phases are {cuts}; expected falling numbers of layer groups, from "
            f"0 to {top}; rerun decide"
        )
    return cuts


def plan_phases(
    decision: Decision, groups: Sequence[TrainingGroup], params: FinetuneParams
) -> list[PhasePlan]:
    """Turn a decision into phases; none where only the head is to be trained.

    Args:
        decision: The arm and the lowest unfrozen group of each phase.
        groups: The backbone's groups in forward order, then the head.
        params: The `finetune` block.

    Raises:
        ArtifactError: The decision does not fit the backbone.
    """
    cuts = phase_cuts(decision, groups)
    scratch = decision.arm == "scratch"
    return [
        PhasePlan(
            number=number,
            of=len(cuts),
            name="from scratch" if scratch else f"unfrozen from {groups[cut].name}",
            unfrozen_from=cut,
            epochs=_most_epochs(params, scratch=scratch, last=number == len(cuts)),
            patience=params.scratch_patience if scratch else params.patience,
            rates=_scratch_rates(groups, params) if scratch else _peak_rates(groups, cut, params),
            adapt_norm=scratch,
        )
        for number, cut in enumerate(cuts, start=1)
    ]


def _most_epochs(params: FinetuneParams, *, scratch: bool, last: bool) -> int:
    if scratch:
        return params.scratch_epochs
    return params.epochs if last else params.early_epochs


def _peak_rates(
    groups: Sequence[TrainingGroup], unfrozen_from: int, params: FinetuneParams
) -> dict[str, float]:
    """Rates of the trained groups: the head's, the topmost group's, less with every group below.

    Source: Howard and Ruder 2018, 1801.06146 (discriminative rates).
    """
    *backbone, head = groups
    rates = {
        group.name: params.backbone_lr * params.lr_decay**depth
        for depth, group in enumerate(reversed(backbone[unfrozen_from:]))
    }
    return {head.name: params.head_lr, **rates}


def _scratch_rates(groups: Sequence[TrainingGroup], params: FinetuneParams) -> dict[str, float]:
    return {group.name: params.scratch_lr for group in groups}
