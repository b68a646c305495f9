"""Rank pipelines by HS, without those whose HS shows nothing.

A model that answers nothing has the lowest HS. So a pipeline has a rank only if `rules` do not
strike out its last model, no red flag bears on it, its model was aligned, its attack is that of
plain SFT, its HS can be judged, and its FA was measured and is near enough to the best one. A model
whose FA is shown to be below COLLAPSE of the best did not learn what the user asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from titer.findings.outcomes import side
from titer.findings.records import Record, quote
from titer.findings.rules import (
    COLLAPSE,
    OTHER_ATTACK,
    find_broken,
    gap,
    is_unaligned,
    own_attack,
    plain,
)
from titer.scoring.score import Score


@dataclass(frozen=True)
class Place:
    """The rank of a pipeline, or the reason why it has none."""

    pipeline: str
    stage: Record  # its last
    rank: int | None  # 1 is the lowest HS; None: no rank
    reason: str = ""  # why there is no rank

    @property
    def harm(self) -> Score | None:
        return self.stage.score("harm")

    @property
    def task(self) -> Score | None:
        return self.stage.score("task")


def rank(
    found: Mapping[str, Sequence[Record]], flagged: Mapping[str, Sequence[str]] | None = None
) -> list[Place]:
    """Order all pipelines by the HS of their last model; of equal ones the higher FA comes first.

    `flagged` names the red flags that bear on a pipeline (`rules.find_flagged`). Pipelines without a
    rank stand at the end.
    """
    struck, marks = find_broken(found), flagged or {}
    control = plain(found)
    attack = own_attack(control[1] if control else next(iter(found.values()), ()))
    places = [
        Place(
            name,
            stages[-1],
            None,
            _unfit(stages, struck, marks.get(name, ()))
            or (OTHER_ATTACK if own_attack(stages) != attack else ""),
        )
        for name, stages in found.items()
    ]
    best = max((place for place in places if not place.reason), key=_task, default=None)
    if best:
        places = [
            Place(place.pipeline, place.stage, None, place.reason or _behind(place, best))
            for place in places
        ]
    fit = sorted(
        (place for place in places if not place.reason),
        key=lambda place: (place.stage.scores["harm"].value, -_task(place)),
    )
    return [Place(place.pipeline, place.stage, i) for i, place in enumerate(fit, 1)] + [
        place for place in places if place.reason
    ]


def _unfit(
    stages: Sequence[Record], struck: Mapping[str, Sequence[str]], marks: Sequence[str]
) -> str:
    stage = stages[-1]
    task = stage.score("task")
    if stage.folder in struck:
        return f"struck out: {'; '.join(struck[stage.folder])}"
    if marks:
        return f"red flag: {'; '.join(marks)}"
    if is_unaligned(stages):
        return "not aligned: before the attack its model already answered most harmful prompts"
    if gap(stage):
        return f"HS cannot be judged: {gap(stage)}"
    if task is None:
        return "FA was not measured, and a model that answers nothing has a low HS too"
    return (
        ""
        if task.value > 0
        else f"FA is {quote(task)}: nothing shows that the model does what the user asked for"
    )


def _behind(place: Place, best: Place) -> str:
    mine, its = place.stage.scores["task"], best.stage.scores["task"]
    if mine.value < COLLAPSE * its.value and side(place.stage, best.stage, "task") < 0:
        return f"FA is {quote(mine)} against {quote(its)} of {best.pipeline}"
    return ""


def _task(place: Place) -> float:
    return place.stage.scores["task"].value
