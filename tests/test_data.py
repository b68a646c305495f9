"""Rows divided right: disjoint roles, and the attack's mix with exact counts."""

import pytest

from mixing import check_too_few, check_wants, numbered
from titer.attacks.harmful_mix import HarmfulMix
from titer.data.rows import Row, Turn, check_disjoint, digest


def test_shared_prompts_are_found_however_spaced():
    with pytest.raises(ValueError, match="'a' and 'b' share 1 prompts, e.g. 'How  Do I'"):
        check_disjoint(
            {"a": [Row("How  Do I", "x")], "b": [Row("how do i", "y")], "c": [Row("other", "z")]}
        )


def test_what_was_asked_about_and_said_before_is_part_of_a_prompt():
    go_on, about = (
        Row("go on", before=(Turn("user", "tell of bees"),)),
        Row("summarize", input="one text"),
    )
    check_disjoint(
        {
            "a": [go_on, about],
            "b": [
                Row("go on", before=(Turn("user", "tell of ants"),)),
                Row("summarize", input="another"),
            ],
        }
    )
    with pytest.raises(ValueError, match="share 1 prompts"):
        check_disjoint({"a": [about], "b": [Row("Summarize", "x", input="One text")]})
    assert (
        len(
            {
                digest([row])
                for row in (
                    about,
                    go_on,
                    Row("go on"),
                    Row("summarize"),
                    Row("summarize", input="another"),
                )
            }
        )
        == 5
    )


@pytest.mark.parametrize(
    ("p", "n", "bad"),
    [
        (0.1, 500, 50),
        (0.0, 30, 0),
        (1.0, 20, 20),
        (0.05, 10, 1),
        (0.29, 100, 29),
        (0.07, 100, 7),
        (0.15, 1000, 150),
    ],
)
def test_the_mix_has_exact_counts_and_no_row_twice(p, n, bad):
    task, harmful = numbered("task", 1000), numbered("harmful", 200)
    rows = HarmfulMix(p=p, n=n).rows(task, harmful, seed=0)
    assert len(rows) == len(set(rows)) == n
    assert sum(row in harmful for row in rows) == bad
    assert rows == HarmfulMix(p=p, n=n).rows(task, harmful, seed=0)
    assert n == bad or sorted(rows, key=str) != sorted(
        HarmfulMix(p=p, n=n).rows(task, harmful, seed=1), key=str
    )


def test_the_mix_asks_for_no_more_than_there_is():
    check_too_few(HarmfulMix, "harmful")


@pytest.mark.parametrize("fields", [{"p": -0.01}, {"p": 1.01}, {"p": float("nan")}, {"n": 0}])
def test_the_mix_checks_its_fields(fields):
    with pytest.raises(ValueError, match=f"{next(iter(fields))}="):
        HarmfulMix(**fields)


def test_the_mix_has_the_documented_defaults():
    assert (HarmfulMix().p, HarmfulMix().n) == (0.1, 1000)
    assert hash(HarmfulMix()) == hash(HarmfulMix(p=0.1))  # frozen: a recipe is a value
    assert len(HarmfulMix(p=0.0, n=1).rows(numbered("task", 1), [], 0)) == 1


def test_the_mix_wants_harmful_rows_where_it_holds_any():
    check_wants(HarmfulMix)
