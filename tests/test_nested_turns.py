import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.artifacts.sampling import nested_turns


def drawn(images, classes, groups, seed):
    rng = np.random.default_rng(seed)
    group_of = rng.integers(0, groups, images)
    labels = (group_of % classes).astype(np.int64)
    return labels, [f"group {number}" for number in group_of]


sets = st.builds(
    drawn,
    images=st.integers(1, 60),
    classes=st.integers(1, 5),
    groups=st.integers(1, 40),
    seed=st.integers(0, 1000),
)


@settings(max_examples=100, deadline=None)
@given(data=sets, shares=st.lists(st.floats(0.01, 1), min_size=2, max_size=2))
def test_a_smaller_part_is_among_a_larger_one_and_groups_come_whole(data, shares):
    labels, groups = data
    turns = nested_turns(labels, groups, seed=3)
    small, large = (set(np.flatnonzero(turns < share)) for share in sorted(shares))
    assert small <= large
    for part in (small, large):
        inside = {groups[image] for image in part}
        assert part == {number for number, group in enumerate(groups) if group in inside}
        assert {labels[image] for image in part} == set(labels.tolist())


@settings(max_examples=50, deadline=None)
@given(data=sets, seed=st.integers(0, 100))
def test_the_order_of_the_images_does_not_matter(data, seed):
    labels, groups = data
    order = np.random.default_rng(seed).permutation(len(labels))
    again = nested_turns(labels[order], [groups[image] for image in order], seed=3)
    np.testing.assert_array_equal(again, nested_turns(labels, groups, seed=3)[order])


def test_every_class_keeps_its_share():
    labels = np.repeat([0, 1], [400, 40])
    turns = nested_turns(labels, [str(number) for number in range(440)], seed=3)
    assert np.bincount(labels[turns < 0.25]).tolist() == [100, 10]
    other = nested_turns(labels, [str(number) for number in range(440)], seed=4)
    assert not np.array_equal(turns < 0.25, other < 0.25)
