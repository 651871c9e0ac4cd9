from dataclasses import replace
from fractions import Fraction

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.params_file import load_params
from tasks.transferability.arms import count_groups
from tasks.transferability.rules import (
    Evidence,
    apply_rules,
    choose,
    choose_cuts,
    domain_of,
    raises_rates,
)

PARAMS = load_params(ROOT / "params.yaml").decide.model_copy(
    update={"similar_mmd": 0.04, "far_mmd": 0.1}
)
ORDER = ("unknown", "similar", "intermediate", "far")
DEPTH_OF_ARM = {"feature_extraction": 0, "fine_tune": 1, "scratch": 2}


LITE0 = (1, 1, 2, 2, 3, 3, 4, 1)  # blocks of its layer groups


def evidence(images=1000, mmd=0.08, gain=0.3, **more):
    seen = {"classes": 10, "blocks": LITE0, "p_value": 0.002, **more}
    return Evidence(images=images, mmd=mmd, gain=gain, **seen)


CASES = {
    # name: (what is seen, domain, arm, phases)
    "few and similar": ({"images": 200, "mmd": 0.01}, "similar", "fine_tune", (4,)),
    "some and similar": ({"images": 201, "mmd": 0.01}, "similar", "fine_tune", (6, 4)),
    "few, in between": ({"images": 20}, "intermediate", "fine_tune", (4,)),
    "more, in between": ({"images": 5000}, "intermediate", "fine_tune", (6, 4)),
    "few and far": ({"images": 100, "mmd": 0.2}, "far", "fine_tune", (4,)),
    "solar cells": ({"images": 1557, "classes": 2, "mmd": 0.186}, "far", "fine_tune", (6, 4)),
    "huge, far, no gain": (
        {"images": 500_000, "mmd": 0.2, "gain": 0.0}, "far", "scratch", (0,),
    ),
    "huge, far, with gain": ({"images": 500_000, "mmd": 0.2}, "far", "fine_tune", (6, 4)),
    "huge, similar, no gain": (
        {"images": 500_000, "mmd": 0.01, "gain": 0.0}, "similar", "fine_tune", (6, 4),
    ),
    "just below huge": (
        {"images": 499_999, "mmd": 0.2, "gain": 0.0}, "far", "fine_tune", (6, 4),
    ),
    "at its ceiling": (
        {"error": 0.01, "room": 0.0}, "intermediate", "feature_extraction", (),
    ),
    "nothing measured": ({"mmd": None, "gain": None}, "unknown", "fine_tune", (6, 4)),
    "huge, nothing measured": (
        {"images": 500_000, "mmd": None, "gain": None}, "unknown", "fine_tune", (6, 4),
    ),
    "exactly at the limits": (
        {"images": 200, "mmd": 0.04}, "intermediate", "fine_tune", (4,),
    ),
    "one group only": ({"mmd": 0.2, "blocks": (5,)}, "far", "fine_tune", (0,)),
    "a vision transformer": ({"mmd": 0.2, "blocks": (1,) * 13}, "far", "fine_tune", (10, 8, 4)),
    "ConvNeXt's stages": ({"mmd": 0.2, "blocks": (1, 3, 3, 9, 4)}, "far", "fine_tune", (3,)),
}  # fmt: skip


@pytest.mark.parametrize(("seen", "domain", "arm", "phases"), CASES.values(), ids=CASES)
def test_choice(seen, domain, arm, phases):
    choice = choose(evidence(**seen), PARAMS)
    assert (choice.domain, choice.arm, choice.phases) == (domain, arm, phases)


def test_the_rule_that_decides_is_the_first_that_fires_and_votes():
    rules = apply_rules(evidence(images=500_000, mmd=0.2, gain=0.0), PARAMS)
    voting = [rule.name for rule in rules if rule.fired and rule.votes_for]
    assert voting[0] == "scratch only for very much far data"
    assert "fine-tune" in voting  # also true, but too late


def test_rules_show_what_they_saw():
    rules = {rule.name: rule for rule in apply_rules(evidence(gain=0.01), PARAMS)}
    assert rules["domain by MMD"].inputs == {"mmd": 0.08, "p_value": 0.002, "says": "intermediate"}
    assert rules["transfer must gain"].fired is True
    assert rules["fine-tune"].inputs == {"share_of_blocks": 0.67, "groups": 4}


@pytest.mark.parametrize("arm", ["scratch", "feature_extraction", "fine_tune"])
def test_phases_fit_the_arm_whatever_the_evidence(arm):
    seen = evidence(images=50, error=0.0, room=0.0)  # where the rules would train the head alone
    expected = {"scratch": (0,), "feature_extraction": (), "fine_tune": (4,)}
    assert choose_cuts(arm, seen, PARAMS) == expected[arm]


@pytest.mark.parametrize(("depth", "phases"), [(1.0, (6, 4, 0)), (0.3, (6,)), (0.01, (7,))])
def test_the_depth_that_the_user_sets_is_reached_by_halves(depth, phases):
    assert choose(evidence(), PARAMS.model_copy(update={"depth": depth})).phases == phases


@pytest.mark.parametrize(
    ("seen", "raised"),
    {
        "what frozen features cannot fit": ({"overfit": 1.43}, False),
        "what they learn by heart": ({"overfit": 3.36}, True),
        "few images": ({"images": 200, "overfit": 13.5}, False),
        "just enough images": ({"images": 201, "overfit": 13.5}, True),
        "no train loss at all": ({"overfit": None}, False),
    }.values(),
)
def test_rates_are_raised_where_frozen_features_fit_train_far_better_than_val(seen, raised):
    assert raises_rates(evidence(**seen)) is raised
    rule = next(one for one in apply_rules(evidence(**seen), PARAMS) if one.name == "raised rates")
    assert (rule.fired, rule.votes_for) == (raised, None)


# what must hold everywhere -----------------------------------------------------------------------

cases = st.builds(
    Evidence,
    images=st.integers(1, 10**7),
    classes=st.integers(2, 1000),
    blocks=st.lists(st.integers(1, 9), min_size=1, max_size=40).map(tuple),
    mmd=st.none() | st.floats(-0.01, 2),
    p_value=st.none() | st.floats(0.002, 1),
    gain=st.none() | st.floats(-1, 1),
)


@settings(max_examples=200, deadline=None)
@given(
    share=st.fractions(0, 1, max_denominator=20),
    blocks=st.lists(st.integers(1, 9), min_size=1, max_size=20),
)
def test_as_many_groups_as_hold_the_nearest_share_of_the_blocks(share, blocks):
    found = count_groups(float(share), blocks)
    total = sum(blocks)
    off = [abs(Fraction(sum(blocks[-n:]), total) - share) for n in range(1, len(blocks) + 1)]
    assert found == off.index(min(off)) + 1


def depth(case):
    """How much of the network is trained: arm first, then the number of unfrozen groups."""
    choice = choose(case, PARAMS)
    unfrozen = case.groups - min(choice.phases, default=case.groups)
    return DEPTH_OF_ARM[choice.arm], unfrozen


@settings(max_examples=150, deadline=None)
@given(case=cases, more=st.integers(0, 10**7))
def test_more_data_never_trains_less(case, more):
    assert depth(replace(case, images=case.images + more)) >= depth(case)


@settings(max_examples=150, deadline=None)
@given(case=cases, farther=st.floats(0, 2))
def test_a_farther_domain_never_trains_less(case, farther):
    moved = replace(case, mmd=None if case.mmd is None else case.mmd + farther)
    assert ORDER.index(domain_of(moved, PARAMS)) >= ORDER.index(domain_of(case, PARAMS))
    assert depth(moved) >= depth(case)


@settings(max_examples=150, deadline=None)
@given(case=cases)
def test_phases_go_down_from_the_top(case):
    choice = choose(case, PARAMS)
    assert list(choice.phases) == sorted(set(choice.phases), reverse=True)
    assert all(0 <= group < case.groups for group in choice.phases)
    assert len(choice.phases) <= 3
    assert (choice.arm == "feature_extraction") == (choice.phases == ())
