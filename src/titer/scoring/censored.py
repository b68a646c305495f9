"""The mean of normal values of which some are known to lie between bounds alone.

Mean and spread are those of the largest likelihood, in which a censored value counts with the
probability of its side. The interval has every mean whose profile likelihood is within
n/2 log(1 + t^2 / (m - 1)) of the largest, for n values of which m are seen, t with m - 1 degrees of
freedom. That is Student's interval where none is censored; `tests/test_dose.py` has the coverage
where some are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

Bounds = NDArray[np.float64]
LEAST = 0.01  # the least spread: no values agree better
FAR = 50.0  # widths from the nearest value: no mean lies there


def mean_with_interval(bounds: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval, of values between a lower and an upper bound each.

    Equal bounds are a value that was seen. Of a single value, or where all are equal, the interval is
    not known (NaN).
    Where fewer than two are seen, nothing says how values spread, and nothing but a bound is known:
    the least of the lower bounds where no other one has an upper bound, with an interval from there,
    or the largest upper bound. The mean is NaN where bounds lie on both sides.
    """
    low, high = np.array(bounds, dtype=float).T
    seen = low == high
    if seen.sum() < 2 and not (seen.all() and len(low)):
        if (seen | np.isinf(high)).all():
            return float(low.min()), float(low.min()), math.inf
        if (seen | np.isinf(low)).all():
            return float(high.max()), -math.inf, float(high.max())
        return math.nan, float(low.min()), float(high.max())
    if seen.all():
        centre = float(low.mean())
        if low.min() == low.max():  # nothing is known of how others differ, as of one alone
            return centre, math.nan, math.nan
        reach = float(stats.t.ppf(0.975, len(low) - 1) * stats.sem(low))
        return centre, centre - reach, centre + reach
    centre, lowest = _fit(low, high)
    return centre, *_profile(low, high, centre, lowest)


def p_value(bounds: Sequence[tuple[float, float]]) -> float:
    """Return the two-sided p-value of a mean of 0: the level at which the interval ends there.

    Where nothing is censored it is that of Student's t test. NaN where there is no interval.
    """
    low, high = np.array(bounds, dtype=float).T
    n, m = len(low), int((low == high).sum())
    if m < 2:
        return math.nan
    if m == n:
        error = float(stats.sem(low))
        t = abs(float(low.mean())) / error if error else math.nan
    else:
        _, lowest = _fit(low, high)
        above = max(_least(low, high, 0.0) - lowest, 0.0)
        t = math.sqrt((m - 1) * math.expm1(min(2 * above / n, 700.0)))
    return float(2 * stats.t.sf(t, m - 1))


def _against(low: Bounds, high: Bounds, mean: float, spread: float) -> float:
    """Return minus the log-likelihood of the values."""
    seen = low == high
    a, b = (low[~seen] - mean) / spread, (high[~seen] - mean) / spread
    a, b = np.where(a > 0, -b, a), np.where(a > 0, -a, b)  # of the side where logcdf is exact
    inside = special.log_ndtr(b) + np.log1p(-np.exp(special.log_ndtr(a) - special.log_ndtr(b)))
    return -float(stats.norm.logpdf(low[seen], mean, spread).sum() + inside.sum())


def _least(low: Bounds, high: Bounds, mean: float) -> float:
    """Return minus the largest log-likelihood at a mean, over all spreads."""
    ends = np.concatenate([low, high])
    reach = float(np.abs(ends[np.isfinite(ends)] - mean).max())
    found = optimize.minimize_scalar(
        lambda log: _against(low, high, mean, math.exp(log)),
        bounds=(math.log(LEAST), math.log(max(FAR * reach, 2 * LEAST))),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(found.fun)


def _fit(low: Bounds, high: Bounds) -> tuple[float, float]:
    """Return the mean of the largest likelihood, and minus that likelihood."""
    ends = np.concatenate([low, high])
    ends = ends[np.isfinite(ends)]
    width = max(float(np.ptp(ends)), LEAST)
    found = optimize.minimize_scalar(
        lambda mean: _least(low, high, mean),
        bounds=(ends.min() - FAR * width, ends.max() + FAR * width),
        method="bounded",
        options={"xatol": 1e-7},
    )
    return float(found.x), float(found.fun)


def _profile(low: Bounds, high: Bounds, centre: float, lowest: float) -> tuple[float, float]:
    """Return the ends of the interval of the mean."""
    n, m = len(low), int((low == high).sum())
    t = float(stats.t.ppf(0.975, m - 1))
    reach = n / 2 * math.log1p(t**2 / (m - 1))

    def beyond(mean: float) -> float:
        return _least(low, high, mean) - lowest - reach

    ends = []
    for side in (-1, 1):
        step = LEAST
        while beyond(centre + side * step) < 0 and step < 1e3:
            step *= 2
        inside = centre + side * (step / 2 if step > LEAST else 0.0)
        first, second = sorted((inside, centre + side * step))
        ends.append(
            float(optimize.brentq(beyond, first, second)) if step < 1e3 else side * math.inf
        )
    return ends[0], ends[1]
