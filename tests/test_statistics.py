"""Intervals against scipy and closed forms, at their limits; coverage is in test_coverage."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from titer.scoring.differences import (
    detectable,
    detectable_over_seeds,
    detectable_paired,
    difference,
    mean_difference,
)
from titer.scoring.statistics import (
    Score,
    effective,
    mean,
    number_clusters,
    proportion,
    proportion_by_cluster,
    training,
    training_mean,
    training_mean_of,
    training_of,
    wilson,
)


def limits(score: Score) -> tuple[float, float]:
    return score.low, score.high


def outcomes(hits: int, n: int) -> list[bool]:
    return [True] * hits + [False] * (n - hits)


def own(*sizes: int) -> list[list[tuple[int, int]]]:
    """Every seed's own prompts."""
    return [[(seed, i) for i in range(size)] for seed, size in enumerate(sizes)]


def test_without_clusters_the_figures_are_scipys_to_the_last_bit():
    for n in (1, 2, 7, 30, 144):
        for hits in range(n + 1):
            interval = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
            assert limits(proportion(hits, n)) == (100 * interval.low, 100 * interval.high)
            assert proportion_by_cluster(outcomes(hits, n), range(n)) == proportion(hits, n)


@pytest.mark.parametrize("hits", [-1, 4])
def test_hits_beyond_n_are_refused(hits):
    with pytest.raises(ValueError, match=f"{hits} hits in n=3"):
        proportion(hits, 3)


def test_repeats_that_are_alike_count_about_once_and_unlike_ones_about_as_often():
    alike = [bool(i % 2) for i in range(40) for _ in range(3)]
    names = [i for i in range(40) for _ in range(3)]
    factor = (stats.t.ppf(0.975, 119) / stats.t.ppf(0.975, 39)) ** 2
    assert effective(alike, names) == pytest.approx(40 * factor)
    balanced = [
        True,
        False,
        True,
        False,
    ] * 30  # every cluster half and half: within is all there is
    four = [i for i in range(30) for _ in range(4)]
    assert effective(balanced, four) == pytest.approx(
        120 / (1 + 3 * 0.25 / 30.25) * (stats.t.ppf(0.975, 119) / stats.t.ppf(0.975, 29)) ** 2
    )


def test_the_correlation_is_fleiss_and_cuzicks():
    groups = [[1, 1, 0], [0, 0, 0], [1, 0], [1, 1, 1, 0], [0, 0]]
    found, names = (
        [bool(y) for group in groups for y in group],
        [i for i, group in enumerate(groups) for _ in group],
    )
    n, k, p = 14, 5, 6 / 14
    within = sum(sum(g) * (len(g) - sum(g)) / len(g) for g in groups)
    rho = 1 - within / ((n - k) * p * (1 - p))
    rho = (3 * rho + 0.25) / 3.25  # three clusters have a hit
    m = sum(len(g) ** 2 for g in groups) / n
    factor = (stats.t.ppf(0.975, n - 1) / stats.t.ppf(0.975, k - 1)) ** 2
    assert effective(found, names) == pytest.approx(n / (1 + (m - 1) * rho) * factor)
    low, high = wilson(p, effective(found, names))
    score = proportion_by_cluster(found, ["abcde"[i] for i in names])
    assert limits(score) == pytest.approx((100 * low, 100 * high))
    assert (score.value, score.n) == (pytest.approx(100 * p), n)


def test_clusters_at_their_limits():
    names = [0, 0, 1, 1, 2, 2]
    nothing = proportion_by_cluster([None] * 6, names)
    assert (nothing.n, nothing.unscored, nothing.reason) == (0, 6, "nothing was scored")
    assert proportion_by_cluster([], []).n == 0
    for every in (
        True,
        False,
    ):  # equal throughout: the repeats are no evidence, and the width is not zero
        score = proportion_by_cluster([every] * 300, [i // 3 for i in range(300)])
        assert 100 - 3.9 > abs(score.low - score.high) > 3.6
        assert score.value in limits(score)
    part = proportion_by_cluster([True, None, False, True, None, None], names)
    assert (part.n, part.unscored) == (3, 3)
    single = proportion_by_cluster([True, False, True, True], ["a"] * 4)
    assert limits(single) == pytest.approx([100 * x for x in wilson(0.75, 1)])
    with pytest.raises(ValueError, match="zip"):
        proportion_by_cluster([True], [1, 2])


def test_a_mean_over_clusters_is_students_over_their_means():
    values, names = [1.0, 3.0, 2.0, 2.0, 6.0, 4.0, 3.0, 5.0], [0, 0, 1, 1, 2, 2, 3, 3]
    interval = stats.t.interval(0.95, 3, 3.25, stats.sem([2, 2, 5, 4]))
    assert limits(mean(values, names)) == pytest.approx(interval)
    assert limits(mean(values, range(8))) == pytest.approx(limits(mean(values)))
    assert math.isnan(mean(values, [0] * 8).low)
    assert mean([2.0], [0]).reason
    assert mean([], []).reason == mean([]).reason == "nothing was scored"


def test_below_three_seeds_there_is_no_interval_and_it_says_why():
    for score in (
        training([outcomes(3, 10)] * 2, own(10, 10)),
        training_of([proportion(3, 10)] * 2),
        training_mean([[1.0] * 10, [2.0] * 10]),
        training_mean_of([mean([1.0, 2.0] * 5)] * 2),
    ):
        assert math.isnan(score.low)
        assert math.isnan(score.high)
        assert score.reason == "an interval over training needs 3 seeds, this has 2"
        assert (score.seeds, score.n, score.covers) == (2, 20, "training")
    assert training([], []).reason == "nothing was scored"
    assert training_of([]).reason == "nothing was scored"
    assert training_mean([]).seeds == 0
    unscored = training([outcomes(3, 10), outcomes(4, 10), [None] * 10], own(10, 10, 10))
    assert (unscored.seeds, unscored.unscored) == (2, 10)
    assert unscored.value == pytest.approx(35)
    assert unscored.reason


def test_far_from_the_edges_training_is_students_t():
    hits, n = [4700, 5000, 5300], 10000
    score = training([outcomes(k, n) for k in hits], own(n, n, n))
    assert limits(score) == pytest.approx(
        stats.t.interval(0.95, 2, 50, stats.sem([47, 50, 53])), abs=0.02
    )
    assert score == training_of([proportion(k, n) for k in hits], shared=False)
    assert (score.seeds, score.n, score.reason) == (3, 30000, "")


@pytest.mark.parametrize("hits", [0, 1, 30, 99, 100])
@pytest.mark.parametrize("shared", [True, False])
def test_seeds_that_are_equal_still_have_a_width(hits, shared):
    prompts = [range(100)] * 3 if shared else own(100, 100, 100)
    score = training([outcomes(hits, 100)] * 3, prompts)
    assert 0 <= score.low <= score.value <= score.high <= 100
    low, high = wilson(hits / 100, 100 if shared else 300)
    if shared or hits in (
        0,
        100,
    ):  # the same answers from every seed: as wide as one seed's, over prompts
        assert score.high - score.low > 0.95 * 100 * (high - low)
    assert score.high - score.low > 0.33 * 100 * (high - low)
    assert training_of([proportion(hits, 100)] * 3, shared).high == pytest.approx(
        score.high, rel=0.02
    )


def test_an_interval_over_training_stays_within_0_and_100():
    for triple in itertools.product((0, 3, 17, 20), repeat=3):
        for prompts in ([range(20)] * 3, own(20, 20, 20)):
            score = training([outcomes(k, 20) for k in triple], prompts)
            assert 0 <= score.low <= score.value + 1e-9
            assert score.value - 1e-9 <= score.high <= 100
            assert score.low < score.high
    mirrored = training([outcomes(20 - k, 20)[::-1] for k in (1, 4, 6)], own(20, 20, 20))
    score = training([outcomes(k, 20) for k in (1, 4, 6)], own(20, 20, 20))
    assert limits(score) == pytest.approx((100 - mirrored.high, 100 - mirrored.low))


def test_shared_prompts_add_their_own_luck():
    rng = np.random.default_rng(0)
    seeds = (rng.random((3, 200)) < np.where(np.arange(200) < 60, 0.9, 0.05)).tolist()
    apart, together = training(seeds, own(200, 200, 200)), training(seeds, [range(200)] * 3)
    assert together.high - together.low > apart.high - apart.low
    low, high = wilson(together.value / 100, 200)
    assert together.high - together.low > 0.8 * 100 * (high - low)


def test_shared_prompts_and_seeds_are_added_with_satterthwaites_degrees_of_freedom():
    """Seeds of 30 hits each that agree on half of the prompts they hit: no spread of seeds, but no
    certainty either.
    """
    n, hit = 100, [range(30), [*range(15), *range(30, 45)], [*range(15), *range(45, 60)]]
    seeds = [[i in hits for i in range(n)] for hits in hit]
    score = training(seeds, [range(n)] * 3)
    p, cells = 0.3, [3] * 15 + [1] * 45 + [0] * 40
    rho = 1 - sum(y * (3 - y) / 3 for y in cells) / ((3 * n - n) * p * (1 - p))
    rho = (60 * rho + 0.25) / 60.25
    drawn, own = p * (1 - p) * rho / n, p * (1 - p) / (3 * n)
    t = stats.t.ppf(0.975, (drawn + own) ** 2 / (drawn**2 / (n / rho) + own**2 / 2))
    low, high = wilson(p, n / rho, t)
    shift = 30.5 / 101 - p  # the logits' mean, back as a share
    assert limits(score) == pytest.approx(
        (30 - 100 * (p - low), 30 + 100 * math.hypot(high - p, shift * t / stats.t.ppf(0.975, 2)))
    )


def test_seeds_of_unequal_size_count_alike():
    assert training(
        [outcomes(5, 10), outcomes(10, 40), outcomes(9, 12)], own(10, 40, 12)
    ).value == pytest.approx(50)


def test_equal_means_over_seeds_have_no_interval():
    score = training_mean([[1.0, 3.0]] * 3)
    assert (score.value, score.n, score.reason) == (
        2.0,
        6,
        "the values, or clusters of them, are too few or do not differ",
    )
    assert training_mean_of([mean([1.0, 3.0])] * 3).reason == score.reason
    alone = training_mean_of([mean([value - 1, value + 1]) for value in (1.0, 2.0, 4.0)])
    assert limits(alone) == pytest.approx(stats.t.interval(0.95, 2, 7 / 3, stats.sem([1, 2, 4])))
    assert alone.n == 6


def test_a_mean_over_training_adds_the_variances_of_seeds_and_of_clusters_of_prompts():
    rng = np.random.default_rng(0)
    values, names = rng.normal(size=(4, 12)), [i // 3 for i in range(12)]
    seeds, clusters = values.mean(1), values.mean(0).reshape(4, 3).mean(1)
    a, b = stats.sem(seeds) ** 2, stats.sem(clusters) ** 2
    joint = stats.t.ppf(0.975, (a + b) ** 2 / (a**2 / 3 + b**2 / 3))
    reach = max(math.sqrt(a + b) * joint, math.sqrt(a) * stats.t.ppf(0.975, 3))
    assert limits(training_mean(values.tolist(), names)) == pytest.approx(
        (values.mean() - reach, values.mean() + reach)
    )
    assert math.isnan(training_mean(values.tolist(), [0] * 12).low)  # one cluster tells nothing


def table(both: int, one: int, other: int, none: int) -> tuple[list[bool], list[bool]]:
    cells = (
        [(True, True)] * both
        + [(True, False)] * one
        + [(False, True)] * other
        + [(False, False)] * none
    )
    return [x for x, _ in cells], [y for _, y in cells]


def newcombe(e: int, f: int, g: int, h: int) -> tuple[float, float]:
    """Method 10 in the paper's letters."""
    n = e + f + g + h
    (l2, u2), (l3, u3) = (
        stats.binomtest(k, n).proportion_ci(0.95, "wilson") for k in (e + f, e + g)
    )
    p2, p3 = (e + f) / n, (e + g) / n
    product = (e + f) * (g + h) * (e + g) * (f + h)
    numerator = e * h - f * g
    if numerator > n / 2:
        numerator -= n / 2
    elif numerator >= 0:
        numerator = 0
    phi = numerator / product**0.5 if product else 0
    delta = ((p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u3 - p3) + (u3 - p3) ** 2) ** 0.5
    epsilon = ((u2 - p2) ** 2 - 2 * phi * (u2 - p2) * (p3 - l3) + (p3 - l3) ** 2) ** 0.5
    return 100 * (p2 - p3 - delta), 100 * (p2 - p3 + epsilon)


@pytest.mark.parametrize(
    "cells",
    [
        (20, 12, 2, 16),
        (36, 12, 2, 0),
        (0, 10, 4, 0),
        (5, 0, 0, 5),
        (0, 0, 0, 9),
        (0, 9, 0, 0),
        (1, 0, 0, 0),
    ],
)
def test_a_difference_is_newcombes_method_10(cells):
    first, second = table(*cells)
    score = difference(first, second)
    assert limits(score) == pytest.approx(newcombe(*cells))
    assert score.value == pytest.approx(100 * (cells[1] - cells[2]) / sum(cells))
    assert score.low < score.value < score.high or abs(score.value) == 100
    assert -100 - 1e-9 <= score.low <= score.high <= 100 + 1e-9
    back = difference(second, first)
    assert limits(back) == pytest.approx((-score.high, -score.low))


def test_pairing_narrows_and_clusters_widen_a_difference():
    first, second = table(60, 12, 2, 60)
    score = difference(first, second)
    p, q = proportion(72, 134), proportion(62, 134)
    apart = math.hypot(p.value - p.low, q.high - q.value)
    assert score.value - score.low < 0.7 * apart
    wide = difference(
        [x for x in first for _ in range(3)],
        [y for y in second for _ in range(3)],
        number_clusters(np.repeat(range(134), 3).tolist()),
    )
    assert limits(wide) == pytest.approx(limits(score), abs=0.3)  # copies add nothing
    assert wide.n == 3 * 134


def test_a_difference_counts_what_both_have_scored():
    score = difference([True, None, False, True], [False, True, None, True])
    assert (score.value, score.n, score.unscored) == (50.0, 2, 2)
    nothing = difference([None], [True])
    assert (nothing.n, nothing.unscored, nothing.reason) == (0, 1, "nothing was scored")
    assert difference([], []).n == 0


def test_a_difference_of_means_is_the_paired_t():
    x, y = [1.0, 4.0, 2.5, 7.0], [0.5, 2.0, 3.0, 4.0]
    interval = stats.ttest_rel(x, y).confidence_interval()
    assert limits(mean_difference(x, y)) == pytest.approx((interval.low, interval.high))
    assert limits(mean_difference(x, y, [0, 1, 2, 3])) == pytest.approx(
        (interval.low, interval.high)
    )


def test_the_detectable_difference_has_eighty_percent_power():
    rng = np.random.default_rng(0)
    for n, rate in ((100, 10.0), (500, 50.0)):
        d = detectable(n, rate) / 100
        p, q = rng.binomial(n, rate / 100, 40000) / n, rng.binomial(n, rate / 100 + d, 40000) / n
        pooled = (p + q) / 2
        z = abs(q - p) / np.sqrt(2 * pooled * (1 - pooled) / n)
        assert np.mean(z > stats.norm.ppf(0.975)) == pytest.approx(0.8, abs=0.02)
    share = 0.2
    d = detectable_paired(300, 100 * share) / 100
    one, other, _ = rng.multinomial(300, [(share + d) / 2, (share - d) / 2, 1 - share], 40000).T
    assert np.mean(
        abs(one - other) / np.sqrt(one + other) > stats.norm.ppf(0.975)
    ) == pytest.approx(0.8, abs=0.02)
    shift = detectable_over_seeds(4, 3.0)
    first, second = rng.normal(0, 3, (20000, 4)), rng.normal(shift, 3, (20000, 4))
    assert np.mean(stats.ttest_ind(first, second, axis=1).pvalue < 0.05) == pytest.approx(
        0.8, abs=0.015
    )
    gain = rng.normal(detectable_over_seeds(3, 3.0, paired=True), 3, (20000, 3))
    assert np.mean(stats.ttest_1samp(gain, 0, axis=1).pvalue < 0.05) == pytest.approx(
        0.8, abs=0.015
    )


def test_what_cannot_be_detected_is_nan():
    assert math.isnan(detectable(2, 50))
    assert math.isnan(detectable_paired(5, 10))
    assert math.isnan(detectable_paired(100, 0))
    assert math.isnan(detectable_over_seeds(2, 1.0))
    assert detectable(100, 98) == pytest.approx(detectable(100, 2))
    assert detectable(100, 0) == detectable(100, 100) == pytest.approx(7.467, abs=0.001)
    assert detectable(400, 30) < detectable(100, 30)
    for share in (0.05, 0.2):  # solved for n, as in the paper
        d = detectable_paired(60, 100 * share) / 100
        needed = (
            stats.norm.ppf(0.975) * share**0.5 + stats.norm.ppf(0.8) * (share - d * d) ** 0.5
        ) ** 2 / d**2
        assert math.isnan(d) or needed == pytest.approx(60)
    assert detectable_paired(60, 20) > 15
    assert (
        detectable(500, 10) > 2
    )  # what a reader is to be warned of: 2 points are not seen with 500 prompts
    with pytest.raises(ValueError, match="120 percent"):
        detectable(100, 120)
