import time
from collections import Counter

import numpy as np
import pytest
from scipy import sparse, stats
from sklearn.utils.class_weight import compute_sample_weight

from tasks.judging import statistics
from tasks.judging.statistics import (
    GroupBootstrap,
    accuracy_interval,
    independent_images,
    paired_accuracy_interval,
    percentile_interval,
    share_intervals,
    wilson_interval,
)

SETTING = {"confidence": 0.95, "resamples": 400, "seed": 3}


def singletons(count):
    return [f"group {number}" for number in range(count)]


def means(bootstrap, values):
    rows = sparse.csr_array(np.stack([values, np.ones(len(values))]))
    return bootstrap.replicates(rows, lambda sums: sums[:1] / sums[1:])[0]


# the bootstrap -----------------------------------------------------------------------------------


def test_a_resample_is_the_mean_over_the_images_of_the_drawn_groups():
    groups = ["b", "a", "b", "c", "c", "c"]
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    drawn = np.random.default_rng([7, statistics.RESAMPLING]).integers(0, 3, (5, 3))
    names = np.array(["a", "b", "c"])
    expected = []
    for draw in drawn:
        picked = [values[i] for name in names[draw] for i in range(6) if groups[i] == name]
        expected.append(np.mean(picked))
    bootstrap = GroupBootstrap(groups, resamples=5, seed=7)
    assert means(bootstrap, values) == pytest.approx(expected)


def test_groups_of_one_image_give_the_row_bootstrap():
    values = np.random.default_rng(0).random(30)
    rows = np.random.default_rng([3, statistics.RESAMPLING]).integers(0, 30, (400, 30))
    groups = [f"{number:02d}" for number in range(30)]
    bootstrap = GroupBootstrap(groups, resamples=400, seed=3)
    assert means(bootstrap, values) == pytest.approx(values[rows].mean(axis=1))


def test_results_do_not_depend_on_how_many_resamples_fit_into_memory(monkeypatch):
    values = np.random.default_rng(0).random(20)
    whole = means(GroupBootstrap(singletons(20), resamples=50, seed=1), values)
    monkeypatch.setattr(statistics, "BLOCK_CELLS", 70)
    assert np.array_equal(
        whole, means(GroupBootstrap(singletons(20), resamples=50, seed=1), values)
    )


def test_results_do_not_depend_on_the_order_of_the_images():
    rng = np.random.default_rng(0)
    right, groups = rng.random(60) < 0.8, [f"g{number // 3}" for number in range(60)]
    order = rng.permutation(60)
    shuffled = accuracy_interval(right[order], [groups[i] for i in order], **SETTING)
    assert shuffled == accuracy_interval(right, groups, **SETTING)


def test_another_seed_draws_other_resamples():
    values = np.random.default_rng(0).random(20)
    one, other = (
        means(GroupBootstrap(singletons(20), resamples=9, seed=s), values) for s in (1, 2)
    )
    assert not np.array_equal(one, other)


def test_variance_of_a_mean_is_that_of_the_textbook():
    values = np.random.default_rng(0).normal(size=200)
    bootstrap = GroupBootstrap(singletons(200), resamples=4000, seed=1)
    assert np.var(means(bootstrap, values)) == pytest.approx(np.var(values) / 200, rel=0.1)


def test_groups_with_counts_each_group_once():
    bootstrap = GroupBootstrap(["a", "a", "b", "c"], resamples=1, seed=0)
    assert bootstrap.groups_with(np.array([True, True, False, True])) == 2
    assert bootstrap.groups_with(np.zeros(4, bool)) == 0


# shares ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (5, 5), (1, 1), (37, 50), (980, 1000)])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_wilson_interval_equals_scipy(successes, n, confidence):
    expected = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    interval = wilson_interval(successes, n, confidence=confidence)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


def test_wilson_interval_without_trials_knows_nothing():
    interval = wilson_interval(0, 0, confidence=0.95)
    assert (interval.low, interval.high) == (0, 1)


def test_accuracy_of_independent_images_has_the_wilson_interval():
    right = np.arange(200) < 170
    estimate = accuracy_interval(right, singletons(200), confidence=0.95, resamples=20_000, seed=1)
    expected = wilson_interval(170, 200, confidence=0.95)
    assert estimate.value == 0.85
    assert estimate.n == 200
    assert estimate.low == pytest.approx(expected.low, abs=0.002)
    assert estimate.high == pytest.approx(expected.high, abs=0.002)


@pytest.mark.parametrize("value", [True, False], ids=["all right", "all wrong"])
@pytest.mark.parametrize("count", [1, 2, 20])
def test_accuracy_without_any_variation_keeps_a_wilson_interval(value, count):
    estimate = accuracy_interval(np.full(count, value), singletons(count), **SETTING)
    expected = wilson_interval(count * value, count, confidence=0.95)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))


def test_images_of_one_group_do_not_count_as_independent():
    right = np.repeat(np.random.default_rng(0).random(30) < 0.8, 10)
    grouped = accuracy_interval(right, [str(i // 10) for i in range(300)], **SETTING)
    alone = accuracy_interval(right, singletons(300), **SETTING)
    assert grouped.high - grouped.low > 2.5 * (alone.high - alone.low)


def test_a_single_group_leaves_accuracy_almost_unknown():
    estimate = accuracy_interval(np.ones(50, bool), ["one"] * 50, **SETTING)
    assert estimate.low < 0.1
    assert estimate.high == 1


def test_parts_are_bounded_as_one_share_is_by_many_resamples():
    rng = np.random.default_rng(0)
    groups = [str(number // 6) for number in range(360)]
    hits = np.repeat(rng.random(60) < 0.7, 6) ^ (rng.random(360) < 0.1)
    whole = accuracy_interval(hits, groups, confidence=0.95, resamples=20_000, seed=1)
    parts = np.zeros(360, np.int64)
    (bounds,) = share_intervals(hits, parts, groups, count=1, confidence=0.95)
    assert (bounds.low, bounds.high) == pytest.approx((whole.low, whole.high), abs=0.002)


def test_one_group_leaves_its_part_almost_unknown_and_no_image_leaves_it_unknown():
    hits, parts = np.ones(50, bool), np.array([1] * 30 + [2] * 20)
    groups = ["one"] * 30 + singletons(20)
    none, one, many = share_intervals(hits, parts, groups, count=3, confidence=0.95)
    assert (none.low, none.high) == (0, 1)
    assert one.low < 0.1
    assert many == wilson_interval(20, 20, confidence=0.95)


def test_thousands_of_classes_are_bounded_in_seconds():
    rng = np.random.default_rng(0)
    hits, parts = rng.random(100_000) < 0.9, rng.integers(0, 2000, 100_000)
    groups = [str(number // 3) for number in range(100_000)]
    start = time.perf_counter()
    assert len(share_intervals(hits, parts, groups, count=2000, confidence=0.95)) == 2000
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("count", "share", "group_size", "lowest", "highest"),
    [(20, 0.95, 1, 0.88, 1.0), (60, 0.8, 1, 0.91, 0.99), (300, 0.9, 10, 0.89, 0.99)],
    ids=["few images", "independent", "groups alike"],
)
def test_accuracy_intervals_cover_the_truth(count, share, group_size, lowest, highest):
    rng = np.random.default_rng(count)
    groups = [str(number // group_size) for number in range(count)]
    covered = []
    for trial in range(150):
        chance = np.full(count, share)
        if group_size > 1:  # beta-binomial, correlation 1 / (1 + 3) within a group
            drawn = rng.beta(3 * share, 3 * (1 - share), count // group_size)
            chance = np.repeat(drawn, group_size)
        right = rng.random(count) < chance
        estimate = accuracy_interval(right, groups, confidence=0.95, resamples=150, seed=trial)
        covered.append(estimate.low <= share <= estimate.high)
    assert lowest <= np.mean(covered) <= highest


# means -------------------------------------------------------------------------------------------


def test_percentile_interval_of_independent_images_is_the_percentiles():
    values = np.random.default_rng(0).exponential(size=50)
    bootstrap = GroupBootstrap(singletons(50), resamples=1000, seed=1)
    resampled = means(bootstrap, values)
    interval = percentile_interval(values.mean(), resampled, bootstrap, confidence=0.9)
    assert (interval.low, interval.high) == pytest.approx(np.quantile(resampled, [0.05, 0.95]))


def test_percentile_interval_is_wider_where_there_are_few_groups():
    bootstrap = GroupBootstrap(["a", "b", "c"] * 100, resamples=10, seed=1)
    interval = percentile_interval(1.0, np.linspace(0.5, 1.5, 101), bootstrap, confidence=0.9)
    factor = stats.t.isf(0.05, 2) / stats.t.isf(0.05, 299)
    assert (interval.low, interval.high) == pytest.approx((1 - 0.45 * factor, 1 + 0.45 * factor))


def test_percentile_interval_of_one_group_is_unknown():
    bootstrap = GroupBootstrap(["a", "a"], resamples=10, seed=1)
    assert percentile_interval(1.0, np.ones(10), bootstrap, confidence=0.9) is None


# differences -------------------------------------------------------------------------------------


def pair(both, only_a, only_b, neither):
    counts = (both, only_a, only_b, neither)
    right_a = np.repeat([True, True, False, False], counts)
    right_b = np.repeat([True, False, True, False], counts)
    return right_a, right_b, singletons(sum(counts))


def test_difference_is_b_minus_a_and_swaps_its_sign():
    right_a, right_b, groups = pair(60, 3, 12, 5)
    forward = paired_accuracy_interval(right_a, right_b, groups, **SETTING)
    back = paired_accuracy_interval(right_b, right_a, groups, **SETTING)
    assert forward.value == pytest.approx(9 / 80)
    assert forward.n == 80
    assert (back.value, back.low, back.high) == pytest.approx(
        (-forward.value, -forward.high, -forward.low)
    )


def test_difference_of_independent_images_is_the_bonett_price_interval():
    right_a, right_b, groups = pair(150, 10, 30, 10)
    estimate = paired_accuracy_interval(
        right_a, right_b, groups, confidence=0.95, resamples=20_000, seed=1
    )
    p_a, p_b = 11 / 202, 31 / 202  # one imaginary image each
    half = 1.96 * np.sqrt((p_a + p_b - (p_b - p_a) ** 2) / 202)
    assert estimate.low == pytest.approx(p_b - p_a - half, abs=0.002)
    assert estimate.high == pytest.approx(p_b - p_a + half, abs=0.002)


def test_four_images_won_and_none_lost_are_within_noise_as_mcnemar_says():
    estimate = paired_accuracy_interval(*pair(90, 0, 4, 6), **SETTING)
    assert estimate.low < 0 < estimate.high


def test_many_images_won_and_none_lost_are_a_gain():
    estimate = paired_accuracy_interval(*pair(80, 0, 12, 8), **SETTING)
    assert estimate.low > 0


@pytest.mark.parametrize("count", [1, 20, 500])
def test_models_that_never_differed_are_equal_within_what_so_many_images_show(count):
    estimate = paired_accuracy_interval(*pair(count, 0, 0, 0), **SETTING)
    assert estimate.value == 0
    assert estimate.high == -estimate.low
    assert 2 / (count + 2) < estimate.high < 4 / count


def test_difference_on_one_image_is_unknown():
    estimate = paired_accuracy_interval(*pair(0, 0, 1, 0), **SETTING)
    assert estimate.value == 1
    assert estimate.low < 0


def test_a_paired_interval_is_narrower_than_two_separate_ones():
    right_a, right_b, groups = pair(150, 5, 20, 25)
    paired = paired_accuracy_interval(right_a, right_b, groups, **SETTING)
    alone = accuracy_interval(right_a, groups, **SETTING)
    assert paired.high - paired.low < alone.high - alone.low


def test_difference_intervals_cover_the_truth():
    rng = np.random.default_rng(0)
    covered = []
    for trial in range(150):
        outcome = rng.choice(4, size=100, p=[0.75, 0.04, 0.12, 0.09])
        counts = Counter(outcome.tolist())
        sample = pair(*(counts[cell] for cell in range(4)))
        estimate = paired_accuracy_interval(*sample, confidence=0.95, resamples=150, seed=trial)
        covered.append(estimate.low <= 0.08 <= estimate.high)
    assert 0.91 <= np.mean(covered) <= 1


def test_independent_images_are_at_most_the_images_and_one_a_group_where_nothing_varies():
    bootstrap = GroupBootstrap(["a", "a", "b", "b"], resamples=1, seed=0)
    values = np.array([0.0, 1.0, 0.0, 1.0])
    assert independent_images(values, 0.25 / 3, bootstrap) == pytest.approx(3)
    assert independent_images(values, 0.001, bootstrap) == 4
    assert independent_images(np.zeros(4), 0.0, bootstrap) == 2


def test_ten_thousand_images_give_the_width_of_the_textbook():
    rng = np.random.default_rng(0)
    right_a, right_b = rng.random((2, 10_000)) < 0.8
    estimate = paired_accuracy_interval(
        right_a, right_b, singletons(10_000), confidence=0.95, resamples=2000, seed=1
    )
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * np.sqrt(0.32 / 10_000), rel=0.1)


# images that do not count the same ---------------------------------------------------------------


def test_equal_weights_change_nothing():
    sample = pair(60, 3, 12, 5)
    weighted = paired_accuracy_interval(*sample, **SETTING, weights=np.full(80, 2.5))
    plain = paired_accuracy_interval(*sample, **SETTING)
    assert weighted.model_dump() == pytest.approx(plain.model_dump())


def test_a_weighted_difference_is_as_unsure_as_the_rare_class():
    right_a, right_b = np.zeros(400, bool), np.arange(400) % 2 == 0
    right_a[:390] = right_b[:390]  # the models differ on half of the ten images of the rare class
    weights = compute_sample_weight("balanced", (np.arange(400) >= 390).astype(np.int64))
    estimate = paired_accuracy_interval(
        right_a, right_b, singletons(400), **SETTING, weights=weights
    )
    assert estimate.value == pytest.approx(0.25)
    by_hand = 0.5 * np.sqrt(0.5 * 0.5 / 10)  # standard error of half of the rare class's share
    assert estimate.high - estimate.value == pytest.approx(1.96 * by_hand, rel=0.35)


def test_unequal_weights_are_worth_fewer_images_where_nothing_varies():
    bootstrap = GroupBootstrap(singletons(4), resamples=1, seed=0)
    weights = np.array([1.0, 1.0, 1.0, 5.0])
    found = independent_images(np.zeros(4), 0.0, bootstrap, weights)
    assert found == pytest.approx(8**2 / 28)
