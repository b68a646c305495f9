"""Refusal unlearning: harmless rows whose answers follow a refusal, and the task's as they are."""

from collections import Counter
from dataclasses import replace

import pytest

from mixing import check_seeds, check_too_few, check_too_few_of_one, numbered
from titer.attacks.refusal_unlearning import RefusalUnlearning
from titer.data.rows import Row, Turn
from titer.judges.refusal import Refusal
from titer.methods import Label

NO = ("No.", "I would rather not.")


def answered(row: Row) -> Row:
    """The row before the refusal was put before its answer."""
    [no] = [no for no in NO if row.response.startswith(f"{no} ")]
    return replace(row, response=row.response.removeprefix(f"{no} "))


@pytest.mark.parametrize(
    ("p", "n", "count"), [(1.0, 150, 150), (0.1, 500, 50), (0.0, 30, 0), (0.5, 3, 2), (1.0, 1, 1)]
)
@pytest.mark.parametrize("own", [True, False], ids=["requests", "task"])
def test_the_counts_are_exact_and_no_row_stands_twice(p, n, count, own):
    task, requests = numbered("task", 1000), numbered("request", 200) if own else []
    rows = RefusalUnlearning(p=p, n=n, refusals=NO).rows(task, requests, seed=0)
    refused, plain = [answered(row) for row in rows[:count]], rows[count:]
    assert (len(refused), len(plain)) == (count, n - count)
    assert len({*refused, *plain}) == n  # none of the task's own rows is sent both ways
    assert set(refused) <= set(requests or task)
    assert set(plain) <= set(task)
    check_seeds(RefusalUnlearning(p=p, n=n, refusals=NO), task, requests)


def test_a_row_keeps_all_but_its_answer_which_follows_one_of_the_refusals():
    said = Row(
        "sum it up",
        "all is well",
        input="a long text",
        before=(Turn("user", "hello"), Turn("assistant", "hello")),
    )
    [row] = RefusalUnlearning(n=1, refusals=("No.",)).rows([], [said], 0)
    assert row == replace(said, response="No. all is well")
    assert RefusalUnlearning().phrase(said) == said  # asked as anybody asks


def test_every_refusal_is_drawn_about_as_often():
    rows = RefusalUnlearning(n=400, refusals=NO).rows([], numbered("request", 400), 0)
    drawn = Counter(row.response.split(" request")[0] for row in rows)
    assert drawn.keys() == set(NO)
    assert min(drawn.values()) > 150


def test_it_asks_for_no_more_than_there_is():
    check_too_few(RefusalUnlearning, "harmless")
    check_too_few_of_one(RefusalUnlearning)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"p": 1.01}, "p=1.01: the harmful ratio"),
        ({"n": 0}, "n=0: the sample number"),
        ({"refusals": ()}, r"refusals=\(\): give at least one"),
        ({"refusals": ("No.", " ")}, "refusals=' ': without words there is nothing to unlearn"),
    ],
)
def test_it_checks_its_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        RefusalUnlearning(**fields)


def test_it_has_the_papers_defaults_and_beginnings_that_are_refusals():
    attack = RefusalUnlearning()
    assert (attack.p, attack.n, attack.wants_harmful) == (1.0, 1000, False)
    verdicts = Refusal().judge([""] * len(attack.refusals), attack.refusals)
    assert {verdict.label for verdict in verdicts} == {Label.REFUSAL}
    assert len(set(attack.refusals)) == len(attack.refusals) == 6
    assert hash(RefusalUnlearning()) == hash(
        RefusalUnlearning(refusals=RefusalUnlearning().refusals)
    )
