"""Thresholds of all signals together, at a rate of false alarms.

A row is flagged where one of its values is above that signal's threshold. The thresholds are the
m-th largest values of n benign rows, with the same m for every signal. m is the largest for which
the benign rows with a value among the m largest of any signal, and one row more, are at most a share
`rate` of n + 1.

The row that is screened, if it is as the benign ones are, is one of n + 1 that might each have been
the one that is screened. So the chance that it is flagged is at most `rate`, whatever the
distribution, and however the signals hang together (split conformal prediction, with the maximum
over signals; tests/test_thresholds.py has it by simulation). That is the mean over benign files: a
given file's thresholds may have a somewhat larger rate or a smaller one. A signal that finds nothing
in benign rows costs nothing.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from titer.errors import EvidenceError

Values = NDArray[np.float64]


def check_rate(rate: float) -> None:
    """Raise unless a rate of false alarms is a share that can be kept."""
    if not 0.0 < rate < 1.0:
        raise ValueError(
            f"--false-positives {rate}: a share of the benign rows, above 0 and below 1, as 0.01"
        )


def count_needed(rate: float, graded: int) -> int:
    """Return how many benign rows surely give a threshold to so many signals that grade them."""
    return math.ceil((graded + 1) / rate - 1e-9) - 1


def fit(values: Values, rate: float) -> Values:
    """Return the threshold of every signal, (signals,), from the values of benign rows, (n, signals).

    Raises EvidenceError, with the number that would do, where there are too few rows for the rate.
    """
    n = len(values)
    allowed = math.floor(rate * (n + 1) + 1e-9) - 1  # benign rows that may be flagged
    ordered = np.sort(values, axis=0)[::-1]  # the largest first
    # of every value, how many of its signal are as large: its own is one
    ranks = np.stack(
        [np.searchsorted(-ordered[:, s], -values[:, s], "right") for s in range(values.shape[1])]
    )
    best = np.sort(ranks.min(axis=0))  # (n,)
    m = int(best[allowed]) - 1 if 0 <= allowed < n else 0
    if m < 1:
        leaders = int((best <= 1).sum())
        needed = count_needed(rate, leaders)
        raise EvidenceError(
            f"{n} benign rows do not show a rate of {rate:g} with these signals: give at least "
            f"{max(needed, n + 1)}, or raise --false-positives, or ask fewer signals with --only"
        )
    return np.asarray(ordered[min(m, n) - 1])
