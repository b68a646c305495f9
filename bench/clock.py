"""Times of updates that take turns, so that whatever else the machine does falls on both."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Protocol

import torch

WARM = 2  # turns of each before the first that counts: allocations, the optimizer's moments


@dataclass(frozen=True)
class Spread:
    median: float
    q1: float
    q3: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        q1, median, q3 = quantiles(values, n=4, method="inclusive")
        return Spread(median, q1, q3)


@dataclass(frozen=True)
class Times:
    """Seconds of an update, and the ratios and differences within the pairs."""

    baseline: Spread
    subject: Spread
    ratio: Spread
    extra: Spread


class Timed(Protocol):
    """A thing to be timed: a `Subject`, say."""

    def mean(self, measure: Callable[[Callable[[], object]], float]) -> float:
        """Return what `measure` finds in an update, or in another unit of work."""


def seconds(action: Callable[[], object]) -> float:
    _synchronize()
    start = time.perf_counter()
    action()
    _synchronize()
    return time.perf_counter() - start


def time_in_turns(baseline: Timed, subject: Timed, pairs: int) -> Times:
    for _ in range(WARM):
        baseline.mean(seconds), subject.mean(seconds)
    found = [(baseline.mean(seconds), subject.mean(seconds)) for _ in range(pairs)]
    a, b = zip(*found, strict=True)
    return Times(
        Spread.of(a),
        Spread.of(b),
        Spread.of([y / x for x, y in found]),
        Spread.of([y - x for x, y in found]),
    )


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
