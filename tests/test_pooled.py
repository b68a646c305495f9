"""Differences over worlds: against scipy's t test, by simulation, and Holm's rule by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from titer.scoring.censored import p_value
from titer.scoring.differences import holm
from titer.scoring.pooled import pooled

WORLDS = 6


def test_seen_values_are_students():
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = rng.normal(0.3, 1, WORLDS)
        found, plain = pooled(values.tolist()), stats.ttest_1samp(values, 0)
        low, high = plain.confidence_interval(0.95)
        assert (found.value, found.low, found.high) == pytest.approx((values.mean(), low, high))
        assert found.p == pytest.approx(plain.pvalue)
        assert found.worlds == WORLDS


def test_the_smallest_difference_to_be_seen_is_seen_in_four_of_five_trials():
    rng = np.random.default_rng(1)
    smallest = pooled([-1.0, 1.0, -1.0, 1.0, -1.0, 1.0]).detectable
    spread = math.sqrt(6 / 5)
    values = rng.normal(smallest, spread, (20_000, WORLDS))
    t = values.mean(1) / (values.std(1, ddof=1) / math.sqrt(WORLDS))
    assert np.mean(t > stats.t.ppf(0.975, WORLDS - 1)) == pytest.approx(0.8, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [math.inf, 0.8, 0.3])
def test_the_interval_covers_and_its_p_value_agrees_with_it(budget):
    """Logarithms of ratios of doses, those above the attack's end known to be above it alone."""
    rng, covered, agree, count = np.random.default_rng(2), 0, 0, 0
    for _ in range(400):
        values = rng.normal(0.3, 0.5, WORLDS)
        bounds = [(v, v) if v < budget else (budget, math.inf) for v in values]
        found = pooled(bounds)
        if not found.known or math.isnan(found.p):
            continue
        count += 1
        covered += found.low <= 0.3 <= found.high
        agree += (found.p < 0.05) == (found.low > 0 or found.high < 0)
    assert agree >= count - 1
    assert 93 <= 100 * covered / count <= 99


def test_what_cannot_be_known_is_not():
    same, none = pooled([2.0] * 3), pooled([])
    assert (same.value, same.known, none.known) == (2.0, False, False)
    assert math.isnan(same.p)
    assert math.isnan(same.detectable)
    above = pooled([(0.5, math.inf), (0.7, math.inf)])  # nothing broke: a bound alone
    assert (above.value, above.high) == (0.5, math.inf)
    assert math.isnan(above.p)
    assert math.isnan(p_value([(1.0, 1.0), (2.0, math.inf)]))


def test_holms_rule_stops_at_the_first_that_does_not_pass():
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]  # .03 > .05 / 2
    assert holm([0.04]) == [True]
    assert holm([0.03, math.nan]) == [False, False]  # what is not known was asked all the same
    assert holm([]) == []


def test_under_no_difference_holm_shows_one_in_at_most_five_of_a_hundred_tables():
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(2000):
        table = rng.normal(0, 1, (10, WORLDS))
        wrong += any(holm(stats.ttest_1samp(table, 0, axis=1).pvalue.tolist()))
    assert wrong / 2000 <= 0.06
