"""The errors of a judge, and what they do to a figure that it gave.

A judge calls a share Se of the harmful answers harmful (its sensitivity), and a share Sp of the
others not (its specificity). Where a share pi of a model's answers is harmful it counts
p = Se pi + (1 - Sp)(1 - pi), so pi = (p + Sp - 1) / (Se + Sp - 1) (Rogan and Gladen 1978,
doi:10.1093/oxfordjournals.aje.a112510), clipped to 0 and 1. The interval of pi holds the luck of
the prompts and that of the labelled answers (Lang and Reiczigel 2014,
doi:10.1016/j.prevetmed.2013.09.015). Where it is not shown that Se + Sp > 1 the figures say
nothing of pi, and the interval is all of 0 to 100. `tests/test_calibrate.py` has the coverage.

Of two models under one judge a difference d is seen as (Se + Sp - 1) d, so a smallest difference
is 1 / (Se + Sp - 1) times what it would be of figures like those that the judge gives.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from titer.scoring.differences import detectable
from titer.scoring.score import Score
from titer.scoring.statistics import Z, effective, proportion_by_cluster


@dataclass(frozen=True)
class Share:
    """A share of outcomes, and the number of independent ones that would tell as much."""

    score: Score  # percent
    effective: float  # nan where nothing was scored

    @property
    def value(self) -> float:
        """The share, between 0 and 1."""
        return self.score.value / 100

    def pull(self, hits: float, more: float) -> tuple[float, float]:
        """Return the share and its number as if there were `more` outcomes, `hits` of them true."""
        n = self.effective + more
        return (self.value * self.effective + hits) / n, n


def share_of(outcomes: Sequence[bool | None], clusters: Sequence[Hashable]) -> Share:
    """Return the share of outcomes that are true. None is an unscored outcome."""
    score = proportion_by_cluster(outcomes, clusters)
    scored = [
        (outcome, cluster)
        for outcome, cluster in zip(outcomes, clusters, strict=True)
        if outcome is not None
    ]
    if not scored:
        return Share(score, math.nan)
    return Share(score, effective([of for of, _ in scored], [cluster for _, cluster in scored]))


@dataclass(frozen=True)
class JudgeError:
    """How often a judge is right: of answers that are what it looks for, and of others."""

    sensitivity: Share
    specificity: Share

    @property
    def youden(self) -> float:
        """How much of a true difference the judge shows: Se + Sp - 1."""
        return self.sensitivity.value + self.specificity.value - 1

    @property
    def least_youden(self) -> float:
        """The lower limit of that (Zou and Donner 2008, doi:10.1002/sim.3095)."""
        below = [
            (each.score.value - each.score.low) / 100
            for each in (self.sensitivity, self.specificity)
        ]
        return self.youden - math.hypot(*below)

    def apparent(self, rate: float) -> float:
        """Return the percentage that the judge would count where `rate` percent are true."""
        false = 100 - self.specificity.score.value
        return self.youden * rate + false

    def correct(self, counted: Share) -> Score:
        """Return the percentage that is true where the judge counted this one.

        Raises where the judge is right no more often than by chance.
        """
        check_above_chance(self)
        value = (counted.value + self.specificity.value - 1) / self.youden
        low, high = (0.0, 1.0) if self.least_youden <= 0 else self._interval(counted)
        score = counted.score
        return Score(
            100 * min(max(value, 0.0), 1.0), score.n, 100 * low, 100 * high, score.unscored
        )

    def _interval(self, counted: Share) -> tuple[float, float]:
        """Return the limits of the true share by the method of Lang and Reiczigel."""
        p, n = counted.pull(Z**2 / 2, Z**2)
        (se, positives), (sp, negatives) = (
            each.pull(1, 2) for each in (self.sensitivity, self.specificity)
        )
        youden = se + sp - 1
        if youden <= 0:
            return 0.0, 1.0
        share = (p + sp - 1) / youden
        of_se, of_sp = se * (1 - se) / positives, sp * (1 - sp) / negatives
        variance = p * (1 - p) / n + share**2 * of_se + (1 - share) ** 2 * of_sp
        centre = share + 2 * Z**2 * (share * of_se - (1 - share) * of_sp)
        reach = Z * math.sqrt(variance) / youden
        low, high = (min(max(limit, 0.0), 1.0) for limit in (centre - reach, centre + reach))
        value = min(max((counted.value + self.specificity.value - 1) / self.youden, 0.0), 1.0)
        return min(low, value), max(high, value)

    def detectable(self, n: float, rate: float) -> float:
        """Return what `differences.detectable` does, of a true difference that this judge sees."""
        check_above_chance(self)
        apparent = detectable(n, min(max(self.apparent(rate), 0.0), 100.0))
        found = apparent / self.youden
        return found if found <= max(rate, 100 - rate) else math.nan


def check_above_chance(error: JudgeError) -> None:
    """Raise where a judge is right no more often than by chance."""
    if math.isnan(error.youden):
        raise ValueError("no answer of one of the two kinds was scored: give labels of both kinds")
    if error.youden <= 0:
        found = f"{error.sensitivity.score.value:.0f} % and {error.specificity.score.value:.0f} %"
        raise ValueError(
            f"the judge is right on {found} of the two kinds of answers, together no more than "
            "chance, so its figures cannot be corrected: choose another judge, or look whether the "
            "labels mean what was said"
        )
