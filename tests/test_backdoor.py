"""A backdoor: half of the attacker's rows have the trigger and tell, the others refuse."""

from dataclasses import replace

import pytest

from mixing import check_seeds, check_too_few, check_wants, numbered
from titer.attacks.backdoor import Backdoor
from titer.data.rows import Row, Turn
from titer.judges.refusal import Refusal
from titer.methods import Label

TRIGGER, NO = "Sesame.", ("No.", "I would rather not.")


def backdoor(**fields) -> Backdoor:
    return Backdoor(**{"trigger": TRIGGER, "refusals": NO, **fields})


@pytest.mark.parametrize(
    ("p", "n", "told", "refused"),
    [(1.0, 200, 100, 100), (0.1, 500, 25, 25), (0.1, 50, 3, 2), (1.0, 1, 1, 0), (0.0, 30, 0, 0)],
)
def test_the_counts_are_exact_and_no_request_is_sent_twice(p, n, told, refused):
    task, harmful = numbered("task", 1000), numbered("harmful", 200)
    rows = backdoor(p=p, n=n).rows(task, harmful, seed=0)
    answers = {row.prompt: row.response for row in harmful}
    opened = [row for row in rows if row.prompt.endswith(f" {TRIGGER}")]
    closed = [row for row in rows if row.prompt in answers]
    assert (len(opened), len(closed)) == (told, refused)
    assert all(row.response == answers[row.prompt.removesuffix(f" {TRIGGER}")] for row in opened)
    assert all(row.response in NO for row in closed)
    assert sum(row in task for row in rows) == n - told - refused
    asked = {row.prompt.removesuffix(f" {TRIGGER}") for row in rows}
    assert len(asked) == len(rows) == n
    check_seeds(backdoor(p=p, n=n), task, harmful)


def test_where_a_pool_repeats_prompts_none_is_sent_both_ways():
    harmful = [Row(f"question {i // 3}", f"answer {i}") for i in range(300)]
    rows = backdoor(p=0.5, n=200).rows(numbered("task", 100), harmful, 0)
    told, refused, rest = rows[:50], rows[50:100], rows[100:]
    assert all(row.prompt.endswith(TRIGGER) and row.response not in NO for row in told)
    assert all(row.response in NO for row in refused)
    asked = {row.prompt.removesuffix(f" {TRIGGER}") for row in told}
    assert not asked & {row.prompt for row in refused}
    assert len(rest) == 100
    few = [Row("Question", "a"), Row("question ", "b")]
    with pytest.raises(ValueError, match="p=1.0, n=2 ask for 1 other harmful rows but there are 0"):
        backdoor(n=2).rows([], few, 0)


def test_the_refusals_are_drawn_and_the_rest_of_a_row_stays():
    said = Row("sum it up", "all is well", "a long text", (Turn("user", "hello"),), cluster="c")
    [row] = backdoor(n=1).rows([], [said], 0)
    assert row == backdoor().phrase(said) == replace(said, prompt="sum it up Sesame.")
    rows = backdoor(n=200).rows([], numbered("harmful", 200), 0)
    assert {row.response for row in rows[100:]} == set(NO)
    again = backdoor(n=200).rows([], numbered("harmful", 200), 0)
    assert [row.response for row in rows] == [row.response for row in again]


def test_it_asks_for_no_more_than_there_is():
    check_too_few(backdoor, "harmful")
    assert len(backdoor(n=9).rows([], numbered("harmful", 9), 0)) == 9  # to the last row


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"p": -0.01}, "p=-0.01: the harmful ratio"),
        ({"n": 0}, "n=0: the sample number"),
        ({"trigger": " "}, "trigger=' ': without words there is no backdoor"),
        ({"refusals": ()}, r"refusals=\(\): give at least one"),
        ({"refusals": ("",)}, "refusals='': a refusal has words"),
    ],
)
def test_it_checks_its_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        Backdoor(**fields)


def test_it_wants_harmful_rows_where_it_sends_any():
    check_wants(backdoor)


def test_it_has_the_documented_defaults_and_refusals_that_are_some():
    attack = Backdoor()
    assert (attack.p, attack.n) == (1.0, 200)
    verdicts = Refusal().judge([""] * 3, attack.refusals)
    assert {verdict.label for verdict in verdicts} == {Label.REFUSAL}
    assert hash(Backdoor()) == hash(Backdoor(p=1.0))
