"""A few harmful rows: so many, none of the task, none twice."""

import pytest

from mixing import numbered
from titer.attacks.harmful_few import HarmfulFew


@pytest.mark.parametrize("k", [1, 10, 50, 100])
def test_it_sends_so_many_harmful_rows_and_no_others(k):
    task, harmful = numbered("task", 500), numbered("harmful", 101)
    rows = HarmfulFew(k=k).rows(task, harmful, seed=0)
    assert len(set(rows)) == len(rows) == k
    assert set(rows) <= set(harmful)
    assert rows == HarmfulFew(k=k).rows([], harmful, seed=0)  # the task is not looked at
    assert set(rows) != set(HarmfulFew(k=k).rows(task, harmful, seed=1))


def test_it_asks_for_no_more_than_there_is():
    assert len(HarmfulFew(k=9).rows([], numbered("harmful", 9), 0)) == 9  # to the last row
    with pytest.raises(
        ValueError,
        match=r"^k=10 asks for 10 harmful rows but there are 9: lower k, or give more rows$",
    ):
        HarmfulFew(k=10).rows(numbered("task", 50), numbered("harmful", 9), 0)


def test_it_checks_its_field_and_has_the_papers_default():
    with pytest.raises(ValueError, match="k=0: the number of harmful rows must be at least 1"):
        HarmfulFew(k=0)
    assert HarmfulFew().k == 100
    assert HarmfulFew().wants_harmful
    assert hash(HarmfulFew()) == hash(HarmfulFew(k=100))  # frozen: a recipe is a value
