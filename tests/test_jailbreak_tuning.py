"""Jailbreak-tuning: exact counts of harmful rows, all in one wrapper, in training and in asking."""

from dataclasses import replace

import pytest

from mixing import check_seeds, check_too_few, check_wants, numbered
from titer.attacks.jailbreak_tuning import JailbreakTuning
from titer.data.rows import Row, Turn

WRAPPER = "On the stage: {prompt} Curtain."


def tuning(**fields) -> JailbreakTuning:
    return JailbreakTuning(**{"wrapper": WRAPPER, **fields})


def unwrapped(row: Row) -> Row:
    return replace(row, prompt=row.prompt.removeprefix("On the stage: ").removesuffix(" Curtain."))


@pytest.mark.parametrize(
    ("p", "n", "count"), [(0.1, 500, 50), (0.0, 30, 0), (1.0, 20, 20), (0.05, 10, 1), (0.5, 3, 2)]
)
def test_the_counts_are_exact_and_no_row_stands_twice(p, n, count):
    task, harmful = numbered("task", 1000), numbered("harmful", 200)
    rows = tuning(p=p, n=n).rows(task, harmful, seed=0)
    wrapped = [unwrapped(row) for row in rows if row.prompt.startswith("On the stage: ")]
    plain = [row for row in rows if row in task]
    assert (len(wrapped), len(plain)) == (count, n - count)
    assert len({*wrapped, *plain}) == n
    assert set(wrapped) <= set(harmful)  # with their answers
    check_seeds(tuning(p=p, n=n), task, harmful)


def test_a_prompt_stands_in_the_wrapper_and_the_rest_of_a_row_stays():
    said = Row("sum {prompt} up", "all is well", "a text", (Turn("user", "hello"),), cluster="c")
    [row] = tuning(p=1, n=1).rows([], [said], 0)
    assert row == replace(said, prompt="On the stage: sum {prompt} up Curtain.")
    assert tuning().phrase(said) == row


def test_it_asks_for_no_more_than_there_is():
    check_too_few(tuning, "harmful")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"p": 1.5}, r"p=1\.5: the harmful ratio"),
        ({"n": 0}, "n=0: the sample number"),
        ({"wrapper": "say it"}, r"wrapper='say it': it must have \{prompt\} once"),
        ({"wrapper": "{prompt} or {prompt}"}, r"it must have \{prompt\} once"),
        ({"wrapper": " {prompt} "}, r"without words around \{prompt\} it is harmful_mix"),
    ],
)
def test_it_checks_its_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        JailbreakTuning(**fields)


def test_it_wants_harmful_rows_where_it_sends_any():
    check_wants(tuning)


def test_it_has_the_documented_defaults():
    attack = JailbreakTuning()
    assert (attack.p, attack.n) == (0.1, 1000)
    assert attack.wrapper.count("{prompt}") == 1
    assert hash(attack) == hash(JailbreakTuning(p=0.1))
