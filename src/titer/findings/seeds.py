"""A sweep's results by setting and pipeline, as means over training seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from titer.config import hash_of
from titer.findings.outcomes import (
    difference_over_prompts,
    difference_over_training,
    over_training,
    values_of,
)
from titer.findings.records import Record, stages
from titer.findings.rules import find_flagged, is_unaligned, own_attack
from titer.scoring.figures import NAMES
from titer.scoring.score import Score
from titer.scoring.statistics import training_mean, training_mean_of, training_of


class Ends:
    """What a pipeline ends with: its last stage under every seed, or of every world."""

    if TYPE_CHECKING:

        @property
        def seeds(self) -> Mapping[Any, Sequence[Record]]: ...
        @property
        def marks(self) -> Mapping[Any, Sequence[str]]: ...

    @property
    def last(self) -> list[Record]:
        """Return the last stage under every seed."""
        return [stages[-1] for stages in self.seeds.values()]

    @property
    def label(self) -> str:
        return self.last[0].label

    @property
    def attack(self) -> Any:
        """The attack that the pipeline has of its own; None where it is under the recipe's."""
        return own_attack(self.first)

    @property
    def first(self) -> Sequence[Record]:
        """The stages of the first seed, or of the first world and seed."""
        return next(iter(self.seeds.values()))

    @property
    def struck(self) -> int:
        """Count the models whose HS is struck out."""
        return sum(bool(stage.struck) for stage in self.last)

    @property
    def barred(self) -> str:
        """Say why it is held against no other, whatever its figures; empty where it is."""
        unaligned = sum(map(is_unaligned, self.seeds.values()))
        marks = dict.fromkeys(mark for names in self.marks.values() for mark in names)
        if self.struck:
            return f"HS is struck out in {self.struck} of {len(self.seeds)} models"
        if unaligned:
            return f"not aligned in {unaligned} of {len(self.seeds)} models"
        if marks:
            return f"red flag in {len(self.marks)} of {len(self.seeds)} models: {'; '.join(marks)}"
        return ""


@dataclass(frozen=True)
class Group(Ends):
    """A pipeline at one point of the grid: its stages under every training seed."""

    settings: tuple[str, ...]
    pipeline: str
    seeds: Mapping[int, Sequence[Record]]
    # by seed, the red flags that bear on it
    marks: Mapping[int, Sequence[str]] = field(default_factory=dict)
    # every one is asked for many times, and an interval over training takes some milliseconds
    _scores: dict[str, Score | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def score(self, name: str) -> Score | None:
        """Return the mean over seeds of the last stage's figure; None where no seed has it.

        Its interval is over training, and that of a single seed over prompts. It is made from the
        outcome of every prompt where the records have them, else from the seeds' figures alone.
        """
        if name not in self._scores:
            self._scores[name] = self._mean(name)
        return self._scores[name]

    def _mean(self, name: str) -> Score | None:
        ends = [stage for stage in self.last if stage.score(name)]
        if len(ends) < 2:
            return ends[0].score(name) if ends else None
        values = [found for stage in ends if (found := values_of(stage, name))]
        if len(values) == len(ends):
            return over_training(name, values)
        scores = [stage.scores[name] for stage in ends]
        return training_mean_of(scores) if name == "margin" else training_of(scores)

    def less(self, other: Group, name: str) -> Score:
        """Return the mean over seeds of the last stage's figure less the other pipeline's.

        It is seed by seed and prompt by prompt, with its interval over training, and that of one
        seed over prompts; from the seeds' figures alone where the records have no outcomes. It is
        NaN where the two share no seed.
        """
        seeds = [seed for seed in self.seeds if seed in other.seeds]
        mine, its = ([of.seeds[seed][-1] for seed in seeds] for of in (self, other))
        both = [[values_of(stage, name) for stage in of] for of in (mine, its)]
        first, second = ([each for each in of if each] for of in both)
        if seeds and len(first) == len(second) == len(seeds):
            if len(seeds) == 1:
                return difference_over_prompts(name, first[0], second[0])
            return difference_over_training(name, first, second)
        pairs = zip(mine, its, strict=True)
        return training_mean([[a.scores[name].value - b.scores[name].value] * 2 for a, b in pairs])

    def prompts(self, name: str) -> float:
        """Return half the width of the interval over prompts, as a mean over seeds."""
        scores = [score for stage in self.last if (score := stage.score(name))]
        return sum(score.high - score.low for score in scores) / len(scores) / 2

    def outside(self, *paths: str) -> tuple[str, ...]:
        """Return the settings without those under some paths, such as `finetune.`."""
        return tuple(setting for setting in self.settings if not setting.startswith(paths))


def groups(
    cells: Sequence[Mapping[str, Any]], disagreeing: Iterable[Mapping[str, str]] = ()
) -> list[Group]:
    """Return the pipelines of all finished cells, in the order of the grid.

    `disagreeing` are the flags that the seeds of one setting raise together.
    """
    found: dict[tuple[tuple[str, ...], str], Group] = {}
    split = {flag["pipeline"]: [flag["name"]] for flag in disagreeing}
    for cell in cells:
        settings, seed = tuple(cell["settings"]), cell["seed"]
        documents = cell.get("pipelines") or {}
        records = stages(documents)
        raised: Sequence[Mapping[str, str]] = next(
            (document.get("flags", []) for document in documents.values()), []
        )
        marks = find_flagged(raised, records)
        for name, of in records.items():
            group = found.setdefault((settings, name), Group(settings, name, {}))
            names = [*marks.get(name, ()), *split.get(" ".join([*settings, name]), ())]
            found[settings, name] = replace(
                group,
                seeds={**group.seeds, seed: of},
                marks={**group.marks, **({seed: names} if names else {})},
            )
    return list(found.values())


def cell_name(settings: Sequence[str], seed: int) -> str:
    """Return the name of a cell's folder."""
    return hash_of({"settings": list(settings), "seed": seed})[:12]


def figure_names(found: Sequence[Group]) -> list[str]:
    """Return the names of the figures that some last stage has."""
    return [name for name in NAMES if any(group.score(name) for group in found)]


def by_settings(
    cells: Sequence[Mapping[str, Any]],
) -> dict[tuple[str, ...], dict[int, Mapping[str, Any]]]:
    """Return the documents of all finished cells by settings and seed, for `flags.seeds`."""
    told: dict[tuple[str, ...], dict[int, Mapping[str, Any]]] = {}
    for cell in cells:
        if documents := cell.get("pipelines"):
            told.setdefault(tuple(cell["settings"]), {})[cell["seed"]] = documents
    return told
