"""Scores with 95 % intervals over the draw of prompts, or of prompts and training seeds.

`prompts`: the same weights on other prompts. This is Wilson's interval. Prompts may repeat, as
forms of one question or as an answer sampled again. Then n is divided by the design effect 1 + (m -
1) rho. Here rho is the correlation within a cluster (Fleiss and Cuzick), and m is the size of the
cluster of an average outcome (Saha, Miller and Wang 2016, doi:10.1515/ijb-2015-0024). With few
clusters, Student's t widens the interval (Korn and Graubard 1998). Where all outcomes are equal,
rho is unknown and is taken as 1, so repeats do not count as evidence.

`training`: another training seed and other prompts. The interval lies around p, the mean of the
shares of S seeds. Two distances are squared and added (Zou and Donner 2008, doi:10.1002/sim.3095):

1. Seeds: Student's t over the shares, and over their logits, (hits + 1/2) / (misses + 1/2). The
   farther of the two limits is used. Near 0 and 100 the shares are skewed, and their t interval is
   too short on the side of the tail; that of the logits is not.
2. Prompts that the seeds share. A comparison of seeds cannot show their luck. This is Wilson's
   interval at n / rho, where rho is the correlation within a prompt.

Both use t with the degrees of freedom of their sum (Satterthwaite 1946), where distance 1 is at
least its binomial error. These are S - 1 where the seeds differ most; where the prompts do, t
becomes z.

Three seeds may agree by luck, and at 0 or 100 they can do nothing else. So both limits keep a least
distance from p, which is the binomial error of the pooled outcomes. At 0 and 100 it is the whole of
Wilson's distance. Elsewhere it is that times t sqrt(q / (S - 1)) / z, with q the 2.5 % point of
chi-squared with S - 1 degrees of freedom: only one in forty binomial draws agrees better. The whole
distance everywhere would cover 98.7 % where seeds do not differ. `tests/test_coverage.py` has the
coverage that results.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from titer.scoring.score import SEEDS, Score

Z = float(special.ndtri(0.975))
# Set in the simulation: with ALIKE = 0, 900 outcomes in clusters of 6 at rate .01 are covered to
# 89 %.
ALIKE, LUCK = 0.25, 0.025


def proportion(hits: int, n: int, unscored: int = 0) -> Score:
    """Return the percentage of `hits` in `n`, with Wilson's interval.

    Raises unless 0 <= hits <= n.
    """
    if n == 0:
        return Score(math.nan, 0, math.nan, math.nan, unscored)
    if not 0 <= hits <= n:
        raise ValueError(f"{hits} hits in n={n}: there are between 0 and n")
    low, high = wilson(hits / n, n)
    return Score(100 * hits / n, n, 100 * low, 100 * high, unscored)


def proportion_by_cluster(outcomes: Sequence[bool | None], clusters: Sequence[Hashable]) -> Score:
    """Return the percentage of the outcomes that are true. None is an unscored outcome.

    Outcomes of one cluster are repeats and may be alike.
    """
    scored = [
        (outcome, cluster)
        for outcome, cluster in zip(outcomes, clusters, strict=True)
        if outcome is not None
    ]
    found = [outcome for outcome, _ in scored]
    score = proportion(sum(found), len(found), len(outcomes) - len(found))
    if not found:
        return score
    low, high = wilson(
        sum(found) / len(found), effective(found, [cluster for _, cluster in scored])
    )
    return replace(score, low=100 * low, high=100 * high)


def mean(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Score:
    """Return the mean of `values`, with Student's interval.

    Where values repeat, in clusters, the interval is over the clusters' sums of residuals.
    """
    n = len(values)
    if clusters is not None and n > 1:
        return _mean_by_cluster(np.asarray(values, dtype=float), number_clusters(clusters))
    if n < 2:
        return Score(values[0] if values else math.nan, n, math.nan, math.nan)
    centre, error = float(sum(values) / n), float(np.std(values, ddof=1)) / math.sqrt(n)
    reach = error * float(special.stdtrit(n - 1, 0.975))
    return Score(centre, n, centre - reach, centre + reach)


def training(
    seeds: Sequence[Sequence[bool | None]], prompts: Sequence[Sequence[Hashable]]
) -> Score:
    """Return the mean percentage over training seeds, with its interval over training.

    Each seed has its outcomes, and the prompt (or the cluster of prompts) of each. A prompt that
    stands under several seeds is shared by them; seeds that each have their own prompts share none.
    """
    index = number_clusters([prompt for row in prompts for prompt in row])
    drawn = np.repeat(np.arange(len(seeds)), [len(row) for row in prompts])
    outcomes = [
        outcome
        for row, of in zip(seeds, prompts, strict=True)
        for outcome, _ in zip(row, of, strict=True)
    ]
    scored = np.array([outcome is not None for outcome in outcomes], dtype=bool)
    values = np.array([bool(outcome) for outcome in outcomes], dtype=float)[scored]
    # a seed whose outcomes are all unscored does not count as a seed
    _, drawn = np.unique(drawn[scored], return_inverse=True)
    _, index = np.unique(index[scored], return_inverse=True)
    unscored = len(outcomes) - len(values)
    if len(values) == 0:
        return Score(math.nan, 0, math.nan, math.nan, unscored, "training", 0)
    n = np.bincount(drawn)
    counts = np.zeros((len(n), int(index.max()) + 1))  # (S, prompts)
    np.add.at(counts, (drawn, index), 1)
    shares = counts / n[:, None]
    # over pairs of seeds, the chance that an outcome of each is of one prompt
    pairs = float((shares.sum(0) ** 2 - (shares**2).sum(0)).sum())
    common = alike(values, index) * pairs / max(len(n) * (len(n) - 1), 1)
    hits = np.bincount(drawn, values).astype(np.float64)
    return _over_seeds(hits, n, common, effective(values, index), unscored)


def training_of(scores: Sequence[Score], shared: bool = True) -> Score:
    """Return what `training` does, from each seed's percentage alone.

    Shared prompts are taken to fare alike under all seeds, so the interval is wider.
    """
    given = [score for score in scores if score.n]
    n = np.array([score.n for score in given], dtype=np.int64)
    hits = np.array([round(score.value * score.n / 100) for score in given], dtype=float)
    unscored = sum(score.unscored for score in scores)
    if not given:
        return Score(math.nan, 0, math.nan, math.nan, unscored, "training", 0)
    return _over_seeds(
        hits,
        n,
        1 / float(n.mean()) if shared else 0.0,
        float(n.mean() if shared else n.sum()),
        unscored,
    )


def training_mean(
    seeds: Sequence[Sequence[float]], clusters: Sequence[Hashable] | None = None
) -> Score:
    """Return the mean over training seeds of a figure in its own unit, with its interval over
    training.

    Such a figure is a harm margin, or a difference of two models. Every seed has the values of the
    same prompts, (S, n), of which some may be repeats. The variance of the seeds' means and that of
    the prompts' (over their clusters) are added; t has the degrees of freedom of their sum. The
    interval is at least as wide as that over the seeds alone.
    """
    values = np.asarray(seeds, dtype=float)
    n = values.size
    score = Score(
        float(values.mean()) if n else math.nan, n, math.nan, math.nan, 0, "training", len(values)
    )
    if not n or len(values) < SEEDS:
        return score
    names = range(values.shape[1]) if clusters is None else clusters
    over_seeds = mean(values.mean(1).tolist())
    over_prompts = mean(values.mean(0).tolist(), names)
    # equal figures: the seed had no effect, or was not set
    if math.isnan(over_prompts.low) or over_seeds.low == over_seeds.high:
        return score
    df = (len(values) - 1, len(set(names)) - 1)
    parts = [
        ((each.high - each.low) / 2 / float(special.stdtrit(of, 0.975))) ** 2
        for each, of in zip((over_seeds, over_prompts), df, strict=True)
    ]
    total = sum(parts)
    of_total = total**2 / sum(part**2 / of for part, of in zip(parts, df, strict=True))
    # three seeds that agree by luck make the sum too sure: no shorter than from the seeds alone
    reach = max(
        math.sqrt(total) * float(special.stdtrit(of_total, 0.975)),
        (over_seeds.high - over_seeds.low) / 2,
    )
    return replace(score, low=score.value - reach, high=score.value + reach)


def training_mean_of(scores: Sequence[Score]) -> Score:
    """Return what `training_mean` does, from each seed's mean alone, without the prompts' part."""
    score = training_mean([[score.value] * 2 for score in scores])  # as if prompts were alike
    return replace(score, n=sum(score.n for score in scores))


def wilson(share: float, n: float, z: float = Z) -> tuple[float, float]:
    """Return the limits of a share of `n` outcomes; `n` need not be whole.

    Wilson 1927, as method 3 in Newcombe 1998.
    """
    whole = 2 * (n + z**2)
    centre, reach = (
        (2 * n * share + z**2) / whole,
        z / whole * math.sqrt(4 * n * share * (1 - share) + z**2),
    )
    return (0.0 if share == 0 else centre - reach), (1.0 if share == 1 else centre + reach)


def alike(values: ArrayLike, clusters: NDArray[np.int64], shrink: float = ALIKE) -> float:
    """Return the correlation of values within a cluster (Fleiss and Cuzick 1979), shrunk towards 1.

    It shrinks as if there were `shrink` more clusters whose values are all alike. The estimate's own
    weight is the number of clusters that hold a value other than the commonest: with few of them it
    is mostly too low. With none there is no estimate, and 1 is returned.
    """
    found, sizes = np.asarray(values, dtype=float), np.bincount(clusters)
    total = float(np.mean((found - found.mean()) ** 2))
    if len(sizes) == len(found):
        return 0.0  # nothing repeats
    if total == 0:
        return 1.0
    kinds, counts = np.unique(found, return_counts=True)
    rare = len(np.unique(clusters[found != kinds[counts.argmax()]]))
    centres = np.bincount(clusters, found) / sizes
    within = float(((found - centres[clusters]) ** 2).sum()) / (len(found) - len(sizes))
    return (rare * min(max(1 - within / total, 0.0), 1.0) + shrink) / (rare + shrink)


def effective(
    values: ArrayLike,
    clusters: Sequence[Hashable] | NDArray[np.int64],
    shrink: float = ALIKE,
) -> float:
    """Return the number of independent values that would tell as much about the mean.

    It is exactly the number of values where no cluster repeats. `shrink` is that of `alike`.
    """
    index = clusters if isinstance(clusters, np.ndarray) else number_clusters(clusters)
    sizes = np.bincount(index)
    n, k = len(index), len(sizes)
    if k == n:
        return float(n)
    if k == 1:
        return 1.0
    design = 1 + (float((sizes**2).sum()) / n - 1) * alike(values, index, shrink)
    return n / design * float(special.stdtrit(n - 1, 0.975) / special.stdtrit(k - 1, 0.975)) ** 2


def number_clusters(clusters: Sequence[Hashable]) -> NDArray[np.int64]:
    """Number the clusters 0, 1, ... in order of appearance."""
    index: dict[Hashable, int] = {}
    return np.array([index.setdefault(cluster, len(index)) for cluster in clusters], dtype=np.int64)


def _mean_by_cluster(values: NDArray[np.float64], clusters: NDArray[np.int64]) -> Score:
    n, k, centre = len(values), int(clusters.max()) + 1, float(values.mean())
    if k < 2:
        return Score(centre, n, math.nan, math.nan)
    sums = np.bincount(clusters, values - centre)
    reach = (
        math.sqrt(k / (k - 1) * float((sums**2).sum())) / n * float(special.stdtrit(k - 1, 0.975))
    )
    return Score(centre, n, centre - reach, centre + reach)


def _over_seeds(
    hits: NDArray[np.float64], n: NDArray[np.int64], common: float, pooled: float, unscored: int
) -> Score:
    """Return the mean over seeds with its interval over training, by the module's formula.

    `common` is the shared prompts' part of the variance, over p(1 - p). `pooled` is the effective
    number of all outcomes.
    """
    s, shares = len(n), hits / n
    p = float(shares.mean())
    score = Score(100 * p, int(n.sum()), math.nan, math.nan, unscored, "training", s)
    if s < SEEDS:
        return score
    t = float(special.stdtrit(s - 1, 0.975))
    logits = np.log((hits + 0.5) / (n - hits + 0.5))
    by_share, by_logit = (t * float(x.std(ddof=1)) / math.sqrt(s) for x in (shares, logits))
    centre = float(logits.mean())
    below = max(by_share, p - float(special.expit(centre - by_logit)))
    above = max(by_share, float(special.expit(centre + by_logit)) - p)
    if common:
        own, drawn = float(shares.var(ddof=1)) / s, p * (1 - p) * common
        # without this, seeds that agree by luck would also be sure of it
        own = max(own, p * (1 - p) / float(n.sum()))
        df = (own + drawn) ** 2 / (own**2 / (s - 1) + drawn**2 * common) if drawn else 1 / common
        joint = float(special.stdtrit(max(df, s - 1), 0.975))
        low, high = wilson(p, 1 / common, joint)
        below, above = (
            math.hypot(below * joint / t, p - low),
            math.hypot(above * joint / t, high - p),
        )
    luck = t * math.sqrt(float(special.chdtri(s - 1, 1 - LUCK)) / (s - 1)) / Z
    low, high = wilson(p, pooled)
    below, above = (
        max(below, (p - low) * (1 if p == 1 else luck)),
        max(above, (high - p) * (1 if p == 0 else luck)),
    )
    return replace(score, low=100 * max(p - below, 0.0), high=100 * min(p + above, 1.0))
