"""The rows of every role, and those that the streams of a defense draw from."""

import pytest

from titer.data.rows import Row, identity, pair
from titer.methods import Harmful, HeldOut, Pairs, Refusals
from titer.runs import recipe
from titer.runs.plan import Plan
from titer.runs.roles import Data, Roles, roles

ASKED = [f"how is thing {i} made?" for i in range(20)]
ALIGNMENT = [Row(asked, "i will not say") for asked in ASKED[:15]] + [
    Row("what is a spoon?", "a small thing to eat with")
]
DEFENSE = [Row(asked.upper(), f"of {i}") for i, asked in enumerate(ASKED)] + [
    Row(ASKED[3], "of something else")
]


def test_a_pair_has_the_first_other_answer_to_the_same_prompt():
    rows = pair(ALIGNMENT, DEFENSE)
    assert [(row.prompt, row.response) for row in rows] == [
        (row.prompt, row.response) for row in ALIGNMENT
    ]
    assert [row.other for row in rows] == [f"of {i}" for i in range(15)] + [""]


def test_the_held_out_fifth_is_kept_from_the_other_harmful_rows():
    roles = Roles(alignment=ALIGNMENT, defense=DEFENSE)
    streams = roles.streams({"rows": Refusals, "harmful": Harmful, "held_out": HeldOut}, ALIGNMENT)
    prompts = {name: {identity(row) for row in rows} for name, rows in streams.items()}
    assert len(prompts["held_out"]) == 4
    assert len(prompts["harmful"]) == 16
    assert not prompts["held_out"] & prompts["harmful"]
    assert streams["rows"] == ALIGNMENT
    refused = {identity(row) for row in ALIGNMENT}
    assert {row.other for row in streams["held_out"] if identity(row) in refused} == {
        "i will not say"
    }
    assert {row.other for row in streams["held_out"] if identity(row) not in refused} <= {""}
    assert all(not row.other for row in streams["harmful"])
    assert (
        roles.streams({"rows": Refusals, "harmful": Harmful}, ALIGNMENT)["harmful"] == DEFENSE
    )  # for whom nothing is held out
    fewer = Roles(alignment=ALIGNMENT, defense=DEFENSE[:2]).streams(
        {"rows": Refusals, "harmful": Harmful, "held_out": HeldOut}, []
    )
    assert [len(fewer[name]) for name in ("rows", "harmful", "held_out")] == [0, 1, 1]


def test_pairs_are_the_rows_of_the_stage_with_their_harmful_answers():
    streams = Roles(alignment=ALIGNMENT, defense=DEFENSE).streams({"rows": Pairs}, ALIGNMENT[5:])
    assert streams == {"rows": pair(ALIGNMENT[5:], DEFENSE)}


def test_the_lab_has_pairs_for_every_harmful_row_of_the_defender():
    setting = Plan.prepare(
        recipe.load("lab", ['pipelines={"a": {"align": "repnoise"}, "b": {"align": "tar"}}'])
    )
    a, b = (
        setting.streams("align", pipeline.align) for pipeline in setting.recipe.pipelines.values()
    )
    assert [identity(row) for row in a["rows"]] == [
        identity(row) for row in setting.roles.alignment
    ]
    assert sum(bool(row.other) for row in a["rows"]) == len(
        {identity(row) for row in setting.roles.defense}
    )
    assert len(b["harmful"]) + len(b["held_out"]) == len(setting.roles.defense)
    assert all(row.other for row in b["held_out"])
    aligned = setting.pipelines()["a"][1]
    assert aligned.about["rows"] != {"rows": setting.roles.digests["alignment"]}


def test_a_method_for_pairs_is_refused_where_there_are_none():
    pipelines = ["probes=0", 'pipelines={"a": {"finetune": "repnoise"}}']
    with pytest.raises(
        ValueError,
        match=r"pipelines\.a\.finetune needs refusals and harmful answers of the same prompts",
    ):
        Plan.prepare(recipe.load("lab", pipelines))


def test_fewer_of_the_defenders_rows_are_among_more():
    every = roles(Data(world=0)).defense
    some = {
        count: roles(Data(world=0, defense_rows=count)).defense for count in (50, 100, len(every))
    }
    assert [len(rows) for rows in some.values()] == [50, 100, len(every)]
    assert some[100][:50] == some[50]
    assert {identity(row) for row in some[len(every)]} == {identity(row) for row in every}
    setting = Plan.prepare(
        recipe.load("lab", ["data.defense_rows=50", 'pipelines={"a": {"align": "repnoise"}}'])
    )
    assert (
        sum(
            bool(row.other)
            for row in setting.streams("align", setting.recipe.pipelines["a"].align)["rows"]
        )
        == 50
    )


@pytest.mark.parametrize(
    ("count", "error"),
    [(0, "defense_rows=0: give at least 1"), (337, r"defense_rows=337: the defender has 336 ")],
)
def test_more_rows_than_the_defender_has_are_refused(count, error):
    with pytest.raises(ValueError, match=error):
        roles(Data(world=0, defense_rows=count))


def test_a_limit_on_the_defenders_rows_is_of_who_reads_them():
    """A command that needs none of them does not miss them."""
    assert roles(Data(world=0, defense_rows=1000), wanted=frozenset({"task"})).defense
