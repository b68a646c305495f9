"""What every attack must do that mixes a share p of rows into the task's, n in all: checked once."""

import re
from collections.abc import Callable, Sequence

import pytest

from titer.data.rows import Row
from titer.methods import Attack

Mixing = Callable[..., Attack]  # of p and n


def numbered(name: str, count: int) -> list[Row]:
    return [Row(f"{name} question {i}", f"{name} answer {i}") for i in range(count)]


def check_seeds(attack: Attack, task: Sequence[Row], own: Sequence[Row]) -> None:
    """The seed alone says which rows are drawn."""
    rows = attack.rows(task, own, seed=0)
    assert rows == attack.rows(task, own, seed=0)
    assert set(rows) != set(attack.rows(task, own, seed=1))


def check_too_few(mixing: Mixing, name: str) -> None:
    """An error says which fields ask for what is not there; the last row of a pool is taken."""
    task, own = numbered("task", 50), numbered(name, 9)
    for p, n, asked in (
        (0.1, 100, f"10 {name} rows but there are 9"),
        (0.1, 60, "54 task rows but there are 50"),
        (0.0, 51, "51 task rows but there are 50"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"p={p}, n={n} ask for {asked}")):
            mixing(p=p, n=n).rows(task, own, 0)
    assert len(mixing(p=0.15, n=59).rows(task, own, 0)) == 59


def check_too_few_of_one(mixing: Mixing) -> None:
    """Without rows of its own it takes the task's, and none of them twice."""
    task = numbered("task", 50)
    with pytest.raises(ValueError, match=r"p=0\.1, n=60 ask for 54 task rows but there are 44"):
        mixing(p=0.1, n=60).rows(task, [], 0)
    assert len(mixing(p=0.5, n=50).rows(task, [], 0)) == 50


def check_wants(mixing: Mixing) -> None:
    """It wants harmful rows where it sends any."""
    for p, n, wants in ((0.1, 500, True), (0.0, 500, False), (0.01, 50, True)):
        assert mixing(p=p, n=n).wants_harmful is wants
    with pytest.raises(ValueError, match=r"p=0\.01, n=49: p n rounds to no row"):
        mixing(p=0.01, n=49)
    assert mixing(p=1.0, n=1).wants_harmful is True
