"""Which phase follows which, by what became of those before."""

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
        """Plans of all phases and of the next one; h: helped, k: kept, r: rolled back."""
        finished: list[Phase] = []
        plans = [self.next(finished)]
        for outcome in outcomes:
            plan = plans[-1]
            assert plan is not None
            assert plan.number == len(plans)
            finished.append(record_of(plan, kept=outcome != "r", helped=outcome != "k"))
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


@pytest.mark.parametrize(
    ("outcomes", "raised"),
    {
        "kk": [False, False, False],
        "hk": [False, True, False],
        "hh": [False, True, True],
        "rh": [False, False, True],
        "hr": [False, True, False],  # it would have lowered the loss, but was rolled back
        "khrr": [False, False, True, True, True],
    }.items(),
)
def test_a_phase_that_lowered_the_val_loss_raises_the_rates_of_the_next(
    training: Training, outcomes: str, raised: list[bool]
):
    plans = [plan for plan in training.plans_after(outcomes) if plan]
    raise_lr = training.params.raise_lr
    falls = [1, 1, 1, LOWER, LOWER**2][: len(plans)]
    expected = [fall * (raise_lr if up else 1) for fall, up in zip(falls, raised, strict=True)]
    assert [plan.share for plan in plans] == pytest.approx(expected)
    assert plans[1].rates["head"] == pytest.approx(plans[1].share * training.params.head_lr)
    assert raise_lr > 1


def test_a_phase_that_broke_down_raises_no_rates(training: Training):
    plan = training.next([])
    assert plan is not None
    diverged = record_of(plan, helped=True).model_copy(update={"stopped": "diverged"})
    following = training.next([diverged])
    assert following is not None
    assert following.share == 1.0


def test_another_try_is_as_long_as_the_last_phase(training: Training):
    plans = [plan for plan in training.plans_after("kkr") if plan]
    early, last = training.params.early_epochs, training.params.epochs
    assert [plan.epochs for plan in plans] == [early, early, last, last]
    assert [plan.of for plan in plans] == [3, 3, 3, 4]


def test_from_scratch_there_is_one_phase(tmp_path: Path, default_params: Params):
    training = make_training(tmp_path, default_params, arm="scratch")
    assert training.plans_after("k")[-1] is None
    assert len(phases_if_kept(training.transfer, training.groups, training.params)) == 1
