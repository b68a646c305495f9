"""Rows drawn in exact counts, and the errors where there are too few."""

import random
import re

import pytest

from mixing import numbered
from titer.data.mixture import (
    check_count,
    check_each,
    check_mix,
    check_words,
    draw,
    mix,
    share,
    split,
)
from titer.data.rows import Row, identity

TASK, OWN = numbered("task", 50), numbered("own", 9)


@pytest.mark.parametrize(
    ("p", "n", "count"),
    [
        (0.1, 500, 50),
        (0.05, 10, 1),
        (0.29, 100, 29),
        (0.5, 3, 2),
        (0.04, 10, 0),
        (1.0, 1, 1),
        (0.145, 100, 15),
        (0.285, 100, 29),
        (1, 7, 7),
    ],
)
def test_a_share_rounds_halves_up(p, n, count):
    assert share(p, n) == count


def test_rows_are_drawn_by_the_generator_and_none_twice():
    rows = draw(TASK, 20, "task", random.Random("a"), n=20)
    assert rows == random.Random("a").sample(TASK, 20)
    assert len(set(rows)) == 20
    assert len(draw(OWN, 9, "own", random.Random("a"), n=9)) == 9  # to the last row


@pytest.mark.parametrize(
    ("asking", "message"),
    [
        ({"k": 10}, "k=10 asks for 10 own rows but there are 9: lower k, or give more rows"),
        (
            {"p": 0.1, "n": 100},
            "p=0.1, n=100 ask for 10 own rows but there are 9: lower n or p, or give more rows",
        ),
    ],
)
def test_too_few_rows_are_told_with_the_fields_that_ask_for_them(asking, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        draw(OWN, 10, "own", random.Random(0), **asking)


def test_a_mix_has_the_attackers_rows_first():
    rows = mix(TASK, OWN, "own", 0.1, 50, random.Random(0))
    assert (set(rows[:5]) <= set(OWN), set(rows[5:]) <= set(TASK)) == (True, True)
    assert len(set(rows)) == 50
    with pytest.raises(ValueError, match=r"p=0\.2, n=50 ask for 10 own rows but there are 9"):
        mix(TASK, OWN, "own", 0.2, 50, random.Random(0))
    with pytest.raises(ValueError, match=r"p=0\.1, n=60 ask for 54 task rows but there are 50"):
        mix(TASK, OWN, "own", 0.1, 60, random.Random(0))


def test_an_attacker_without_rows_takes_some_of_the_tasks():
    assert split(TASK, OWN, 20, random.Random(0)) == (TASK, OWN)
    task, own = split(TASK, [], 20, random.Random(0))
    assert (len(task), len(own)) == (30, 20)
    assert {*task, *own} == set(TASK)
    assert set(own) != set(TASK[:20])


def test_an_attacker_without_rows_leaves_the_task_no_prompt_of_his():
    repeated = [Row(f"Question  {i // 4}".swapcase() if i % 2 else f"question {i // 4}", str(i))
                for i in range(40)]  # fmt: skip
    task, own = split(repeated, [], 4, random.Random(0))
    assert own == random.Random(0).sample(repeated, 40)[:4]
    assert {*map(identity, task), *map(identity, own)} == set(map(identity, repeated))
    assert not set(map(identity, task)) & set(map(identity, own))


def test_fields_are_checked():
    check_mix(0.0, 1)
    check_mix(1.0, 1)
    check_mix(0.5, 10)
    check_mix(0.01, 50)
    check_count("k", 1, "the count")
    check_words("prefix", " a ", "no words")
    check_each("refusals", ("no", "never"), "no words")
    for check, message in (
        (lambda: check_mix(-0.01, 1), r"p=-0\.01: the harmful ratio must lie between 0 and 1"),
        (lambda: check_mix(1.01, 1), r"p=1\.01: the harmful ratio must lie between 0 and 1"),
        (lambda: check_mix(0.01, 49), r"p=0\.01, n=49: p n rounds to no row"),
        (lambda: check_mix(0.5, 0), "n=0: the sample number must be at least 1"),
        (lambda: check_count("k", 0, "the count"), "k=0: the count must be at least 1"),
        (lambda: check_words("prefix", " ", "no words"), "prefix=' ': no words"),
        (lambda: check_each("refusals", (), "no words"), r"refusals=\(\): give at least one"),
        (lambda: check_each("refusals", ("no", ""), "no words"), "refusals='': no words"),
    ):
        with pytest.raises(ValueError, match=message):
            check()
