"""Which phase follows which, by what became of those before."""

import math
from pathlib import Path

import pytest
from tiny_finetune import make_inputs, phases_if_kept, record_of

from tasks.artifacts.records import Arm, Phase, Transfer
from tasks.heads.classifier import start_classifier
from tasks.params import Params
from tasks.training.phases import (
    LOWER,
    TRIES,
    PhasePlan,
    TrainingGroup,
    next_phase,
    training_groups,
)

CUTS = [5, 4, 2]


class Training:
    """Phases planned one after the other; a word says what becomes of each."""

    def __init__(self, groups: list[TrainingGroup], params: Params, arm: Arm) -> None:
        self.transfer = Transfer(arm=arm, phases=[0] if arm == "scratch" else CUTS)
        self.groups, self.params = groups, params.finetune

    def plans_after(self, outcomes: str) -> list[PhasePlan | None]:
        """Plans of all phases and of the next one; k: kept, r: rolled back."""
        finished: list[Phase] = []
        plans = [self.next(finished)]
        for outcome in outcomes:
            plan = plans[-1]
            assert plan is not None
            assert plan.number == len(plans)
            finished.append(record_of(plan, kept=outcome != "r"))
            plans.append(self.next(finished))
        return plans

    def next(self, finished: list[Phase]) -> PhasePlan | None:
        return next_phase(self.transfer, self.groups, self.params, finished)


@pytest.fixture
def training(tmp_path: Path, default_params: Params) -> Training:
    return make_training(tmp_path, default_params)


def make_training(folder: Path, params: Params, arm: Arm = "fine_tune") -> Training:
    made = make_inputs(folder)
    classifier = start_classifier(made.backbone, made.baseline, made.head, arm=arm, seed=17)
    return Training(training_groups(classifier), params, arm)


@pytest.mark.parametrize(
    ("outcomes", "cuts"),
    {
        "": [5],
        "kk": [5, 4, 2],
        "kr": [5, 4, 2],
        "rr": [5, 4, 2],
        "kkk": [5, 4, 2, None],
        "rrk": [5, 4, 2, None],
        "kkrk": [5, 4, 2, 2, None],
        "kkrr": [5, 4, 2, 2, 2],
        "kkrrr": [5, 4, 2, 2, 2, None],
    }.items(),
)
def test_what_is_trained_next(training: Training, outcomes: str, cuts: list[int | None]):
    plans = training.plans_after(outcomes)
    assert [plan and plan.unfrozen_from for plan in plans] == cuts


def test_rates_of_the_last_phase_fall_each_time_it_is_rolled_back(training: Training):
    plans = [plan for plan in training.plans_after("rkrr") if plan]
    shares = [1, 1, 1, LOWER, LOWER**2]
    assert [plan.share for plan in plans] == pytest.approx(shares)
    full = plans[2].rates
    for plan, share in zip(plans[3:], shares[3:], strict=True):
        assert plan.rates == pytest.approx({name: share * rate for name, rate in full.items()})
    assert TRIES == 3


def test_raised_rates_are_those_of_every_phase_and_of_every_try(training: Training):
    plain = [plan for plan in training.plans_after("kkrr") if plan]
    training.transfer = training.transfer.model_copy(update={"raised": True})
    raised = [plan for plan in training.plans_after("kkrr") if plan]
    factor = training.params.raise_lr
    assert factor > 1
    assert [plan.share for plan in plain] == pytest.approx([1, 1, 1, LOWER, LOWER**2])
    assert [plan.share for plan in raised] == pytest.approx([factor * p.share for p in plain])
    for before, after in zip(plain, raised, strict=True):
        assert after.rates == pytest.approx({k: factor * v for k, v in before.rates.items()})
    early, whole = training.params.early_epochs, training.params.epochs
    last, again = math.ceil(whole / factor), math.ceil(whole / max(1, factor * LOWER))
    assert [plan.epochs for plan in raised] == [early, early, last, again, whole]


def test_from_scratch_no_rates_are_raised(tmp_path: Path, default_params: Params):
    training = make_training(tmp_path, default_params, arm="scratch")
    training.transfer = training.transfer.model_copy(update={"raised": True})
    plan = training.next([])
    assert plan is not None
    assert plan.share == 1.0
    assert plan.epochs == training.params.scratch_epochs


def test_another_try_is_as_long_as_the_last_phase(training: Training):
    plans = [plan for plan in training.plans_after("kkr") if plan]
    early, last = training.params.early_epochs, training.params.epochs
    assert [plan.epochs for plan in plans] == [early, early, last, last]
    assert [plan.of for plan in plans] == [3, 3, 3, 4]


def test_from_scratch_there_is_one_phase(tmp_path: Path, default_params: Params):
    training = make_training(tmp_path, default_params, arm="scratch")
    assert training.plans_after("k")[-1] is None
    assert len(phases_if_kept(training.transfer, training.groups, training.params)) == 1
