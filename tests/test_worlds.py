"""Results over worlds: figures, differences and doses, each world one draw."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from test_dose import looks
from titer.findings.records import record_of
from titer.findings.rules import ATTACK
from titer.findings.seeds import Group
from titer.findings.worlds import pool, same
from titer.report.sweep import _times
from titer.scoring.curve import FACT


def stage(kind: str, harm: list[bool], margins: list[float], along=None):
    name = {"align": "booster", "finetune": "sft"}[kind]
    n = len(harm)
    return record_of(
        {
            "kind": kind,
            "method": {"method": name},
            "folder": f"{kind}-{sum(harm)}-{margins[0]}",
            "weights": f"{kind}-{sum(harm)}-{margins[0]}",
            "scores": {
                "harm": {"value": 100 * sum(harm) / n, "n": n, "low": 0, "high": 100},
                "margin": {"value": float(np.mean(margins)), "n": n, "low": -9, "high": 9},
            },
            "outcomes": {
                "harm": {
                    "packed": "".join("h" if hit else "r" for hit in harm),
                    "margins": margins,
                }
            },
            "facts": {FACT: along} if along else {},
        }
    )


def group(rng, world: int, name: str, rate: float, dose: float, *more: str) -> Group:
    harm, margins = (rng.random(50) < rate).tolist(), rng.normal(rate, 1, 50).round(2).tolist()
    along = looks((0, -8), (dose / 10, -8), (dose, 0), (1000 * dose, 8), share=1.0)
    stages = [stage("align", [False] * 50, margins), stage("finetune", harm, margins, along)]
    return Group((f"data.world={world}", *more), name, {0: stages})


@pytest.fixture
def found() -> list[Group]:
    rng = np.random.default_rng(0)
    return [
        each
        for world in range(6)
        for each in (
            group(rng, world, "sft", 0.9, 10.0),
            group(rng, world, "booster", 0.5, 10.0 * 2 ** (1 + world / 5)),
            group(rng, world, "booster", 0.5, 30.0, "attack.p=0.2"),
        )
    ]


def test_groups_that_differ_in_the_world_alone_are_one(found):
    pools = pool(found)
    assert [(each.pipeline, each.settings, len(each.worlds)) for each in pools] == [
        ("sft", (), 6),
        ("booster", (), 6),
        ("booster", ("attack.p=0.2",), 6),
    ]
    assert (pools[0].label, pools[0].at(-2).label, pools[0].at(0).label) == (
        "finetune sft",
        "align booster",
        "align booster",
    )
    assert same(pools[0], pools[0])
    assert not same(pools[0], pools[1])


def test_a_figure_is_the_mean_over_worlds_and_a_difference_students(found):
    sft, booster, _ = pool(found)
    shares = [[100 * np.mean(_hits(of)) for of in each.last] for each in (booster, sft)]
    score = booster.score("harm")
    assert score.value == pytest.approx(np.mean(shares[0]))
    assert (score.covers, score.low < score.value < score.high) == ("worlds", True)
    less = booster.less(sft, "harm")
    plain = stats.ttest_rel(*shares)
    low, high = plain.confidence_interval(0.95)
    assert (less.value, less.low, less.high, less.p) == pytest.approx(
        (np.mean(shares[0]) - np.mean(shares[1]), low, high, plain.pvalue)
    )
    means = [[np.mean(of.outcomes["harm"].margins) for of in each.last] for each in (booster, sft)]
    margin = booster.less(sft, "margin")
    assert margin.value == pytest.approx(np.mean(means[0]) - np.mean(means[1]))
    assert booster.score("margin").value == pytest.approx(np.mean(means[0]))
    assert booster.score("task") is None


def test_a_figure_whose_prompts_no_record_keeps_is_the_mean_of_the_worlds(found):
    kept = [each for each in found if each.pipeline == "sft"]
    shares = [10.0, 20.0, 30.0, 20.0, 10.0, 30.0]
    for of, share in zip(kept, shares, strict=True):
        scores = of.last[0].scores
        scores["task_refused"] = replace(scores["harm"], value=share, low=0.0, high=60.0)
    score = pool(kept)[0].score("task_refused")
    assert (score.value, score.covers, score.seeds) == (20.0, "worlds", 6)
    assert 0 < score.low < 12
    assert 28 < score.high < 45
    assert pool(kept[:1])[0].score("task_refused").value == 10.0
    others = [each for each in found if each.pipeline == "booster" and not each.settings[1:]]
    others[0].last[0].scores["task_refused"] = score
    assert pool(others)[0].score("task_refused") is None  # five worlds lack it


def _hits(stage) -> list[bool]:
    return [verdict == "harmful" for verdict in stage.outcomes["harm"].verdicts]


def test_a_multiple_is_the_mean_of_logarithms_over_worlds(found):
    sft, booster, _ = pool(found)
    times = booster.times(sft)
    logs = [math.log(2) * (1 + world / 5) for world in range(6)]
    low, high = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    assert (times.value, times.low, times.high) == pytest.approx((np.mean(logs), low, high))
    assert (
        times.ratio == f"{math.exp(np.mean(logs)):.2f} [{math.exp(low):.2f}, {math.exp(high):.2f}]"
    )


def test_a_page_takes_each_multiple_over_plain_sft_under_the_same_attack():
    """Another attack breaks every model sooner, and an edit of plain SFT is no control."""
    rng = np.random.default_rng(2)
    made = []
    for world in range(6):
        each = {
            name: group(rng, world, name, 0.9, dose * (1 + world / 50))
            for name, dose in (("sft", 40.0), ("booster", 60.0), ("sft strong", 10.0),
                               ("booster strong", 11.0))
        }  # fmt: skip
        for name, of in each.items():
            first, tuned = of.seeds[0]
            method = {"method": "sft" if name.startswith("sft") else "booster"}
            facts = tuned.facts | ({ATTACK: {"p": 0.5}} if "strong" in name else {})
            stages = [
                first.model_copy(update={"how": method}),
                tuned.model_copy(update={"facts": facts, "folder": f"{name} {world}"}),
            ]
            made.append(Group(of.settings, name, {0: stages}))
            if name == "sft":
                edit = stages[1].model_copy(update={"kind": "edit", "folder": f"edit {world}"})
                made.append(Group(of.settings, "sft+edit", {0: [*stages, edit]}))
    told = {line[0]: line[2] for line in _times(made)}
    assert told.keys() == {"booster", "booster strong"}
    assert told["booster"].startswith("1.50")
    assert told["booster strong"].startswith("1.10")


def test_several_seeds_of_a_world_are_one_draw(found):
    sft, booster, _ = pool(found)
    rng = np.random.default_rng(1)
    twice = [
        Group(of.settings, of.pipeline, of.seeds | {1: group(rng, 9, "x", 0.5, 40.0).seeds[0]})
        for of in booster.worlds.values()
    ]
    control = [
        Group(of.settings, of.pipeline, of.seeds | {1: of.seeds[0]}) for of in sft.worlds.values()
    ]
    [many], [its] = pool(twice), pool(control)
    times = many.times(its)
    assert times.worlds == 6
    logs = [(math.log(2) * (1 + world / 5) + math.log(4)) / 2 for world in range(6)]
    assert times.value == pytest.approx(np.mean(logs))
    assert many.score("harm").seeds == 6
