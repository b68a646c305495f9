"""Thresholds of several signals at one rate of false alarms: the rate by simulation, the rule by
trying every rank, and what too few rows say.
"""

import math

import numpy as np
import pytest

from titer.errors import EvidenceError
from titer.screening.thresholds import check_rate, count_needed, fit


def draw(rng, n: int, kind: str) -> np.ndarray:
    """Values of rows by four signals that hang together, of which one mostly finds nothing."""
    common = rng.standard_normal((n, 1))
    values = common * 0.8 + rng.standard_t(3, (n, 4))
    values[:, 3] = values[:, 3] > 3
    if kind == "ties":
        values[:, :3] = np.round(values[:, :3])
    return values


@pytest.mark.parametrize("kind", ["smooth", "ties"])
@pytest.mark.parametrize(("rate", "n"), [(0.05, 99), (0.05, 300), (0.02, 400), (0.2, 60)])
def test_the_rate_of_false_alarms_holds_in_the_mean_over_benign_files(rate, n, kind):
    rng = np.random.default_rng([n, int(100 * rate), len(kind)])
    repeats, fresh = 300, 200
    alarms = []
    for _ in range(repeats):
        found = fit(draw(rng, n, kind), rate)
        alarms.append((draw(rng, fresh, kind) > found).any(1).mean())
    error = np.std(alarms) / math.sqrt(repeats)
    assert np.mean(alarms) <= rate + 3 * error
    if kind == "smooth":  # and most of the rate is used
        assert np.mean(alarms) >= 0.5 * rate


def test_the_rank_is_the_largest_that_the_rate_allows():
    rng = np.random.default_rng(0)
    for rate in (0.05, 0.1, 0.5):
        values = np.round(rng.standard_normal((80, 3)), 1)
        found = fit(values, rate)

        def flags(m: int, values=values) -> int:
            limits = np.sort(values, 0)[::-1][m - 1]
            return int(
                sum(any(v >= at for v, at in zip(row, limits, strict=True)) for row in values)
            )

        # ties count fully: a row is among the m largest where fewer than m + 1 are as large
        allowed = [
            m
            for m in range(1, 80)
            if sum(any((values[:, s] >= row[s]).sum() <= m for s in range(3)) for row in values) + 1
            <= rate * 81 + 1e-9
        ]
        assert np.array_equal(found, np.sort(values, 0)[::-1][max(allowed) - 1])
        assert (values > found).any(1).mean() <= rate
        assert flags(max(allowed)) >= (values > found).any(1).sum()


def test_a_signal_that_finds_nothing_costs_nothing():
    values = np.random.default_rng(1).standard_normal((200, 1))
    alone = fit(values, 0.05)
    beside = fit(np.hstack([values, np.zeros((200, 5))]), 0.05)
    assert beside[0] == alone[0]
    assert (beside[1:] == 0).all()  # whatever is above is flagged
    assert (fit(np.zeros((99, 2)), 0.01) == 0).all()


@pytest.mark.parametrize(("rate", "graded", "rows"), [(0.01, 1, 199), (0.01, 5, 599), (0.1, 2, 29)])
def test_the_number_that_is_needed_is_enough_and_one_less_is_not(rate, graded, rows):
    assert count_needed(rate, graded) == rows
    values = np.full((rows, graded), -1.0)
    for s in range(graded):  # the worst case: every signal has another row on top
        values[s, s] = 1.0
        values[:, s] += np.linspace(0, 0.5, rows) * (values[:, s] < 0)
    fit(values, rate)
    with pytest.raises(EvidenceError, match=f"{rows - 1} benign rows .* give at least {rows}"):
        fit(values[:-1], rate)


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0, math.nan])
def test_a_rate_is_a_share(rate):
    with pytest.raises(ValueError, match="above 0 and below 1"):
        check_rate(rate)
