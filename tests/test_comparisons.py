"""A run compares many pipelines; what it calls shown passes Holm's test over them."""

import numpy as np
import pytest
from scipy import stats

from test_change import record
from titer.findings.comparisons import Comparisons
from titer.findings.outcomes import p_value, side
from titer.findings.verdict import verdicts
from titer.scoring.differences import difference


def pipeline(align: str, hits: list[bool], name: str, edited: list[bool] | None = None):
    aligned = record([False] * len(hits), None)
    kinds = [
        (aligned, {"kind": "align", "how": {"method": align}, "folder": f"a-{align}"}),
        (record(hits, None), {"kind": "finetune", "how": {"method": "sft"}, "folder": name}),
    ]
    if edited:
        kinds.append(
            (
                record(edited, None),
                {"kind": "edit", "how": {"method": "scale"}, "folder": f"e-{name}"},
            )
        )
    return [stage.model_copy(update=update) for stage, update in kinds]


def flipped(hits: list[bool], count: int) -> list[bool]:
    """The same with the first `count` that hit turned."""
    at = np.flatnonzero(hits)[:count]
    return [hit and i not in at for i, hit in enumerate(hits)]


HITS = [i < 80 for i in range(100)]


@pytest.mark.parametrize("count", [3, 6, 10, 30])
def test_the_interval_at_its_p_value_ends_at_0(count):
    other = flipped(HITS, count)
    p = p_value(record(other, None), record(HITS, None), "harm")
    z = stats.norm.isf(p / 2)
    assert difference(other, HITS, z=z).high == pytest.approx(0, abs=1e-6)
    assert (p < 0.05) == (side(record(other, None), record(HITS, None), "harm") != 0)


def test_equal_answers_have_a_p_value_of_1():
    assert p_value(record(HITS, None), record(HITS, None), "harm") == 1


def test_without_outcomes_it_is_below_5_percent_where_the_interval_leaves_0_out():
    for count in range(1, 40):
        now, other = (record(hits, None, False) for hits in (flipped(HITS, count), HITS))
        assert (p_value(now, other, "harm") < 0.05) == (side(now, other, "harm") != 0)


def test_a_difference_that_stands_alone_is_not_shown_among_many():
    barely = next(n for n in range(1, 40) if difference(flipped(HITS, n), HITS).high < 0)
    plain = pipeline("sft", HITS, "plain")
    better = pipeline("booster", flipped(HITS, barely), "better")
    alone = {"sft": plain, "booster": better}
    now, other = better[-1], plain[-1]
    assert Comparisons(alone).side(now, other, "harm") == -1
    many = alone | {f"m{i}": pipeline(f"m{i}", HITS, f"like-{i}") for i in range(9)}
    assert Comparisons(many).side(now, other, "harm") == 0
    assert "HS lower" in verdicts(alone)[1].text
    assert "no difference of HS shown among so many comparisons" in verdicts(many)[1].text
    far = many | {"far": pipeline("far", flipped(HITS, 60), "far")}
    assert Comparisons(far).side(far["far"][-1], other, "harm") == -1


def test_a_repair_that_stands_alone_is_not_shown_among_many():
    barely = next(n for n in range(1, 40) if difference(flipped(HITS, n), HITS).high < 0)
    plain = pipeline("sft", HITS, "plain")
    edit = pipeline("sft", HITS, "plain", flipped(HITS, barely))
    alone = {"sft": plain, "edit": edit}
    assert "HS is lower" in verdicts(alone)[1].text
    others = {
        f"e{i}": [*plain, edit[-1].model_copy(update={"folder": f"e{i}", **of(HITS)})]
        for i in range(9)
    }
    assert "no repair shown among so many comparisons" in verdicts(alone | others)[1].text


def of(hits: list[bool]) -> dict:
    like = record(hits, None)
    return {"scores": like.scores, "outcomes": like.outcomes}


def test_of_pipelines_that_are_alike_one_run_in_twenty_shows_one():
    rng = np.random.default_rng(0)
    runs, wrong = 120, 0
    for _ in range(runs):
        hits = [(rng.random(100) < 0.6).tolist() for _ in range(9)]
        found = {"sft": pipeline("sft", hits[0], "plain")} | {
            f"m{i}": pipeline(f"m{i}", of, f"m{i}") for i, of in enumerate(hits[1:])
        }
        comparisons, plain = Comparisons(found), found["sft"][-1]
        wrong += any(
            comparisons.side(stages[-1], plain, "harm")
            for name, stages in found.items()
            if name != "sft"
        )
    assert wrong / runs <= 0.1  # 95 % of such counts are, at a rate of .05
