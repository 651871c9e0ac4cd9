"""The phases: which layer groups each one trains, at which rates, for how long.

The optimizer is built once and holds every parameter of every group, by identity. A phase changes
three things: which parameters want a gradient, the rate of each group, the mode of the layers.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain

from torch import nn
from torch.nn.modules.batchnorm import _NormBase as StoredStatisticsNorm
from torch.optim import AdamW

from tasks.artifacts.records import Phase, Transfer
from tasks.backbones.groups import layer_groups, parameter_names
from tasks.errors import ArtifactError
from tasks.heads.classifier import BACKBONE, HEAD, Classifier
from tasks.params import FinetuneParams

HEAD_GROUP = "head"


@dataclass(frozen=True)
class TrainingGroup:
    """Layers that are frozen together and share a learning rate.

    `tensors` are the names of their parameters and buffers in the classifier.
    """

    name: str
    tensors: tuple[str, ...]


def training_groups(classifier: Classifier) -> list[TrainingGroup]:
    """List the backbone's groups in forward order, then the head.

    Raises:
        AssertionError: A tensor of the classifier is in no group or in two.
    """
    names = [group.name for group in layer_groups(classifier.backbone)]
    groups = [
        TrainingGroup(name, tuple(BACKBONE + tensor for tensor in tensors))
        for name, tensors in zip(names, parameter_names(classifier.backbone), strict=True)
    ]
    groups.append(TrainingGroup(HEAD_GROUP, tuple(HEAD + name for name in _names(classifier.head))))
    listed = sorted(tensor for group in groups for tensor in group.tensors)
    assert listed == sorted(_names(classifier)), "groups do not cover every tensor exactly once"
    return groups


def tensors_from(groups: Sequence[TrainingGroup], unfrozen_from: int) -> list[str]:
    """Names of all tensors of the groups from `unfrozen_from` on, the head included."""
    return [tensor for group in groups[unfrozen_from:] for tensor in group.tensors]


def build_optimizer(
    classifier: nn.Module, groups: Sequence[TrainingGroup], *, weight_decay: float
) -> AdamW:
    """Build AdamW over every parameter of every group, all rates still 0.

    Each group becomes two of the optimizer's: matrices and kernels decay; biases, norm layers and
    what the timm model exempts (position embeddings, say) do not. Parameters are told apart by
    identity: layers of equal values are two, a tied one is one.

    Args:
        classifier: Whose parameters they are.
        groups: Its layer groups, the head last.
        weight_decay: Of what decays.

    Source: Loshchilov and Hutter 2019, 1711.05101; what decays is timm's convention.
    """
    parameters = dict(classifier.named_parameters(remove_duplicate=False))
    exempt = _exempt_from_decay(classifier)
    seen: set[int] = set()
    options: list[dict[str, object]] = []
    for group in groups:
        members: dict[float, list[nn.Parameter]] = {weight_decay: [], 0.0: []}
        for name in group.tensors:
            item = parameters.get(name)
            if item is not None and id(item) not in seen:
                seen.add(id(item))
                decays = item.ndim > 1 and not _matches(name, exempt)
                members[weight_decay if decays else 0.0].append(item)
        options += [
            {"params": items, "weight_decay": decay, "group": group.name}
            for decay, items in members.items()
            if items
        ]
    return AdamW(options, lr=0.0, weight_decay=0.0)


def _exempt_from_decay(classifier: nn.Module) -> set[str]:
    """Patterns of the backbone's parameters that its timm model exempts from weight decay."""
    exempt = getattr(getattr(classifier, "backbone", None), "no_weight_decay", set)
    return {BACKBONE + pattern for pattern in exempt()}


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def unfreeze_from(
    classifier: nn.Module, groups: Sequence[TrainingGroup], unfrozen_from: int
) -> None:
    """Let exactly the parameters of the groups from `unfrozen_from` on want a gradient."""
    trained = set(tensors_from(groups, unfrozen_from))
    for name, parameter in classifier.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(name in trained)
        parameter.grad = None


def set_training_mode(
    classifier: nn.Module, trained: nn.Module, names: Sequence[str], *, adapt_norm: bool
) -> None:
    """Put the trained part into training mode and everything else into eval mode.

    In eval mode a batch norm normalizes by its stored statistics and leaves them alone: its output
    does not depend on the other images of a batch, and a batch of one image is fine. Call before
    every epoch: any `.train()` undoes it.

    Args:
        classifier: The whole model; its frozen layers end up in eval mode.
        trained: The part that is trained, sharing its layers with the classifier.
        names: Tensors that are trained; a layer that owns none of them is frozen.
        adapt_norm: Whether trained norm layers normalize by the batch and update their statistics.
    """
    classifier.eval()
    trained.train()
    owners = {name.rpartition(".")[0] for name in names}
    for name, module in classifier.named_modules():
        frozen = _owns_tensors(module) and name not in owners
        still = isinstance(module, StoredStatisticsNorm) and not adapt_norm
        if frozen or still:
            module.training = False


def _owns_tensors(module: nn.Module) -> bool:
    own = chain(module.parameters(recurse=False), module.buffers(recurse=False))
    return next(own, None) is not None


def _names(module: nn.Module) -> list[str]:
    return list(module.state_dict())


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
        share: Multiple of the rates of params.yaml that these are.
        adapt_norm: Whether trained norm layers normalize by the batch and update their statistics.
    """

    number: int
    of: int
    name: str
    unfrozen_from: int
    epochs: int
    patience: int
    rates: dict[str, float]
    share: float
    adapt_norm: bool


def phase_cuts(transfer: Transfer, groups: Sequence[TrainingGroup]) -> list[int]:
    """Give the lowest trained group of each phase; none where only the head is to be trained.

    Args:
        transfer: The arm and the lowest unfrozen group of each phase.
        groups: The backbone's groups in forward order, then the head.

    Raises:
        ArtifactError: It names a group that the backbone does not have, or a later phase does not
            unfreeze more than the one before.
    """
    if transfer.arm == "feature_extraction":
        return []
    top = len(groups) - 1
    cuts = list(transfer.phases)
    if not cuts or not all(0 <= cut <= top for cut in cuts) or cuts != sorted(set(cuts))[::-1]:
        raise ArtifactError(
            f"transfer.json: phases are {cuts}; expected falling numbers of layer groups, from "
            f"0 to {top}; rerun decide"
        )
    return cuts


LOWER = 1 / 3  # of the rates, where the last phase was rolled back
TRIES = 3  # of the last phase, each at lower rates


def next_phase(
    transfer: Transfer,
    groups: Sequence[TrainingGroup],
    params: FinetuneParams,
    finished: Sequence[Phase],
) -> PhasePlan | None:
    """Say what is trained next, from what became of the phases before; None: training is over.

    Every phase is trained once; the last one, if it is rolled back, again at lower rates. At
    raised rates the last phase is shorter by as much.

    Args:
        transfer: The arm, the lowest unfrozen group of each phase, and whether rates are raised.
        groups: The backbone's groups in forward order, then the head.
        params: The `finetune` block.
        finished: Records of the phases that are over.

    Raises:
        ArtifactError: The transfer does not fit the backbone.
    """
    cuts = phase_cuts(transfer, groups)
    scratch = transfer.arm == "scratch"
    last = finished[max(len(cuts) - 1, 0) :]
    if not cuts or (last and (scratch or last[-1].kept or len(last) == TRIES)):
        return None
    place = min(len(finished), len(cuts) - 1)
    raised = params.raise_lr if transfer.raised and not scratch else 1.0
    share = raised * LOWER ** len(last)
    cut, number = cuts[place], len(finished) + 1
    rates = _scratch_rates(groups, params) if scratch else _peak_rates(groups, cut, params)
    return PhasePlan(
        number=number,
        of=number + len(cuts) - 1 - place,
        name="from scratch" if scratch else _name(groups[cut], share),
        unfrozen_from=cut,
        epochs=_most_epochs(params, share, scratch=scratch, last=place == len(cuts) - 1),
        patience=params.scratch_patience if scratch else params.patience,
        rates={name: share * rate for name, rate in rates.items()},
        share=share,
        adapt_norm=scratch,
    )


def _name(lowest: TrainingGroup, share: float) -> str:
    rates = f", at {share:.2g} times the rates" if share != 1 else ""
    return f"unfrozen from {lowest.name}{rates}"


def _most_epochs(params: FinetuneParams, share: float, *, scratch: bool, last: bool) -> int:
    if scratch:
        return params.scratch_epochs
    return last_epochs(params, share) if last else params.early_epochs


def last_epochs(params: FinetuneParams, share: float) -> int:
    """Most epochs of the last phase of fine-tuning at a multiple of the rates: if raised, fewer."""
    return math.ceil(params.epochs / max(1.0, share))


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
