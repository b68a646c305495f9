"""Two models on the same prompts, figure by figure: for people, without a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from titer.findings.measured import Measured, check_comparable
from titer.findings.outcomes import change, p_value, smallest, values_of
from titer.scoring.figures import NAMES
from titer.scoring.score import Score


@dataclass(frozen=True)
class Change:
    """A figure of two models, and the difference of the second from the first."""

    figure: str
    name: str
    first: Score
    second: Score
    difference: Score  # 95 %, prompt by prompt
    gained: int | None  # prompts that count under the second model alone; None of a margin
    lost: int | None  # under the first alone
    smallest: float  # the smallest difference that so many prompts would show in 80 % of trials
    shown: bool  # it passes Holm's test over all figures


def compare(first: Measured, second: Measured) -> list[Change]:
    """Compare all figures that both models have. Raises where they do not compare."""
    from titer.scoring.differences import holm

    check_comparable(first, second)
    names = [name for name in first.figures if name in second.figures]
    if not names:
        raise ValueError(f"{first.place} and {second.place} have no figure in common")
    mine, its = first.record, second.record
    shown = holm([p_value(its, mine, name) for name in names])
    changes = []
    for name, is_shown in zip(names, shown, strict=True):
        found = change(its, mine, name)
        gained, lost = (None, None) if name == "margin" else _flips(first, second, name)
        scores = mine.scores[name], its.scores[name]
        changes.append(
            Change(name, NAMES[name], *scores, found, gained, lost, smallest(found), is_shown)
        )
    return changes


def _flips(first: Measured, second: Measured, name: str) -> tuple[int, int]:
    """Count the prompts that count under one model alone: the second, the first."""
    both = list(zip(_values(first, name), _values(second, name), strict=True))
    return both.count((0.0, 1.0)), both.count((1.0, 0.0))


def _values(of: Measured, name: str) -> Sequence[float | None]:
    found = values_of(of.record, name)
    assert found is not None, f"{name} has no outcomes"
    return found.values
