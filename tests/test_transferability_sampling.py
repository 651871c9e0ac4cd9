from collections import Counter

import numpy as np
import pytest

from tasks.records import ManifestRow
from tasks.transferability.projection import project_to_plane
from tasks.transferability.sampling import choose_rows, number_groups


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


# the plane ---------------------------------------------------------------------------------------


def test_plane_holds_the_directions_of_largest_variance():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 5)) * [1, 9, 1, 4, 1]
    plane = project_to_plane(rows)
    centered = rows - rows.mean(axis=0)
    assert abs(np.corrcoef(plane[:, 0], centered[:, 1])[0, 1]) > 0.99
    assert abs(np.corrcoef(plane[:, 1], centered[:, 3])[0, 1]) > 0.99
    singular = np.linalg.svd(centered, compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(plane, axis=0), singular[:2])


def test_signs_of_the_axes_are_settled():
    rows = np.random.default_rng(0).normal(size=(50, 4)) * [1, 9, 1, 4]
    np.testing.assert_allclose(project_to_plane(rows), project_to_plane(rows[::-1])[::-1])
    assert np.corrcoef(project_to_plane(rows)[:, 0], rows[:, 1])[0, 1] > 0.99


@pytest.mark.parametrize("columns", [1, 2])
def test_few_columns_are_no_obstacle(columns):
    rows = np.arange(5.0 * columns).reshape(5, columns)
    plane = project_to_plane(rows)
    assert plane.shape == (5, 2)
    np.testing.assert_allclose(
        np.linalg.norm(plane, axis=1), np.linalg.norm(rows - rows.mean(axis=0), axis=1)
    )
