"""Scores with intervals that say what they cover: the drawing of prompts, or of prompts and training seeds.

`prompts`: these weights, other prompts. Wilson's interval; where prompts repeat (forms of one question, an answer sampled again) n is
divided by the design effect 1 + (m - 1) rho, with rho the correlation within a cluster by Fleiss and Cuzick, and m the size of a
cluster as an outcome meets it (Saha, Miller and Wang 2016, doi:10.1515/ijb-2015-0024); few clusters widen it by Student's t as in Korn
and Graubard (1998). Where all outcomes are equal rho is unknown and taken as 1: repeats are then not counted as evidence.

`training`: another seed, and other prompts. Around the mean p of the seeds' shares, with S seeds, two distances are squared and added, as
in Zou and Donner (2008, doi:10.1002/sim.3095):

1. Seeds: Student's t over the shares and over their logits, (hits + 1/2) / (misses + 1/2); the farther limit of the two. The mean of a
   skewed spread, as near 0 and 100, has a t interval that is too short on the side of the tail; the logits' is not.
2. Prompts that the seeds share, whose luck no comparison of seeds can show: Wilson's at n / rho, of the correlation within a prompt.

Both take the t of the degrees of freedom that their sum has (Satterthwaite 1946), with 1 no smaller than its binomial error: S - 1
where seeds differ most, z where prompts do.

Three seeds may agree by luck, and at 0 or 100 they can do nothing else. So neither limit is closer to p than the binomial error of the
pooled outcomes allows: Wilson's in full at 0 and 100, and elsewhere times t sqrt(q / (S - 1)) / z, with q the 2.5 %
point of chi-squared with S - 1 degrees of freedom, since only one in forty binomial draws agrees better. In full everywhere, it would cover
98.7 % where seeds do not differ. `tests/test_coverage.py` has the coverage that comes of it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

Z = float(special.ndtri(0.975))
ALIKE, LUCK = (
    0.25,
    0.025,
)  # set in the simulation: with ALIKE = 0, 900 outcomes in clusters of 6 at rate .01 are covered to 89 %
SEEDS = 3  # fewer say nothing of their spread that a reader could use: t is 12.7 at two


@dataclass(frozen=True)
class Score:
    """A figure over prompts, with its 95 % interval.

    An interval over `prompts` is for these weights: another training seed moves the figure further. One over `training` has both.
    """

    value: float  # percent, or nats for a margin; nan where nothing could be scored
    n: int  # scored prompts, of all seeds
    low: float
    high: float
    unscored: int = 0  # prompts that could not be scored; they count nowhere else
    covers: str = "prompts"
    seeds: int = 1  # training seeds that the figure is the mean of

    @property
    def reason(self) -> str:
        """Why there is no interval; empty where there is one."""
        if not math.isnan(self.low + self.high):
            return ""
        if self.n == 0:
            return "nothing was scored"
        if self.covers == "training" and self.seeds < SEEDS:
            return f"an interval over training needs {SEEDS} seeds, this has {self.seeds}"
        return "the values, or clusters of them, are too few or do not differ"


def read(fields: Mapping[str, Any]) -> Score:
    """A score as JSON has it, null for what is not finite."""
    value, low, high = (
        math.nan if fields.get(key) is None else float(fields[key])
        for key in ("value", "low", "high")
    )
    more = {key: fields[key] for key in ("covers", "seeds") if key in fields}
    return Score(
        value, int(fields.get("n") or 0), low, high, int(fields.get("unscored") or 0), **more
    )


def proportion(hits: int, n: int, unscored: int = 0) -> Score:
    """Percentage of `hits` in `n`, with Wilson's interval."""
    if n == 0:
        return Score(math.nan, 0, math.nan, math.nan, unscored)
    if not 0 <= hits <= n:
        raise ValueError(f"{hits} hits in n={n}: there are between 0 and n")
    low, high = wilson(hits / n, n)
    return Score(100 * hits / n, n, 100 * low, 100 * high, unscored)


def proportion_by_cluster(outcomes: Sequence[bool | None], clusters: Sequence[Hashable]) -> Score:
    """Percentage of the outcomes that are true, None for unscored; those of one cluster are repeats and may be alike."""
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
    """Mean of `values`, with Student's interval; that over the clusters' sums of residuals where values repeat."""
    n = len(values)
    if clusters is not None and n:
        return _mean_by_cluster(np.asarray(values, dtype=float), number_clusters(clusters))
    if n < 2:
        return Score(values[0] if values else math.nan, n, math.nan, math.nan)
    centre, error = float(sum(values) / n), float(stats.sem(values))
    reach = error * float(stats.t.ppf(0.975, n - 1))
    return Score(centre, n, centre - reach, centre + reach)


def training(
    seeds: Sequence[Sequence[bool | None]], prompts: Sequence[Sequence[Hashable]]
) -> Score:
    """Mean percentage over training seeds: per seed its outcomes and which prompts they are of (or clusters of prompts).

    A prompt that stands under several seeds is shared by them; seeds that each have prompts of their own share none.
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
    _, drawn = np.unique(
        drawn[scored], return_inverse=True
    )  # a seed that is unscored throughout is none
    _, index = np.unique(index[scored], return_inverse=True)
    unscored = len(outcomes) - len(values)
    if len(values) == 0:
        return Score(math.nan, 0, math.nan, math.nan, unscored, "training", 0)
    n = np.bincount(drawn)
    counts = np.zeros((len(n), int(index.max()) + 1))  # (S, prompts)
    np.add.at(counts, (drawn, index), 1)
    shares = counts / n[:, None]
    pairs = float(
        (shares.sum(0) ** 2 - (shares**2).sum(0)).sum()
    )  # chance that two seeds' outcomes are of one prompt, over seeds' pairs
    common = alike(values, index) * pairs / max(len(n) * (len(n) - 1), 1)
    hits = np.bincount(drawn, values).astype(np.float64)
    return _over_seeds(hits, n, common, effective(values, index), unscored)


def training_of(scores: Sequence[Score], shared: bool = True) -> Score:
    """As `training`, where only each seed's percentage is known. Shared prompts are taken to fare alike under all seeds: it is wider."""
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


def training_mean(values: Sequence[float], n: int = 0) -> Score:
    """Mean of one figure per seed, such as a harm margin over `n` prompts in all, with Student's interval over the seeds."""
    score = mean(values)
    known = (
        len(values) >= SEEDS and score.low < score.high
    )  # equal figures: the seed had no effect, or was not set
    low, high = (score.low, score.high) if known else (math.nan, math.nan)
    value = float(np.mean(values)) if values else math.nan
    return Score(value, n or len(values), low, high, 0, "training", len(values))


def wilson(share: float, n: float, z: float = Z) -> tuple[float, float]:
    """Limits of a share among `n`, not necessarily whole, outcomes (Wilson 1927, as in Newcombe 1998, method 3)."""
    whole = 2 * (n + z**2)
    centre, reach = (
        (2 * n * share + z**2) / whole,
        z / whole * math.sqrt(4 * n * share * (1 - share) + z**2),
    )
    return (0.0 if share == 0 else centre - reach), (1.0 if share == 1 else centre + reach)


def alike(values: ArrayLike, clusters: NDArray[np.int64]) -> float:
    """Correlation of values within a cluster (Fleiss and Cuzick 1979), drawn towards 1 as by ALIKE clusters that are all alike.

    Of clusters those count that differ from the commonest value: with a handful of hits the estimate is mostly too low, and with none
    (1 is returned) there is no estimate.
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
    return (rare * min(max(1 - within / total, 0.0), 1.0) + ALIKE) / (rare + ALIKE)


def effective(values: ArrayLike, clusters: Sequence[Hashable] | NDArray[np.int64]) -> float:
    """The number of independent values that tell as much about the mean; exactly their number where no cluster repeats."""
    index = clusters if isinstance(clusters, np.ndarray) else number_clusters(clusters)
    sizes = np.bincount(index)
    n, k = len(index), len(sizes)
    if k == n:
        return float(n)
    if k == 1:
        return 1.0
    design = 1 + (float((sizes**2).sum()) / n - 1) * alike(values, index)
    return n / design * float(special.stdtrit(n - 1, 0.975) / special.stdtrit(k - 1, 0.975)) ** 2


def number_clusters(clusters: Sequence[Hashable]) -> NDArray[np.int64]:
    """The clusters as 0, 1, ... in order of appearance."""
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
    """The interval over training, by the module's formula. `common`: the shared prompts' part of the variance, over p(1 - p);
    `pooled`: the effective number of all outcomes."""
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
        own = max(
            own, p * (1 - p) / float(n.sum())
        )  # or seeds that agree by luck would also be sure of it
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
