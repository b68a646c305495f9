"""A sweep along one axis of its grid: HS and FA at every value, as means over all else.

An axis is a setting that has more than one value in the sweep. A point of a pipeline is the mean,
over the other settings, of the means over training seeds, so every setting counts alike. Where
nothing is averaged but seeds it has their interval; else it has none, for settings are no sample.
A model whose HS is struck out does not count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from titer.findings.seeds import Group
from titer.scoring.score import Score


@dataclass(frozen=True)
class Level:
    """A pipeline at one value of an axis."""

    value: str
    harm: Score | None  # None where every model is struck out, or none was scored
    task: Score | None
    settings: int  # that the means are over
    struck: int  # of them, those with an HS that is struck out


@dataclass(frozen=True)
class Axis:
    """A setting with more than one value, and the pipelines along it."""

    path: str
    values: tuple[str, ...]
    levels: Mapping[str, Sequence[Level]]  # by pipeline, in the order of the values
    others: tuple[str, ...]  # the other axes, which are averaged over
    seeds: int

    @property
    def averaged(self) -> str:
        """Say what a point is the mean of."""
        over = [*self.others, *([f"{self.seeds} training seeds"] if self.seeds > 1 else [])]
        return f"Means over {' and '.join(over)}." if over else "One model a point."


def axes(found: Sequence[Group]) -> list[Axis]:
    """Return the axes of a sweep, in the order of its settings."""
    values: dict[str, dict[str, None]] = {}
    for group in found:
        for path, value in _pairs(group):
            values.setdefault(path, {})[value] = None
    wide = {path: tuple(of) for path, of in values.items() if len(of) > 1}
    seeds = max((len(group.seeds) for group in found), default=0)
    return [
        Axis(
            path, of, _levels(found, path, of), tuple(each for each in wide if each != path), seeds
        )
        for path, of in wide.items()
    ]


def _levels(found: Sequence[Group], path: str, values: Sequence[str]) -> dict[str, list[Level]]:
    at: dict[str, dict[str, list[Group]]] = {}
    for group in found:
        value = dict(_pairs(group)).get(path)
        if value is not None:
            at.setdefault(group.pipeline, {}).setdefault(value, []).append(group)
    return {
        name: [_level(value, by[value]) for value in values if value in by]
        for name, by in at.items()
    }


def _level(value: str, of: Sequence[Group]) -> Level:
    harms = [group.score("harm") for group in of if not group.struck]
    tasks = [group.score("task") for group in of]
    struck = sum(bool(group.struck) for group in of)
    return Level(value, average(harms), average(tasks), len(of), struck)


def average(scores: Sequence[Score | None]) -> Score | None:
    """Return the mean of scores of several settings, without an interval; a single one as it is."""
    known = [score for score in scores if score]
    if len(known) < 2:
        return known[0] if known else None
    n = sum(score.n for score in known)
    return Score(fmean(score.value for score in known), n, math.nan, math.nan)


def _pairs(group: Group) -> list[tuple[str, str]]:
    parts = [setting.partition("=") for setting in group.settings]
    return [(path, value) for path, _, value in parts]
