"""The change of a figure from one model to another: one rule for every word of a page."""

import math

import numpy as np
import pytest

from titer.findings.outcomes import change, side, smallest
from titer.findings.records import record_of
from titer.scoring.differences import difference
from titer.scoring.statistics import proportion, proportion_by_cluster


def record(hits: list[bool], clusters: list[int] | None, packed: bool = True):
    names = clusters or list(range(len(hits)))
    score = proportion_by_cluster(hits, names)
    fields = {
        "kind": "finetune",
        "method": {"method": "sft"},
        "folder": "x",
        "scores": {"harm": vars(score)},
        "weights": "",
    }
    told = {"packed": "".join("h" if hit else "r" for hit in hits), "clusters": names}
    return record_of(fields | ({"outcomes": {"harm": told}} if packed else {}))


def test_it_is_prompt_by_prompt_and_counts_clusters():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(30), 3).tolist()
    first = [bool(x) for x in np.repeat(rng.random(30) < 0.6, 3)]
    second = [hit and bool(rng.random() < 0.7) for hit in first]
    found = change(record(first, clusters), record(second, clusters), "harm")
    assert found == difference(first, second, [str(name) for name in clusters])
    apart = change(record(first, clusters, False), record(second, clusters, False), "harm")
    assert apart.value == pytest.approx(found.value)
    assert apart.high - apart.low > found.high - found.low  # a pair tells more than two samples


def test_without_outcomes_it_is_newcombes_of_two_samples():
    """Newcombe 1998, method 10 of independent proportions, 56/70 and 48/80: .0524 to .3339."""
    first, second = ([i < hits for i in range(n)] for hits, n in ((56, 70), (48, 80)))
    found = change(record(first, None, False), record(second, None, False), "harm")
    assert (found.low, found.high) == pytest.approx((5.24, 33.39), abs=0.01)
    assert side(record(first, None, False), record(second, None, False), "harm") == 1
    assert side(record(second, None, False), record(first, None, False), "harm") == -1


def test_the_smallest_difference_beside_it_is_shown_in_four_of_five_trials():
    rng, n, rate = np.random.default_rng(1), 300, 0.5
    first = [i < n * rate for i in range(n)]
    smallest_ = smallest(change(record(first, None, False), record(first, None, False), "harm"))
    hits = rng.binomial(n, rate + smallest_ / 100, 2000), rng.binomial(n, rate, 2000)
    shown = 0
    for a, b in zip(*hits, strict=True):
        x, y = proportion(int(a), n), proportion(int(b), n)
        shown += x.value - y.value > math.hypot(x.value - x.low, y.high - y.value)
    assert shown / 2000 == pytest.approx(0.8, abs=0.04)
