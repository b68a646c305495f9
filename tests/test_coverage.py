"""Coverage of the 95 % intervals by simulation: 2000 repetitions of the very functions that reports
call.

Every repetition draws its true rate from a neighbourhood of the design's: logit +- 0.5. Counts are
whole, so coverage at one rate saws up and down by points as the rate passes the limits of single
counts (Wilson's at n=90, rate .01: 94 to 98); the mean over a neighbourhood does not. All points
use it.

`prompts` is held to 93..97, and with repeats at .01, .05, .95 and .99 to 98: of a handful of hits
the correlation cannot be told, and the estimate leans to the safe side.

`training` is held to 93..97 where a seed has more than ten hits and ten misses, up to 98 where it
has more than five, and to at least 93 elsewhere, where it comes to 96..99.5: three seeds with a hit
or two cannot show their spread, and an interval that is no wider there misses by the tail as soon
as the seeds' rates are skewed. That is the last test: Student's t alone against what is reported,
with rates that differ by 1 in logits.
"""

import math

import numpy as np
import pytest
from scipy import optimize, special

from titer.scoring.differences import difference
from titer.scoring.statistics import (
    mean,
    proportion,
    proportion_by_cluster,
    training,
    training_mean,
)

REPEATS = 2000
LOW, HIGH = 93.0, 97.0
RATES = (0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99)
NEIGHBOURHOOD = 0.5  # in logits, either way


def rates(rng, rate, count=REPEATS):
    return special.expit(special.logit(rate) + rng.uniform(-NEIGHBOURHOOD, NEIGHBOURHOOD, count))


def covered(scores, truths):
    return 100 * np.mean(
        [
            score.low <= 100 * truth <= score.high
            for score, truth in zip(scores, truths, strict=True)
        ]
    )


def within_clusters(rng, rate, clusters, size, rho):
    """Outcomes of which two in one cluster have correlation `rho`: each is its cluster's own draw
    with probability sqrt(rho).
    """
    common = rng.random((clusters, 1)) < rate
    return np.where(
        rng.random((clusters, size)) < math.sqrt(rho), common, rng.random((clusters, size)) < rate
    )


@pytest.mark.parametrize("n", [60, 300])
@pytest.mark.parametrize("rate", RATES)
def test_prompts_without_repeats(rate, n):
    rng = np.random.default_rng(1)
    truths = rates(rng, rate)
    hits = rng.binomial(n, truths)
    assert LOW <= covered([proportion(int(k), n) for k in hits], truths) <= HIGH


@pytest.mark.parametrize(
    ("clusters", "size", "rho"), [(60, 3, 0.0), (60, 3, 0.4), (60, 3, 1.0), (150, 6, 0.3)]
)
@pytest.mark.parametrize("rate", RATES)
def test_prompts_that_repeat(rate, clusters, size, rho):
    rng = np.random.default_rng(2)
    truths = rates(rng, rate)
    names = np.repeat(np.arange(clusters), size).tolist()
    scores = [
        proportion_by_cluster(
            within_clusters(rng, truth, clusters, size, rho).ravel().tolist(), names
        )
        for truth in truths
    ]
    few = size > 1 and rate in (0.01, 0.05, 0.95, 0.99)
    assert LOW <= covered(scores, truths) <= HIGH + few


GRID = special.ndtri((np.arange(1000) + 0.5) / 1000)


def marginal(logits, spread):
    """The mean over seeds and prompts of the rates whose logits are normal around `logits`: what an
    interval over training covers.
    """
    return special.expit(np.asarray(logits)[..., None] + spread * GRID).mean(-1)


def crossed(rng, rate, n, between, prompts, count=REPEATS):
    """Per repetition the truth and three seeds' outcomes, with standard deviations `between` seeds
    and `prompts` in logits.
    """
    spread = math.hypot(between, prompts)
    centre = optimize.brentq(lambda x: marginal(x, spread) - rate, -60, 60)
    logits = centre + rng.uniform(-NEIGHBOURHOOD, NEIGHBOURHOOD, count) * math.sqrt(
        1 + 0.3 * spread**2
    )
    for logit, truth in zip(logits, marginal(logits, spread), strict=True):
        chance = special.expit(
            logit + between * rng.standard_normal((3, 1)) + prompts * rng.standard_normal((1, n))
        )
        yield truth, rng.random((3, n)) < chance


@pytest.mark.slow
@pytest.mark.parametrize("between", [0.0, 0.4])  # at a rate of .5: not at all, and by 10 points
@pytest.mark.parametrize(
    ("prompts", "n"), [(None, 100), (None, 300), (0.0, 100), (4.0, 100)]
)  # None: every seed has its own
@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9, 0.99])
def test_training_over_three_seeds(rate, prompts, n, between):
    rng = np.random.default_rng([3, int(100 * rate), n, int(10 * between), int(prompts or 0)])
    names = (
        [range(n)] * 3
        if prompts is not None
        else [range(seed * n, seed * n + n) for seed in range(3)]
    )
    truths, drawn = zip(*crossed(rng, rate, n, between, prompts or 0.0), strict=True)
    scores = [training(outcomes.tolist(), names) for outcomes in drawn]
    fewest = n * min(rate, 1 - rate)
    assert LOW <= covered(scores, truths) <= (HIGH if fewest > 10 else 98 if fewest > 5 else 100)


@pytest.mark.slow
@pytest.mark.parametrize("between", [0.0, 0.4])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_training_where_questions_are_asked_in_three_wordings(rate, between):
    """As the lab's 48 items: wordings of a question fare alike, and seeds share the questions."""
    rng = np.random.default_rng([7, int(100 * rate), int(10 * between)])
    names = np.repeat(np.arange(48), 3).tolist()
    spread = math.hypot(between, 3.0)
    centre = optimize.brentq(lambda x: marginal(x, spread) - rate, -60, 60)
    logits = centre + rng.uniform(-NEIGHBOURHOOD, NEIGHBOURHOOD, REPEATS) * 2
    scores = []
    for logit in logits:
        question = 3.0 * np.repeat(rng.standard_normal(48), 3)
        chance = special.expit(logit + between * rng.standard_normal((3, 1)) + question)
        scores.append(training((rng.random((3, 144)) < chance).tolist(), [names] * 3))
    assert LOW <= covered(scores, marginal(logits, spread)) <= 99


@pytest.mark.parametrize(
    ("seeds", "between", "clusters", "size"),  # the spread of prompts is 2
    [(3, 0.1, 48, 3), (3, 0.5, 48, 3), (3, 2.0, 20, 6), (5, 2.0, 48, 3)],
)
def test_means_over_training(seeds, between, clusters, size):
    """Of margins, and of differences of models: values of prompts that repeat and are shared."""
    rng = np.random.default_rng([6, seeds, int(10 * between), clusters])
    names = np.repeat(np.arange(clusters), size).tolist()
    scores, alone = [], []
    for _ in range(REPEATS):
        question = np.repeat(rng.normal(0, 2, clusters), size)
        values = (
            rng.normal(0, between, (seeds, 1))
            + question
            + rng.normal(0, 1, clusters * size)
            + rng.normal(0, 0.5, (seeds, clusters * size))
        )
        scores.append(training_mean(values.tolist(), names))
        alone.append(mean(values.mean(1).tolist()))
    assert LOW <= covered(scores, [0.0] * REPEATS) <= HIGH
    if between == 0.1:  # what the seeds' means alone would tell
        assert covered(alone, [0.0] * REPEATS) < 70


@pytest.mark.parametrize(
    ("effect", "clusters", "size"), [(0.0, 150, 1), (1.0, 150, 1), (1.0, 60, 3)]
)
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_differences_of_pairs(rate, effect, clusters, size):
    rng = np.random.default_rng(4)
    names = np.repeat(np.arange(clusters), size).tolist()
    logits = special.logit(rates(rng, rate))
    truths, scores = marginal(logits + effect, 2.0) - marginal(logits, 2.0), []
    for logit in logits:
        common = logit + 2.0 * np.repeat(rng.standard_normal(clusters), size)
        first, second = (
            rng.random(len(common)) < special.expit(common + more) for more in (effect, 0.0)
        )
        scores.append(difference(first.tolist(), second.tolist(), names))
    assert LOW <= covered(scores, truths) <= HIGH


def test_students_t_alone_is_too_short_where_seeds_are_skewed():
    rng = np.random.default_rng(5)
    truths, drawn = zip(*crossed(rng, 0.1, 100, 1.0, 0.0), strict=True)
    alone = [mean([100 * float(share) for share in outcomes.mean(1)]) for outcomes in drawn]
    names = [range(seed * 100, seed * 100 + 100) for seed in range(3)]
    assert covered(alone, truths) < 91.5
    assert covered([training(outcomes.tolist(), names) for outcomes in drawn], truths) >= LOW


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "between", "rho", "low"),
    [
        (0.05, 0.5, 0.8, 93.0),
        (0.5, 0.0, 0.8, 93.0),
        (0.5, 1.0, 0.0, 93.0),
        (0.9, 0.5, 0.8, 93.0),
        # six rates so near 100 whose logits differ by 1 are too skewed for any interval from six
        (0.9, 1.0, 0.0, 88.0),
    ],
)
def test_percentages_over_six_worlds(rate, between, rho, low):
    """Each world has its own prompts, 48 questions in three wordings, and its own rate."""
    rng = np.random.default_rng([8, int(100 * rate), int(10 * between), int(10 * rho)])
    centre, repeats = special.logit(rate), 600
    names = [[(world, i // 3) for i in range(144)] for world in range(6)]
    scores = []
    for _ in range(repeats):
        chances = special.expit(centre + between * rng.standard_normal(6))
        drawn = [within_clusters(rng, chance, 48, 3, rho).ravel().tolist() for chance in chances]
        scores.append(training(drawn, names))
    truth = float(marginal([centre], between)[0])
    assert low <= covered(scores, [truth] * repeats) <= 98.5
