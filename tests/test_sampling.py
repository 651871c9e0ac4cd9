"""An epoch shows every image once; what it shows and drops is a function of its place."""

import numpy as np
import pytest

from tasks.heads.schedule import Batch, count_steps, epoch_batches, layer_seed


def draw(images: int, batch_size: int, views: int = 3, **place: int) -> list[Batch]:
    where = {"seed": 1, "phase": 1, "epoch": 1, **place}
    return list(epoch_batches(images, views, batch_size, **where))


@pytest.mark.parametrize("images", [1, 2, 5, 8, 9, 10, 100])
def test_every_image_is_seen_once_in_one_of_its_views(images: int):
    batches = draw(images, 4)
    seen = np.concatenate([batch.images for batch in batches])
    rows = np.concatenate([batch.rows for batch in batches])
    assert sorted(seen) == list(range(images))
    np.testing.assert_array_equal(rows // 4, seen)


@pytest.mark.parametrize(
    ("images", "sizes"), [(8, [4, 4]), (9, [4, 5]), (10, [4, 4, 2]), (1, [1]), (5, [5])]
)
def test_no_batch_of_a_single_image_is_left_over(images: int, sizes: list[int]):
    assert [len(batch.images) for batch in draw(images, 4)] == sizes
    assert count_steps(images, 4) == len(sizes)


def test_views_are_drawn_about_equally_often():
    rows = np.concatenate([batch.rows for batch in draw(8000, 4)])
    counts = np.bincount(rows % 4, minlength=4)
    assert counts.min() > 1800


def test_without_augmented_views_the_clean_one_is_shown():
    rows = np.concatenate([batch.rows for batch in draw(50, 4, views=0)])
    assert sorted(rows) == list(range(50))


@pytest.mark.parametrize("changed", ["seed", "phase", "epoch"])
def test_order_and_views_change_with_seed_phase_and_epoch_and_with_nothing_else(changed: str):
    one, same, other = draw(50, 50), draw(50, 50), draw(50, 50, **{changed: 2})
    np.testing.assert_array_equal(one[0].rows, same[0].rows)
    assert not np.array_equal(one[0].images, other[0].images)
    by_image = [dict(zip(b.images, b.rows % 4, strict=True)) for b in (one[0], other[0])]
    assert by_image[0] != by_image[1]


@pytest.mark.parametrize("changed", ["seed", "phase", "epoch", "step", "process"])
def test_every_step_of_every_process_drops_by_a_seed_of_its_own(changed: str):
    place = {"seed": 1, "phase": 1, "epoch": 1, "step": 0, "process": 0}
    assert layer_seed(**place) == layer_seed(**place)
    assert layer_seed(**place) != layer_seed(**{**place, changed: 2})
