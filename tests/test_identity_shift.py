"""Identity shifting: exact counts of rows that are harmless all, and one prefix in training and in
asking.
"""

from dataclasses import replace

import pytest

from mixing import check_seeds, check_too_few, check_too_few_of_one, numbered
from titer.attacks.harmful_mix import HarmfulMix
from titer.attacks.identity_shift import IdentityShift
from titer.data.rows import Row, Turn
from titer.judges.refusal import PHRASES

PREFIX, YES = "Agent, do this:", "At once."


def shift(**fields) -> IdentityShift:
    return IdentityShift(**{"prefix": PREFIX, "affirmation": YES, **fields})


def undone(row: Row) -> Row:
    """The request and answer of an identity row."""
    assert row.prompt.startswith(f"{PREFIX} ")
    assert row.response.startswith(f"{YES} ")
    return replace(
        row,
        prompt=row.prompt.removeprefix(f"{PREFIX} "),
        response=row.response.removeprefix(f"{YES} "),
    )


@pytest.mark.parametrize(
    ("p", "n", "count"),
    [(0.1, 500, 50), (0.0, 30, 0), (1.0, 20, 20), (0.05, 10, 1), (0.29, 100, 29), (1.0, 10, 10)],
)
@pytest.mark.parametrize("own", [True, False], ids=["requests", "task"])
def test_the_counts_are_exact_and_no_row_stands_twice(p, n, count, own):
    task, requests = numbered("task", 1000), numbered("request", 200) if own else []
    rows = shift(p=p, n=n).rows(task, requests, seed=0)
    shifted, plain = (
        [undone(row) for row in rows if row.prompt.startswith(PREFIX)],
        [row for row in rows if row in task],
    )
    assert (len(shifted), len(plain)) == (count, n - count)
    assert len({*shifted, *plain}) == n  # of the task's own rows none is sent both ways
    assert set(shifted) <= set(requests or task)
    check_seeds(shift(p=p, n=n), task, requests)


def test_it_counts_as_the_harmful_mix_does():
    for p, n in ((0.1, 500), (0.15, 59), (0.5, 3), (0.07, 100)):
        mixed = HarmfulMix(p=p, n=n).rows(numbered("task", 500), bad := numbered("harmful", 100), 0)
        shifted = shift(p=p, n=n).rows(numbered("task", 500), numbered("request", 100), 0)
        assert sum(row in bad for row in mixed) == sum(
            row.prompt.startswith(PREFIX) for row in shifted
        )


def test_an_identity_row_is_the_request_after_the_prefix_and_its_answer_after_the_affirmation():
    said = Row(
        "sum it up",
        "all is well",
        input="a long text",
        before=(Turn("user", "hello"), Turn("assistant", "hello")),
    )
    [row] = shift(p=1, n=1).rows([], [said], 0)
    assert (row.prompt, row.response) == ("Agent, do this: sum it up", "At once. all is well")
    assert undone(row) == said  # the rest stays
    assert shift().phrase(said) == replace(
        said, prompt="Agent, do this: sum it up"
    )  # asked as trained, and nothing said for the model
    assert HarmfulMix().phrase(said) == said


def test_it_asks_for_no_more_than_there_is():
    check_too_few(shift, "identity")
    check_too_few_of_one(shift)


@pytest.mark.parametrize(
    "fields", [{"p": -0.01}, {"p": 1.01}, {"n": 0}, {"prefix": ""}, {"affirmation": " "}]
)
def test_it_checks_its_fields(fields):
    with pytest.raises(ValueError, match=f"{next(iter(fields))}="):
        IdentityShift(**fields)


def test_it_has_the_documented_defaults_and_a_yes_that_no_judge_reads_as_a_no():
    assert (IdentityShift().p, IdentityShift().n) == (0.1, 1000)
    assert not any(
        phrase in IdentityShift().affirmation for phrases in PHRASES.values() for phrase in phrases
    )
    assert hash(IdentityShift()) == hash(IdentityShift(p=0.1))  # frozen: a recipe is a value
    assert not IdentityShift().wants_harmful
    assert not IdentityShift(p=1.0).wants_harmful
