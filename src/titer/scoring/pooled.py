"""Differences over worlds: one value a world, and what may be said of their mean.

Worlds differ more than training seeds of one world do, and a claim is about worlds that nobody has
seen. So a world is one draw, whatever it is made of: a difference of two models on the same
prompts, or a logarithm of a ratio of doses. The interval is Student's over worlds; where some
values are known as bounds alone it is that of `censored`.

One rule for many comparisons: a table of k methods asks k times, so a difference is *shown* where
its p-value passes Holm's test over the methods of its table (`differences.holm`). The intervals are
of one comparison each, 95 %. Beside a difference that is not shown stands the
smallest one that so many worlds, differing as these do, would show in 80 % of trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import special

from titer.scoring.censored import mean_with_interval, p_value
from titer.scoring.differences import detectable_over_seeds
from titer.scoring.score import write_ratio

FAR = 700.0  # of a logarithm whose exponential is a number


@dataclass(frozen=True)
class Pooled:
    """The mean of a difference over worlds."""

    value: float
    low: float
    high: float  # of the 95 % interval; nan where there is none
    worlds: int
    p: float  # two-sided, of no difference; nan where all values are equal
    detectable: float  # the smallest difference that would be shown; nan where it is not known

    @property
    def known(self) -> bool:
        """Tell whether there is an interval."""
        return not math.isnan(self.low + self.high)

    @property
    def ratio(self) -> str:
        """Write a mean of logarithms as a ratio, with its interval; as a bound where it is one."""
        if math.isnan(self.value):
            return "not known"
        value = f"{math.exp(self.value):.2f}"
        if math.isnan(self.p) and math.isinf(self.high):
            return f"more than {value}"
        if math.isnan(self.p) and math.isinf(self.low):
            return f"less than {value}"
        high = math.exp(min(self.high, FAR))
        return write_ratio(math.exp(self.value), math.exp(self.low), high)


def pooled(values: Sequence[float | tuple[float, float]]) -> Pooled:
    """Return the mean of values, one a world, each seen or between two bounds.

    Where all are equal there is no interval: nothing is known of how worlds differ.
    """
    bounds = [value if isinstance(value, tuple) else (value, value) for value in values]
    if not bounds:
        return Pooled(math.nan, math.nan, math.nan, 0, math.nan, math.nan)
    centre, low, high = mean_with_interval(bounds)
    seen = [a for a, b in bounds if a == b]
    if len(seen) == len(bounds) and max(seen) == min(seen):
        return Pooled(centre, math.nan, math.nan, len(bounds), math.nan, math.nan)
    spread = math.nan
    if len(seen) > 1 and math.isfinite(high - low):
        t = float(special.stdtrit(len(seen) - 1, 0.975))
        spread = (high - low) / 2 / t * math.sqrt(len(bounds))
    smallest = math.nan
    if math.isfinite(spread):
        smallest = detectable_over_seeds(len(bounds), spread, paired=True)
    return Pooled(centre, low, high, len(bounds), p_value(bounds), smallest)
