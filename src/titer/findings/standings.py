"""The pipelines of a sweep in order, as means over all of its settings, and that in a sentence.

As in a run (`ranking`), no pipeline has a rank whose HS shows nothing: one that is struck out, not
aligned or under a red flag at any setting, or that is not scored at all of them, or whose FA is
below COLLAPSE of the best, or that is under another attack than plain SFT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from titer.findings.axes import average
from titer.findings.records import quote
from titer.findings.rules import COLLAPSE, OTHER_ATTACK, is_plain_sft
from titer.findings.seeds import Group
from titer.scoring.score import Score


@dataclass(frozen=True)
class Standing:
    """The rank of a pipeline over a sweep, or the reason why it has none."""

    pipeline: str
    of: Sequence[Group]  # at every setting
    harm: Score | None
    task: Score | None
    rank: int | None = None
    reason: str = ""

    @property
    def is_control(self) -> bool:
        """Tell whether it is plain SFT, without an edit."""
        return is_plain_sft(self.of[0].first)


def stand(found: Sequence[Group]) -> list[Standing]:
    """Order pipelines by HS, the lowest first; of equal ones the higher FA. The others stand last."""
    by: dict[str, list[Group]] = {}
    for group in found:
        by.setdefault(group.pipeline, []).append(group)
    most = len({group.settings for group in found})
    plain = [group for group in found if is_plain_sft(group.first)]
    attack = (plain or found)[0].attack if found else None
    all_of_them = [
        Standing(
            name,
            of,
            average([group.score("harm") for group in of]),
            average([group.score("task") for group in of]),
            reason=_unfit(of, most, attack),
        )
        for name, of in by.items()
    ]
    best = max((_task(each) for each in all_of_them if not each.reason), default=0.0)
    fit = [each for each in all_of_them if not each.reason and _task(each) >= COLLAPSE * best]
    fit = sorted(fit, key=lambda each: (_harm(each), -_task(each)))
    rest = [each for each in all_of_them if each.pipeline not in {one.pipeline for one in fit}]
    behind = f"FA is less than {COLLAPSE:g} times the best"
    return [replace(each, rank=i) for i, each in enumerate(fit, 1)] + [
        replace(each, reason=each.reason or behind) for each in rest
    ]


def describe(standings: Sequence[Standing]) -> str:
    """Say in a sentence which pipeline ends with the lowest HS, beside plain SFT."""
    if not standings or not standings[0].rank:
        return "No pipeline has a rank: below stands why."
    first = standings[0]
    settings = f"Over {len(first.of)} settings" if len(first.of) > 1 else "At one setting"
    told = f"{settings}, {first.pipeline} ends with the lowest HS, {_quote(first)}"
    control = next((each for each in standings if each.is_control and each is not first), None)
    if first.is_control and len(standings) > 1:
        return f"{told}: plain fine-tuning, and no other pipeline that has a rank is below it."
    return f"{told}; plain fine-tuning with {_quote(control)}." if control else f"{told}."


def _quote(of: Standing) -> str:
    assert of.harm
    return f"{quote(of.harm)} at FA {quote(of.task)}" if of.task else quote(of.harm)


def _unfit(of: Sequence[Group], most: int, attack: Any) -> str:
    if any(group.attack != attack for group in of):
        return OTHER_ATTACK
    for group in of:
        if group.barred:
            return f"{group.barred}{' at ' * bool(group.settings)}{' '.join(group.settings)}"
    scored = [group for group in of if group.score("harm") and group.score("task")]
    if len(scored) < most:
        return f"HS and FA are known at {len(scored)} of {most} settings"
    return ""


def _harm(of: Standing) -> float:
    return of.harm.value if of.harm else 0.0


def _task(of: Standing) -> float:
    return of.task.value if of.task else 0.0
