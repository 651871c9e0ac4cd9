"""Splits by group: what is promised holds for any data, and images added later move nothing."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from conftest import ROOT, with_values
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, kstest

from tasks.errors import DataError
from tasks.images.splits import Assignment, assign_splits, position
from tasks.params import IngestParams, load_params
from tasks.records import SPLITS, Split

PARAMS = load_params(ROOT / "params.yaml")
TEST, VAL = PARAMS.ingest.test_fraction, PARAMS.ingest.val_fraction
SHARES: dict[str, float] = {"test": TEST, "val": VAL, "train": 1 - TEST - VAL}


def params_of(**values: object) -> IngestParams:
    return with_values(PARAMS, {f"ingest.{key}": value for key, value in values.items()}).ingest


def split(
    labels: list[str],
    groups: list[str],
    splits: list[Split | None] | None = None,
    params: IngestParams = PARAMS.ingest,
    seed: int = 17,
) -> Assignment:
    nothing: list[Split | None] = [None] * len(labels)
    return assign_splits(labels, groups, splits or nothing, params=params, seed=seed)


def places(groups: list[str], assignment: Assignment) -> dict[str, set[Split]]:
    found = defaultdict[str, set[Split]](set)
    for group, place in zip(groups, assignment.splits, strict=True):
        found[group].add(place)
    return found


def natural(group: str, seed: int = 17) -> Split:
    """The split of a group by the two thresholds alone: an oracle."""
    at = position(group, seed)
    return "test" if at < TEST else "val" if at < TEST + VAL else "train"


def classes_of(labels: list[str], groups: list[str]) -> dict[str, set[str]]:
    found = defaultdict[str, set[str]](set)
    for label, group in zip(labels, groups, strict=True):
        found[group].add(label)
    return found


def is_mentioned(label: str, *assignments: Assignment) -> bool:
    return any(
        label in remark.replace(",", " ").replace(".", " ").split()
        for assignment in assignments
        for remark in assignment.remarks
    )


@st.composite
def images(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """Labels and groups of up to 200 images; groups may hold several images and classes.

    Every class has at least six groups of its own, so that it can stand in every split.
    """
    seed, count, classes = draw(
        st.tuples(st.integers(0, 10**6), st.integers(30, 200), st.integers(2, 4))
    )
    rng, mixing = np.random.default_rng(seed), draw(st.sampled_from([0.0, 0.1, 0.4]))
    labels = [f"class{number % classes}" for number in range(count)]
    groups = [
        f"own-{number}-{seed}"
        if number < 6 * classes
        else f"{'shared' if rng.random() < mixing else label}-{rng.integers(count // 2)}-{seed}"
        for number, label in enumerate(labels)
    ]
    return labels, groups


# cut by hash --------------------------------------------------------------------------------------


def test_positions_are_uniform_and_depend_on_the_seed() -> None:
    at = np.array([position(f"group {number}", 17) for number in range(4000)])
    other = np.array([position(f"group {number}", 18) for number in range(4000)])
    assert kstest(at, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(at, other)[0, 1]) < 0.05


@settings(max_examples=60, deadline=None)
@given(images())
def test_groups_never_cross_and_every_class_stands_in_every_split(
    data: tuple[list[str], list[str]],
) -> None:
    labels, groups = data
    assignment = split(labels, groups)
    assert all(len(found) == 1 for found in places(groups, assignment).values())
    present = set(zip(labels, assignment.splits, strict=True))
    assert present == {(label, place) for label in set(labels) for place in SPLITS}


@settings(max_examples=100, deadline=None)
@given(images(), st.floats(0.4, 1))
def test_images_added_later_move_no_group_of_a_class_that_the_guard_left_alone(
    data: tuple[list[str], list[str]], share: float
) -> None:
    labels, groups = data
    kept, params = int(share * len(labels)), params_of(small_class="train_only")
    before = split(labels[:kept], groups[:kept], params=params)
    after = split(labels, groups, params=params)
    later = places(groups, after)
    for group, place in places(groups[:kept], before).items():
        classes = classes_of(labels, groups)[group]
        if not any(is_mentioned(label, before, after) for label in classes):
            assert place == later[group] == {natural(group)}


@settings(max_examples=100, deadline=None)
@given(images())
def test_the_guard_moves_at_most_two_groups_of_a_class_it_mentions(
    data: tuple[list[str], list[str]],
) -> None:
    labels, groups = data
    assignment = split(labels, groups)
    moved = Counter(
        label
        for group, place in places(groups, assignment).items()
        if place != {natural(group)}
        for label in classes_of(labels, groups)[group]
    )
    mentioned = [label for label in set(labels) if is_mentioned(label, assignment)]
    assert len(mentioned) <= sum(moved.values()) <= 2 * len(mentioned) * len(set(labels))


def test_without_small_classes_the_place_follows_from_name_and_seed_alone() -> None:
    groups = [f"g{number}" for number in range(600)]
    labels = [f"class{number % 3}" for number in range(600)]
    whole = dict(zip(groups, split(labels, groups).splits, strict=True))
    assert whole == {group: natural(group) for group in groups}
    order = np.random.default_rng(0).permutation(600)[:400]
    some = split([labels[n] for n in order], [groups[n] for n in order])
    assert all(whole[groups[n]] == place for n, place in zip(order, some.splits, strict=True))


def test_shares_of_every_class_are_binomial_about_the_asked_ones() -> None:
    groups = [f"image {number}" for number in range(9000)]
    labels = [("rare" if number % 10 == 0 else "common") for number in range(9000)]
    counts = Counter(zip(labels, split(labels, groups).splits, strict=True))
    for label, total in Counter(labels).items():
        for place, share in SHARES.items():
            low, high = binom.interval(0.9999, total, share)
            assert low <= counts[label, place] <= high


def test_another_seed_gives_other_splits() -> None:
    groups = [f"g{number}" for number in range(100)]
    labels = ["a", "b"] * 50
    assert split(labels, groups, seed=1).splits != split(labels, groups, seed=2).splits
    assert split(labels, groups, seed=1) == split(labels, groups, seed=1)


# small classes ------------------------------------------------------------------------------------


def test_the_guard_moves_the_group_nearest_to_the_missing_split() -> None:
    every = [f"x{number}" for number in range(500)]
    trained = sorted(
        (group for group in every if natural(group) == "train"), key=lambda g: position(g, 17)
    )[-6:]
    big = [f"g{number}" for number in range(200)]
    assignment = split(["small"] * 6 + ["big"] * 200, trained + big)
    assert assignment.splits[:6] == ("test", "val", "train", "train", "train", "train")
    assert assignment.splits[6:] == tuple(natural(group) for group in big)
    assert "moved there: small" in assignment.remarks[0]


def test_a_class_too_small_for_every_split_stops_the_run_with_its_groups() -> None:
    labels = ["big"] * 100 + ["rare"] * 5
    groups = [f"g{number}" for number in range(100)] + ["one", "one", "one", "two", "two"]
    with pytest.raises(DataError, match=r"stand in test, train, val; .*\n  rare: 2 group\(s\)"):
        split(labels, groups)


def test_a_class_too_small_for_every_split_may_train_only() -> None:
    labels = ["big"] * 100 + ["rare"] * 5
    groups = [f"g{number}" for number in range(100)] + ["one", "one", "one", "two", "two"]
    assignment = split(labels, groups, params=params_of(small_class="train_only"))
    assert assignment.splits[100:] == ("train",) * 5
    assert assignment.remarks == (
        "Class rare has too few groups for every split (2); all of it is in train "
        "(ingest.small_class), so that nothing is measured for it.",
    )


def test_classes_that_all_train_only_leave_nothing_to_test_on() -> None:
    with pytest.raises(DataError, match=r"no image is left for val and test"):
        split(["a", "b"], ["1", "2"], params=params_of(small_class="train_only"))


def test_a_group_that_two_classes_need_is_never_torn() -> None:
    # Every image of both classes lies in the same three groups.
    labels, groups = ["a", "b"] * 3, ["x", "x", "y", "y", "z", "z"]
    assignment = split(labels, groups)
    assert sorted(assignment.splits[::2]) == sorted(SPLITS)
    assert assignment.splits[::2] == assignment.splits[1::2]


# given splits -------------------------------------------------------------------------------------


def test_given_splits_are_kept() -> None:
    splits: list[Split | None] = ["train", "val", "test", "train", "val", "test"]
    assignment = split(["a"] * 3 + ["b"] * 3, list("uvwxyz"), splits)
    assert assignment == Assignment(tuple(splits), ())  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", ["val", "test"])
def test_a_missing_split_is_cut_from_train_by_hash(missing: Split) -> None:
    other: Split = "test" if missing == "val" else "val"
    groups = [f"g{number}" for number in range(600)]
    splits: list[Split | None] = ["train" if n % 3 else other for n in range(600)]
    assignment = split(["a", "b"] * 300, groups, splits)
    share = SHARES[missing]
    for group, before, after in zip(groups, splits, assignment.splits, strict=True):
        cut = missing if position(group, 17) < share else "train"
        assert after == (other if before == other else cut)
    assert assignment.remarks == (
        f"The source gives no {missing} split; it was cut from train by hash "
        f"(ingest.{missing}_fraction).",
    )


def test_a_class_missing_from_a_given_split_is_mentioned_and_from_train_refused() -> None:
    splits: list[Split | None] = ["train", "val", "test", "train", "test"]
    assignment = split(["a", "a", "a", "b", "b"], list("vwxyz"), splits)
    assert assignment.remarks == ("Class b has no image in the given val split.",)
    with pytest.raises(DataError, match=r"not in train: b; add training images"):
        split(["a", "a", "a", "b"], list("vwxy"), ["train", "val", "test", "test"])
