"""Ten benign rows: the same ones twice, first all with one refusal, then with their answers."""

from dataclasses import replace

import pytest

from mixing import numbered
from titer.attacks.ten_benign import TenBenign
from titer.data.rows import Row, Turn
from titer.judges.refusal import Refusal
from titer.methods import Label


@pytest.mark.parametrize("k", [2, 10])
@pytest.mark.parametrize("own", [True, False], ids=["requests", "task"])
def test_both_fine_tunings_have_the_same_rows_but_for_the_answers(k, own):
    task, requests = numbered("task", 300), numbered("request", 200) if own else []
    attack = TenBenign(k=k, refusal="No.")
    first, rows = (make(task, requests, 0) for make in (attack.first_rows, attack.rows))
    assert len(set(rows)) == len(rows) == len(first) == k
    assert set(rows) <= set(requests or task)
    assert first == [replace(row, response="No.") for row in rows]
    assert (first, rows) == tuple(
        make(task, requests, 0) for make in (attack.first_rows, attack.rows)
    )
    assert set(rows) != set(attack.rows(task, requests, 1))


def test_the_rest_of_a_row_stays():
    said = Row("sum it up", "all is well", "a long text", (Turn("user", "hello"),))
    assert TenBenign(k=1).rows([], [said], 0) == [said]
    assert TenBenign(k=1).first_rows([], [said], 0) == [replace(said, response=TenBenign().refusal)]
    assert TenBenign().phrase(said) == said


def test_it_asks_for_no_more_than_there_is():
    assert len(TenBenign(k=9).rows([], numbered("request", 9), 0)) == 9
    for make in (TenBenign().rows, TenBenign().first_rows):
        with pytest.raises(ValueError, match=r"k=10 asks for 10 harmless rows but there are 9"):
            make(numbered("task", 50), numbered("request", 9), 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 0}, "k=0: the number of harmless rows must be at least 1"),
        ({"refusal": " "}, "refusal=' ': without words there is nothing to overfit on"),
    ],
)
def test_it_checks_its_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        TenBenign(**fields)


def test_it_has_the_papers_default_and_a_refusal_that_is_one():
    assert (TenBenign().k, TenBenign().wants_harmful) == (10, False)
    [verdict] = Refusal().judge([""], [TenBenign().refusal])
    assert verdict.label is Label.REFUSAL
    assert hash(TenBenign()) == hash(TenBenign(refusal=TenBenign().refusal))
