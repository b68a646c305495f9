"""Benign fine-tuning: rows of the task as they are, whatever an attacker has."""

import pytest

from mixing import numbered
from titer.attacks.benign import Benign
from titer.attacks.harmful_mix import HarmfulMix


@pytest.mark.parametrize("n", [1, 30, 199])
def test_it_sends_so_many_rows_of_the_task_and_no_others(n):
    task, own = numbered("task", 200), numbered("request", 50)
    rows = Benign(n=n).rows(task, own, seed=0)
    assert len(set(rows)) == len(rows) == n
    assert set(rows) <= set(task)
    assert rows == Benign(n=n).rows(task, [], seed=0)
    assert set(rows) != set(Benign(n=n).rows(task, own, seed=1))


def test_it_is_a_mix_without_harmful_rows():
    task = numbered("task", 40)
    mixed = HarmfulMix(p=0.0, n=40).rows(task, [], 0)
    assert sorted(mixed, key=str) == sorted(Benign(n=40).rows(task, [], 0), key=str)


def test_it_asks_for_no_more_than_there_is():
    assert len(Benign(n=9).rows(numbered("task", 9), [], 0)) == 9
    with pytest.raises(ValueError, match=r"^n=10 asks for 10 task rows but there are 9: lower n"):
        Benign(n=10).rows(numbered("task", 9), numbered("request", 50), 0)


def test_it_checks_its_field_and_has_the_documented_default():
    with pytest.raises(ValueError, match="n=0: the sample number must be at least 1"):
        Benign(n=0)
    assert Benign().n == 1000
    assert not Benign().wants_harmful
    assert hash(Benign()) == hash(Benign(n=1000))
