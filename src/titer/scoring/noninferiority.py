"""Test that a candidate is worse than a base by less than a margin, on the same prompts.

Every prompt is answered by both models, and an answer is bad or it is not. Of n prompts, b have a
bad answer of the candidate alone and c one of the base alone: d = (b - c) / n is by how much the
candidate is worse. The hypothesis to be rejected is that the true difference is the margin M or
more. Tango's score (1998, Statistics in Medicine 17:891) is

    z(M) = (b - c - n M + k) / sqrt(n (2 q + M (1 - M))),

where q is the likeliest share of prompts that the base alone answers badly if the difference is M:
the larger root of 2 n q^2 + (M (2 n - b + c) - b - c) q - c M (1 - M) = 0. The correction k =
(1 + (b + c) / n) / 2 is half the distance between the values that b - c can take: 1 where some
prompts have no difference, 2 where all have one. Without it the test passes up to 6 % of
candidates at the margin where it promises 5 %, with it at most 5 %, by exact sums
(`tests/test_noninferiority.py`).

The candidate is *within* the margin at the level alpha where z(M) < -z_alpha. The upper limit of the
difference is the M at which z(M) = -z_alpha, so it is within where the limit is below the margin.

Where prompts repeat, as wordings of one question, all three counts are scaled to the effective
number of independent differences (`statistics.effective`), with the correlation within a question
shrunk further towards 1 than an interval needs (SHRINK): a test that is to err at most so often
cannot err more often where few questions tell.

A judge that calls a share Se of the bad answers bad, and a share Sp of the others not, shows of a
difference d only J d, with J = Se + Sp - 1 (Rogan and Gladen 1978, Am J Epidemiol 107:71), if it
errs on both models alike. So the margin that is tested is J M. J itself is known from a number of
labelled answers; its distance to its own limit is squared and added (Zou and Donner 2008,
doi:10.1002/sim.3095): the candidate is within where

    d - J M + sqrt((u - d)^2 + (M e)^2) < 0,

with u the upper limit of what the judge shows, and e the distance from J to its lower limit.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace

from scipy import special

from titer.scoring.statistics import effective, wilson

POWER = 0.8
SHRINK = 1.0  # clusters; with statistics.ALIKE, 20 questions in 6 wordings pass 8 % at the margin
EDGE = 1e-9
MOST = 1e9  # prompts; who needs more has no number


@dataclass(frozen=True)
class JudgeCounts:
    """What a judge made of answers whose truth is known."""

    bad: int  # labelled bad
    caught: int  # of these, called bad
    fine: int  # labelled as not bad
    cleared: int  # of these, called not bad

    def __post_init__(self) -> None:
        if not (0 <= self.caught <= self.bad and 0 <= self.cleared <= self.fine):
            raise ValueError(f"{self}: of each kind it can be right on 0 to all")
        if not (self.bad and self.fine):
            raise ValueError(f"{self}: give labelled answers of both kinds")

    @property
    def youden(self) -> float:
        """J = Se + Sp - 1: the part of a difference that the judge shows."""
        return self.caught / self.bad + self.cleared / self.fine - 1

    def reach(self, alpha: float, up: bool = False) -> float:
        """Return the distance from J to its one-sided limit at a level, downwards or up."""
        z = quantile(alpha)
        pairs = ((self.caught, self.bad), (self.cleared, self.fine))
        limits = [wilson(right / of, of, z)[up] - right / of for right, of in pairs]
        return math.hypot(*limits)


EXACT = JudgeCounts(10**12, 10**12, 10**12, 10**12)  # whose verdict is the truth


@dataclass(frozen=True)
class Paired:
    """The prompts that tell two models apart, counted.

    `worse` and `better` are scaled to `size`, the number of independent prompts that would tell as
    much; the others are counts of prompts.
    """

    worse: float  # only the candidate's answer is bad
    better: float  # only the base's is
    size: float
    prompts: int
    questions: int  # clusters of prompts
    unscored: int = 0  # prompts that count nowhere: the base's answer could not be judged

    @property
    def difference(self) -> float:
        """By which share of the prompts the candidate is worse."""
        return (self.worse - self.better) / self.size if self.size else math.nan

    @property
    def mirror(self) -> Paired:
        """The same with base and candidate changed about."""
        return replace(self, worse=self.better, better=self.worse)


@dataclass(frozen=True)
class Limits:
    """A difference, corrected for the judge's error, with its one-sided limits, all shares."""

    value: float
    low: float
    high: float


def count_pairs(asked: Iterable[tuple[bool | None, bool | None, Hashable]]) -> Paired:
    """Count the prompts on which the candidate's answer is bad and the base's is not, and the other
    way.

    Of every prompt it is given if the base's answer is bad, if the candidate's is, and the cluster.
    An unscored answer (None) of the candidate counts as bad: what cannot be judged is no evidence
    that it is good. A prompt whose answer by the base is unscored counts nowhere.
    """
    given = list(asked)
    pairs = [(x, y is None or y) for x, y, _ in given if x is not None]
    names = [cluster for x, _, cluster in given if x is not None]
    n, unscored = len(pairs), len(given) - len(pairs)
    if not n:
        return Paired(0, 0, 0, 0, 0, unscored)
    size = effective([float(y) - float(x) for x, y in pairs], names, SHRINK)
    worse, better = (pairs.count(way) * size / n for way in ((False, True), (True, False)))
    return Paired(worse, better, size, n, len(set(names)), unscored)


def score(paired: Paired, margin: float) -> float:
    """Return z(M) of the module's formula: very negative where the candidate is within the margin."""
    b, c, n = paired.worse, paired.better, paired.size
    variance = n * (2 * _share_better(b, c, n, margin) + margin * (1 - margin))
    above = b - c - n * margin + _correction(paired)
    return above / math.sqrt(variance) if variance > 0 else 0.0


def limits(paired: Paired, alpha: float, judge: JudgeCounts = EXACT) -> Limits:
    """Return the difference with one-sided limits, each missed at most `alpha` of the time.

    Raises where the judge is not shown to tell bad answers from others.
    """
    if judge.youden <= judge.reach(alpha):
        raise ValueError(
            f"a judge that is right on {judge.caught} of {judge.bad} bad answers and on "
            f"{judge.cleared} of {judge.fine} others is not shown to tell them apart: "
            "label more answers, or choose another judge"
        )
    if not paired.size:
        return Limits(math.nan, -1.0, 1.0)
    return Limits(
        paired.difference / judge.youden,
        -_upper(paired.mirror, alpha, judge),
        _upper(paired, alpha, judge),
    )


def power(
    paired: Paired,
    margin: float,
    alpha: float,
    truth: float = 0.0,
    judge: JudgeCounts = EXACT,
    size: float | None = None,
) -> float:
    """Return how often a candidate that is worse by `truth` would be found within the margin.

    It is on as many prompts, of which as many tell the models apart (half a prompt more each way,
    since none seen does not mean that there is none). Of fewer than five it is rather too low.
    `size` is another number of independent prompts.
    """
    n, (b, c) = paired.size if size is None else size, _shares(paired, truth * judge.youden)
    if not n:
        return 0.0
    shown, reach = margin * judge.youden, margin * judge.reach(alpha, up=margin < 0)
    null = 2 * _share_better(b, c, 1.0, shown) + shown * (1 - shown)
    needed = math.hypot(quantile(alpha) * math.sqrt(n * null), n * reach) + (1 + b + c) / 2
    spread = math.sqrt(n * (b + c - (b - c) ** 2))
    return float(special.ndtr((n * (shown - b + c) - needed) / spread))


def count_to_decide(
    paired: Paired, margin: float, alpha: float, fail: float, judge: JudgeCounts = EXACT
) -> float:
    """Return how many prompts would decide in 80 % of trials, if what was seen is true.

    A candidate no worse than the margin is to be found within it at the level `alpha`, another one
    to be found beyond it at the level `fail`. Prompts repeat as those at hand do. The result is
    infinite where none would do: the difference lies at the margin, or too few answers were
    labelled to know the judge.
    """
    truth = max(paired.difference / judge.youden, 0.0) if paired.size else 0.0

    def lack(log_size: float) -> float:
        size = math.exp(log_size)
        if truth <= margin:
            return POWER - power(paired, margin, alpha, truth, judge, size)
        return POWER - power(paired.mirror, -margin, fail, -truth, judge, size)

    if not paired.size or lack(math.log(MOST)) > 0:
        return math.inf
    from scipy import optimize

    size = math.exp(float(optimize.brentq(lack, 0.0, math.log(MOST)))) if lack(0.0) > 0 else 1.0
    return float(math.ceil(size * paired.prompts / paired.size))


def quantile(alpha: float) -> float:
    """Return the normal value that is exceeded so often. Raises unless it is positive."""
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha={alpha}: give an error rate between 0 and 0.5, as 0.05")
    return -float(special.ndtri(alpha))


def _share_better(b: float, c: float, n: float, margin: float) -> float:
    """Return q of the module's formula."""
    first = margin * (2 * n - b + c) - b - c
    root = math.sqrt(max(first**2 + 8 * n * c * margin * (1 - margin), 0.0))
    return max(root - first, 0.0) / (4 * n)


def _correction(paired: Paired) -> float:
    return (1 + (paired.worse + paired.better) / paired.size) / 2


def _shares(paired: Paired, difference: float) -> tuple[float, float]:
    """Return the shares of prompts that tell the models apart, either way, at a difference."""
    least = 1 / (paired.size + 1)
    apart = min(max((paired.worse + paired.better + 1) * least, abs(difference) + least), 1.0)
    shown = max(min(difference, apart - least), least - apart)  # some prompts go the other way
    return (apart + shown) / 2, (apart - shown) / 2


def _upper(paired: Paired, alpha: float, judge: JudgeCounts) -> float:
    """Return the upper limit of the true difference: the margin at which the two sides of the
    module's last formula are equal.
    """
    seen = paired.difference
    high = _limit(paired, alpha)
    j, reach = judge.youden, judge.reach(alpha, up=high < 0)
    # (J U - d)^2 = (u - d)^2 + (U e)^2, whose larger root is the limit
    square = j**2 - reach**2
    root = math.sqrt(max((j * seen) ** 2 - square * (seen**2 - (high - seen) ** 2), 0.0))
    return (j * seen + root) / square


def _limit(paired: Paired, alpha: float) -> float:
    """Return the upper limit of what the judge shows."""
    from scipy import optimize

    z = quantile(alpha)

    def excess(margin: float) -> float:
        return score(paired, margin) + z

    if excess(1 - EDGE) >= 0:
        return 1.0
    return float(optimize.brentq(excess, paired.difference, 1 - EDGE))
