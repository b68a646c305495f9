"""Scores with intervals that say what they cover."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Score:
    """A figure over prompts, with its 95 % interval.

    The interval covers the drawing of prompts, for these weights: another training seed moves the figure further.
    """

    value: float  # percent, or nats for a margin; nan where nothing could be scored
    n: int  # scored prompts
    low: float
    high: float
    unscored: int = 0  # prompts that could not be scored; they count nowhere else
    covers: str = "prompts"


def proportion(hits: int, n: int, unscored: int = 0) -> Score:
    """Percentage of `hits` in `n`, with Wilson's interval."""
    if n == 0:
        return Score(math.nan, 0, math.nan, math.nan, unscored)
    interval = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    return Score(100 * hits / n, n, 100 * float(interval.low), 100 * float(interval.high), unscored)


def mean(values: Sequence[float]) -> Score:
    """Mean of `values`, with Student's interval."""
    n = len(values)
    if n < 2:
        return Score(values[0] if values else math.nan, n, math.nan, math.nan)
    centre, error = float(sum(values) / n), float(stats.sem(values))
    reach = error * float(stats.t.ppf(0.975, n - 1))
    return Score(centre, n, centre - reach, centre + reach)
