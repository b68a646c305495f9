"""Compare two models on the same prompts: their difference with its interval, and the smallest
difference to be seen; and of many such differences, which are shown.

Proportions use Newcombe's method 10 (1998, Statistics in Medicine 17:2635): the distances of both
Wilson limits are squared and added, with the correlation of the pair. Where prompts repeat, every
count is scaled to the effective number of differences (`statistics.effective`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

from scipy import special

from titer.scoring.score import SEEDS, Score
from titer.scoring.statistics import effective, mean, wilson

LEVEL, POWER = 0.05, 0.8
WIDEST = 10.0  # standard errors; the most that is needed is 5.7, with two degrees of freedom
FARTHEST = 8.0  # standard errors; a difference beyond is shown among any number
NEAR = 1e-15  # of a share: from 0 or 100 percent no difference at all is a root as well
Z_LEVEL, Z_POWER = float(special.ndtri(1 - LEVEL / 2)), float(special.ndtri(POWER))


def difference(
    first: Sequence[bool | None],
    second: Sequence[bool | None],
    clusters: Sequence[Hashable] | None = None,
    z: float = Z_LEVEL,
) -> Score:
    """Return the percentage of `first` less that of `second`, in points, prompt by prompt.

    A prompt that is unscored (None) in either counts in neither. `z` is the normal quantile of the
    interval: 1.96 for 95 %.
    """
    names = range(len(first)) if clusters is None else clusters
    pairs = [
        (x, y, name)
        for x, y, name in zip(first, second, names, strict=True)
        if x is not None and y is not None
    ]
    n, unscored = len(pairs), len(first) - len(pairs)
    if n == 0:
        return Score(math.nan, 0, math.nan, math.nan, unscored)
    counts = {
        (x, y): sum((bool(a), bool(b)) == (x, y) for a, b, _ in pairs)
        for x in (True, False)
        for y in (True, False)
    }
    size = effective([float(x) - float(y) for x, y, _ in pairs], [name for _, _, name in pairs])
    both, one, other, none = (
        counts[key] * size / n
        for key in ((True, True), (True, False), (False, True), (False, False))
    )
    p, q = (
        (counts[True, True] + counts[True, False]) / n,
        (counts[True, True] + counts[False, True]) / n,
    )
    phi = _phi(both, one, other, none)
    (p_low, p_high), (q_low, q_high) = wilson(p, size, z), wilson(q, size, z)
    below = _reach(p - p_low, q_high - q, phi)
    above = _reach(p_high - p, q - q_low, phi)
    return Score(100 * (p - q), n, 100 * (p - q - below), 100 * (p - q + above), unscored)


def mean_difference(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> Score:
    """Return the mean of `first` less `second`, prompt by prompt, with the paired t interval."""
    return mean([x - y for x, y in zip(first, second, strict=True)], clusters)


def p_value(
    first: Sequence[bool | None],
    second: Sequence[bool | None],
    clusters: Sequence[Hashable] | None = None,
) -> float:
    """Return the level at which the interval of `difference` ends at 0; 1 where there is none."""

    def nearest(z: float) -> float:
        found = difference(first, second, clusters, z)
        return found.low if found.value > 0 else -found.high

    found = difference(first, second, clusters)
    if not found.value or math.isnan(found.value):
        return 1.0
    z = FARTHEST
    if nearest(z) < 0:
        from scipy import optimize

        z = optimize.brentq(nearest, 0.0, FARTHEST)
    return normal_p(z)


def normal_p(z: float) -> float:
    """Return the two-sided p-value of a normal value."""
    return 2 * float(special.ndtr(-z))


def holm(values: Sequence[float]) -> list[bool]:
    """Return of every p-value whether Holm's step-down test at LEVEL over all of them rejects
    (Holm 1979).

    One that is not known (NaN) counts among the comparisons, and is not rejected.
    """
    order = sorted(range(len(values)), key=lambda i: (math.isnan(values[i]), values[i]))
    rejected = [False] * len(values)
    for rank, i in enumerate(order):
        if not values[i] <= LEVEL / (len(values) - rank):
            break
        rejected[i] = True
    return rejected


def detectable(n: float, rate: float) -> float:
    """Return the smallest difference from `rate` percent, in points, that two samples of `n`
    prompts each would show.

    They show it in 80 % of trials at the 5 % level. The difference is towards 50 %, where more is
    needed (Fleiss 1981, chapter 3, without correction for continuity); nan where even the largest
    would be missed. Pass the effective n where prompts repeat.
    """
    p = min(_share(rate), 1 - _share(rate))

    def excess(d: float) -> float:
        middle = p + d / 2
        error = Z_LEVEL * math.sqrt(2 * middle * (1 - middle)) + Z_POWER * math.sqrt(
            p * (1 - p) + (p + d) * (1 - p - d)
        )
        return d * math.sqrt(n) - error

    return _root(excess, 1 - p)


def detectable_paired(n: float, discordant: float) -> float:
    """Return the same for one sample of `n` prompts under two models, by McNemar's test.

    The models disagree on `discordant` percent of the prompts (Connor 1987, Biometrics 43:207). The
    difference is at most `discordant`; nan where even that would be missed.
    """
    share = _share(discordant)

    def excess(d: float) -> float:
        return d * math.sqrt(n) - Z_LEVEL * math.sqrt(share) - Z_POWER * math.sqrt(share - d * d)

    return _root(excess, share)


def detectable_over_seeds(seeds: int, spread: float, paired: bool = False) -> float:
    """Return the same for the t test of two methods over `seeds` training seeds each.

    `spread` is the standard deviation of a method's figures over seeds, which also holds the luck
    of the prompts; if `paired`, of their differences seed by seed. The result is in the unit of
    `spread`; nan below SEEDS seeds.
    """
    if seeds < SEEDS:
        return math.nan
    df = seeds - 1 if paired else 2 * (seeds - 1)
    critical = float(special.stdtrit(df, 1 - LEVEL / 2))

    def excess(shift: float) -> float:
        # a noncentral t above the critical value; at such a power it is never below the other one
        return 1 - float(special.nctdtr(df, shift, critical)) - POWER

    from scipy import optimize  # which takes longer to load than a page to be made

    return (
        float(optimize.brentq(excess, 0.0, WIDEST))
        * spread
        * math.sqrt((1 if paired else 2) / seeds)
    )


def _phi(both: float, one: float, other: float, none: float) -> float:
    """Return the correlation of the pair; a positive one is corrected for continuity.

    The correction makes it method 10.
    """
    margins = (both + one) * (other + none) * (both + other) * (one + none)
    product = both * none - one * other
    if product > 0:
        product = max(product - (both + one + other + none) / 2, 0.0)
    return product / math.sqrt(margins) if margins > 0 else 0.0


def _reach(near: float, far: float, phi: float) -> float:
    return math.sqrt(max(near**2 - 2 * phi * near * far + far**2, 0.0))


def _share(percent: float) -> float:
    if not 0 <= percent <= 100:
        raise ValueError(f"{percent} percent: give one between 0 and 100")
    return percent / 100


def _root(excess: Callable[[float], float], widest: float) -> float:
    """Return where the excess over the need becomes positive, in points; nan where it does not."""
    if widest <= 0 or excess(widest) < 0:
        return math.nan
    from scipy import optimize

    return 100 * float(optimize.brentq(excess, NEAR, widest))
