from collections import Counter

import numpy as np

from tasks.artifacts.sampling import choose_rows, number_groups
from tasks.artifacts.tables import ManifestRow


def rows_of(**counts):
    return [
        ManifestRow(
            f"{label}/{i}.png", label, "train", f"{label}{i}", f"sha {label}{i}", 8, 8, "RGB"
        )
        for label, count in counts.items()
        for i in range(count)
    ]


def test_all_images_are_used_where_they_fit():
    assert choose_rows(rows_of(a=3, b=4), 7, seed=0).tolist() == list(range(7))
    assert choose_rows(rows_of(a=3, b=4), 100, seed=0).tolist() == list(range(7))


def test_every_class_keeps_its_share():
    rows = rows_of(a=600, b=300, c=100)
    chosen = choose_rows(rows, 100, seed=0)
    assert Counter(rows[i].label for i in chosen) == {"a": 60, "b": 30, "c": 10}
    assert chosen.tolist() == sorted(set(chosen.tolist()))


def test_a_rare_class_is_not_lost():
    rows = rows_of(common=1000, rare=1)
    assert "rare" in {rows[i].label for i in choose_rows(rows, 10, seed=0)}


def test_no_class_is_chosen_with_a_single_image_where_it_has_more():
    rows = rows_of(**{f"class{number}": 3 for number in range(100)}, rare=1)
    counts = Counter(rows[i].label for i in choose_rows(rows, 64, seed=0))
    assert set(counts[label] for label in counts if label != "rare") == {2}
    assert len(counts) >= 32


def test_two_images_of_every_class_come_before_a_third_of_any():
    rows = rows_of(large=1000, small=5, tiny=2)
    counts = Counter(rows[i].label for i in choose_rows(rows, 7, seed=0))
    assert counts == {"large": 3, "small": 2, "tiny": 2}


def test_a_smaller_sample_is_part_of_a_larger_one():
    rows = rows_of(a=60, b=30)
    small, large = choose_rows(rows, 20, seed=0), choose_rows(rows, 40, seed=0)
    assert set(small) < set(large)


def test_the_order_of_the_manifest_does_not_matter():
    rows = rows_of(a=60, b=30)
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = [rows[i] for i in order]
    straight = {rows[i].path for i in choose_rows(rows, 20, seed=0)}
    assert {shuffled[i].path for i in choose_rows(shuffled, 20, seed=0)} == straight


def test_the_seed_chooses_other_images():
    rows = rows_of(a=100)
    assert choose_rows(rows, 10, seed=0).tolist() == choose_rows(rows, 10, seed=0).tolist()
    assert choose_rows(rows, 10, seed=0).tolist() != choose_rows(rows, 10, seed=1).tolist()


def test_groups_are_numbered_as_they_appear():
    assert number_groups(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]


def test_a_single_group_gives_every_image_its_own_number():
    assert number_groups(["x", "x", "x"]).tolist() == [0, 1, 2]
