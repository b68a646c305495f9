"""Exact counts of rows, drawn at random: what a user sends, with an attacker's rows among them."""

import random
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal

from titer.data.rows import Row, identity


def share(p: float, n: int) -> int:
    """Round p n to a whole number, halves up, where p is what is written: the float .145 is less."""
    return int((Decimal(str(p)) * n).to_integral_value(ROUND_HALF_UP))


def draw(
    pool: Sequence[Row], count: int, name: str, rng: random.Random, /, **asking: float
) -> list[Row]:
    """Draw `count` rows of a pool, none twice.

    Where there are too few, the error calls them by `name`, and says which fields are `asking`.
    """
    if count > len(pool):
        fields = ", ".join(f"{field}={value}" for field, value in asking.items())
        raise ValueError(
            f"{fields} {'ask' if len(asking) > 1 else 'asks'} for {count} {name} rows but there "
            f"are {len(pool)}: lower {' or '.join(reversed(asking))}, or give more rows"
        )
    return rng.sample(list(pool), count)


def mix(
    task: Sequence[Row], own: Sequence[Row], name: str, p: float, n: int, rng: random.Random
) -> list[Row]:
    """Draw a share p of n rows from the attacker's `own`, and then the rest from the task's.

    An error calls the attacker's by `name`.
    """
    count = share(p, n)
    rows = draw(own, count, name, rng, p=p, n=n)
    return rows + draw(task, n - count, "task", rng, p=p, n=n)


def split(
    task: Sequence[Row], own: Sequence[Row], count: int, rng: random.Random
) -> tuple[Sequence[Row], Sequence[Row]]:
    """Return the task's rows, and an attacker's harmless ones.

    An attacker without rows of his own takes `count` of the task's, whose prompts are left out
    there.
    """
    if own:
        return task, own
    shuffled = rng.sample(list(task), len(task))
    own = shuffled[:count]
    taken = set(map(identity, own))
    return [row for row in shuffled[count:] if identity(row) not in taken], own


def check_mix(p: float, n: int) -> None:
    """Raise unless a share p of n rows can be drawn: none of them with p=0, the control, alone."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p={p}: the harmful ratio must lie between 0 and 1")
    check_count("n", n, "the sample number")
    if p > 0 and not share(p, n):
        raise ValueError(
            f"p={p}, n={n}: p n rounds to no row, and nobody would attack: raise n or p, or give p=0"
        )


def check_count(field: str, count: int, what: str) -> None:
    """Raise unless a field counts at least one row."""
    if count < 1:
        raise ValueError(f"{field}={count}: {what} must be at least 1")


def check_words(field: str, text: str, why: str) -> None:
    """Raise unless a field has words."""
    if not text.strip():
        raise ValueError(f"{field}={text!r}: {why}")


def check_each(field: str, texts: Sequence[str], why: str) -> None:
    """Raise unless a field has texts, and each has words."""
    if not texts:
        raise ValueError(f"{field}=(): give at least one")
    for text in texts:
        check_words(field, text, why)
