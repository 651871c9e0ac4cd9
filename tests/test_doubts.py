from dataclasses import replace
from math import inf

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.artifacts.records import Distance, Estimate, MmdResult, Similarity
from tasks.params_file import load_params
from tasks.transferability.doubts import assess, find_changes
from tasks.transferability.rules import RAISE_ABOVE, Evidence, choose

PARAMS = load_params(ROOT / "params.yaml").decide.model_copy(
    update={"similar_mmd": 0.04, "far_mmd": 0.1}
)
NOTHING = Estimate(value=0.0, low=None, high=None, n=10)


def measured(mmd=(0.17, 0.18, 0.19), shift=(0.4, 0.45, 0.5), gain=(0.2, 0.3, 0.4), p_value=0.002):
    """Similarity with (low, value, high) of what the rules look at, and its evidence."""
    found = None
    if mmd is not None:
        best = Distance(value=mmd[1], low=mmd[0], high=mmd[2], n=10)
        found = MmdResult(
            value=mmd[1] + 0.3, low=mmd[0], high=mmd[2] + 0.4, n=10, p_value=p_value,
            bandwidths=[1.0], estimator="full", source="card", source_rows=10, matched=best,
            narrowness=0.3,
        )  # fmt: skip
    similarity = Similarity(
        images=10,
        mmd=found,
        shift=shift and Estimate(value=shift[1], low=shift[0], high=shift[2], n=10),
        shift_groups=[],
        ridge_accuracy=NOTHING,
        random_ridge_accuracy=NOTHING,
        transfer_gain=Estimate(value=gain[1], low=gain[0], high=gain[2], n=10),
        summary="",
        notes=[],
    )
    evidence = Evidence(
        images=1557,
        classes=2,
        blocks=(1,) * 8,
        mmd=mmd and mmd[1],
        p_value=p_value if mmd else None,
        gain=gain[1],
    )
    return evidence, similarity


def rated(images=1557, val_images=300, room=None, **what):
    evidence, similarity = measured(**what)
    evidence = replace(evidence, images=images, room=room)
    return assess(evidence, similarity, PARAMS, val_images=val_images)


def test_many_images_and_no_doubt_are_high():
    assert rated() == rated(gain=(0.1, 0.2, 0.3))
    assert rated().confidence == "high"
    assert rated().doubts == []


DOUBTS = {
    # name: (what is seen, confidence, what the doubt says)
    "few images a class": ({"images": 40}, "medium", "at most 20 images a class"),
    "interval across a limit of the arm": (
        {"images": 500_000, "gain": (0.0, 0.03, 0.06)}, "low", "different arms",
    ),
    "few images in val": ({"val_images": 19}, "low", "Val has 19 images"),
    "nothing that val could show": ({"room": -0.01}, "medium", "even a flawless model"),
    "no gain": ({"gain": (-0.02, 0.0, 0.01)}, "low", "transfer itself is in doubt"),
}  # fmt: skip


@pytest.mark.parametrize(("seen", "confidence", "doubt"), DOUBTS.values(), ids=DOUBTS)
def test_doubts_lower_the_confidence_and_say_why(seen, confidence, doubt):
    found = rated(**seen)
    assert found.confidence == confidence
    with pytest.raises(AssertionError, match=doubt):
        raise AssertionError(" ".join(found.doubts))


def test_the_distance_is_no_doubt_where_the_rules_do_not_ask_it():
    assert rated(mmd=None) == rated(mmd=(0.09, 0.11, 0.13)) == rated(p_value=0.2) == rated()


def test_gain_in_doubt_matters_only_where_it_decides():
    gain = {"gain": (0.0, 0.03, 0.06)}
    assert rated(**gain).confidence == "high"
    assert rated(images=500_000, **gain).confidence == "low"  # scratch or not hangs on it


# what would change it ----------------------------------------------------------------------------


def changed(evidence, change):
    at = int(change.at) if change.quantity == "images" else change.at
    return replace(evidence, **{change.quantity: at})


def same(a, b):
    return (a.arm, a.phases, a.raised) == (b.arm, b.phases, b.raised)


def just_before(evidence, change):
    step = 1 if change.quantity == "images" else 1e-9
    value = change.at - step if change.rises else change.at + step
    return replace(evidence, **{change.quantity: value})


cases = st.builds(
    Evidence,
    images=st.integers(50, 10**6),
    classes=st.integers(2, 50),
    blocks=st.lists(st.integers(1, 9), min_size=1, max_size=14).map(tuple),
    mmd=st.none() | st.floats(0, 0.5),
    p_value=st.just(0.01),
    gain=st.floats(-0.2, 0.5),
    overfit=st.none() | st.floats(0, 1000),
)


@settings(max_examples=12, deadline=None)
@given(case=cases)
def test_what_would_change_the_answer_does(case):
    now = choose(case, PARAMS)
    for change in find_changes(case, PARAMS):
        then = choose(changed(case, change), PARAMS)
        assert then == change.choice
        assert not same(then, now)
        before = choose(just_before(case, change), PARAMS)
        assert same(before, now) or (then.arm != now.arm and before.arm == now.arm)


def test_changes_of_a_known_case():
    evidence, _ = measured()
    found = {(c.quantity, c.rises): c for c in find_changes(evidence, PARAMS)}
    assert set(found) == {("images", False)}
    assert found["images", False].at == 2 * 20
    many = find_changes(replace(evidence, images=500_000, gain=0.0), PARAMS)
    assert [c.at for c in many if c.quantity == "mmd"] == [pytest.approx(0.1)]


@pytest.mark.parametrize(
    ("overfit", "rises"), [(0.0, True), (1.3, True), (5.0, False), (1000.0, False), (inf, False)]
)
def test_the_loss_on_val_over_train_changes_the_rates_alone(overfit, rises):
    evidence = replace(measured()[0], overfit=overfit)
    [change] = [c for c in find_changes(evidence, PARAMS) if c.quantity == "overfit"]
    assert change.rises is rises
    assert change.at == pytest.approx(RAISE_ABOVE)
    assert change.choice == replace(choose(evidence, PARAMS), raised=rises)


def test_a_change_of_the_arm_is_found_behind_a_change_of_depth():
    evidence = replace(measured()[0], images=30, gain=0.0)
    params = PARAMS.model_copy(update={"scratch_min_images": 1_000})
    upward = [c for c in find_changes(evidence, params) if c.quantity == "images" and c.rises]
    assert [c.choice.arm for c in upward] == ["scratch", "fine_tune"]
    assert [c.at for c in upward] == [1_000, 2 * 20 + 1]
