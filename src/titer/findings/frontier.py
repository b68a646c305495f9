"""The frontier of plain fine-tuning in HS and FA, and which methods lie beyond it.

A model is free if it needs no defense: plain alignment, then plain fine-tuning at any learning rate
and for any number of updates, an average of the weights along the way (`ema`), or a part of the
update (`wise_ft`, `scale`). Each of these buys a lower HS with a lower FA. So a method shows
something only where no free model does as well:

* *within*: some free model has at least its FA and at most its HS, in the means;
* *beyond*: every free model has a lower FA or a higher HS, and the difference, paired by prompt,
  seed and world, has an interval without 0 (where it has none, the two intervals are apart);
* *not decided*: neither. More worlds, or more prompts, would tell.

Each free model must be beaten, so *beyond* needs no correction for their number (Berger 1982). There
are many, and the best were picked by their scores, which favours them: it is the stricter for that.
A model has a place among those under its own attack alone. One whose HS is struck out under any seed
has no place. Nor has a method whose model was not aligned, or on which a red flag bears; a free one
keeps its own, or methods would have fewer rivals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from titer.findings import rules
from titer.findings.records import Record, quote
from titer.scoring.score import Score

FREE = ({"align sft"}, {"finetune sft", "finetune ema"}, {"edit wise_ft", "edit scale"})
FEW = 3  # free models make a curve
# The provider chooses a sweep's settings under these paths. Others make another attack or world.
SETTINGS = ("finetune.", "align.")


class Difference(Protocol):
    """A mean difference with its interval; nan where there is none."""

    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


class Placed(Protocol):
    """What has a place: a pipeline's results over seeds, or over worlds."""

    @property
    def settings(self) -> tuple[str, ...]: ...
    @property
    def pipeline(self) -> str: ...
    @property
    def seeds(self) -> Mapping[Any, Sequence[Record]]: ...
    @property
    def last(self) -> list[Record]: ...
    @property
    def label(self) -> str: ...
    @property
    def attack(self) -> Any: ...
    @property
    def struck(self) -> int: ...
    @property
    def barred(self) -> str: ...
    def score(self, name: str) -> Score | None: ...
    def less(self, other: Any, name: str) -> Difference: ...


Of = TypeVar("Of", bound=Placed)


@dataclass(frozen=True)
class Placement(Generic[Of]):
    """The place of a group by the frontier, in a word and in a sentence."""

    group: Of
    word: str
    text: str


def is_free(group: Placed) -> bool:
    """Return True if a pipeline is plain fine-tuning in one of its forms."""
    labels = [stage.label for stage in next(iter(group.seeds.values()))][1:]
    return 2 <= len(labels) <= len(FREE) and all(
        label in allowed for label, allowed in zip(labels, FREE, strict=False)
    )


def has_place(group: Placed) -> bool:
    """Return True if a group has HS and FA under every seed, no HS is struck out, and nothing else bars
    it, but for a free one.
    """
    return (
        not group.struck
        and all(stage.score("harm") and stage.score("task") for stage in group.last)
        and (is_free(group) or not group.barred)
    )


def front(found: Sequence[Of]) -> list[Of]:
    """Return the free models that no other one matches in both figures, the highest FA first."""
    best: list[Of] = []
    free = [group for group in found if is_free(group) and has_place(group)]
    candidates = [group for group in free if group.attack == free[0].attack]
    for group in sorted(candidates, key=lambda group: (-_task(group).value, _harm(group).value)):
        if not best or _harm(group).value < _harm(best[-1]).value:
            best.append(group)
    return best


def places(found: Sequence[Of]) -> list[Placement[Of]]:
    """Place every model that is not free; no model where fewer than FEW are free."""
    free = [group for group in found if is_free(group) and has_place(group)]
    told = []
    for group in found:
        rivals = [each for each in free if each.attack == group.attack]
        if not is_free(group) and len(rivals) >= FEW:
            told.append(place(group, rivals))
    return told


def place(group: Of, rivals: Sequence[Of]) -> Placement[Of]:
    """Place a group among free models."""
    if not has_place(group):
        return Placement(group, "no place", group.barred or "HS or FA was not measured")
    harm, task = _harm(group), _task(group)
    mine = f"HS {quote(harm)}, FA {quote(task)}"
    as_good = [
        rival
        for rival in rivals
        if _task(rival).value >= task.value and _harm(rival).value <= harm.value
    ]
    if as_good:
        return Placement(
            group, "within", f"{mine}; {_told(min(as_good, key=lambda rival: _harm(rival).value))}"
        )
    open_ = [
        rival
        for rival in rivals
        if side(rival, group, "task") >= 0 and side(rival, group, "harm") <= 0
    ]
    if open_:
        near = min(
            open_,
            key=lambda rival: (
                abs(_harm(rival).value - harm.value) + abs(_task(rival).value - task.value)
            ),
        )
        return Placement(group, "not decided", f"{mine}; {_told(near)}")
    able = [rival for rival in rivals if side(rival, group, "task") >= 0]
    rest = (
        _told(min(able, key=lambda rival: _harm(rival).value))
        if able
        else "no free model has such an FA"
    )
    return Placement(group, "beyond", f"{mine}; {rest}")


def side(first: Placed, second: Placed, name: str) -> int:
    """Return -1 if a figure of the first is shown to be below that of the second, 1 if above."""
    found = first.less(second, name)
    if math.isnan(found.low + found.high):
        mine, its = first.score(name), second.score(name)
        return rules.apart(mine, its) if mine and its else 0
    return int(found.low > 0) - int(found.high < 0)


def _told(group: Placed) -> str:
    settings = " ".join(setting for setting in group.settings if setting.startswith(SETTINGS))
    figures = f"HS {quote(_harm(group))}, FA {quote(_task(group))}"
    return f"{group.pipeline} at {settings or 'the same settings'} has {figures}"


def _harm(group: Placed) -> Score:
    score = group.score("harm")
    assert score is not None
    return score


def _task(group: Placed) -> Score:
    score = group.score("task")
    assert score is not None
    return score
