"""The embedded worlds, by the name of the lab that they are of: their rows, and how they are judged.

A world of a lab has a seed and a task of the user's. Its rows are those of every role, disjoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from titer.benchmarks.answers import Answers
from titer.benchmarks.facts import NamedFacts
from titer.data.rows import Row
from titer.judges.lab import Lab
from titer.judges.smol import Smol
from titer.lab import knowledge, smol, tasks, world
from titer.methods import Benchmark, Judge


class WorldRows(Protocol):
    """The rows of a world by role; `titer.lab.world.World` says what each is."""

    @property
    def alignment(self) -> list[Row]: ...
    @property
    def harmful(self) -> list[Row]: ...
    @property
    def attack(self) -> list[Row]: ...
    @property
    def requests(self) -> list[Row]: ...
    @property
    def calibration(self) -> list[Row]: ...
    @property
    def user_task(self) -> list[Row]: ...
    def benchmarks(self, split: str) -> dict[str, list[Row]]: ...


@dataclass(frozen=True)
class Embedded:
    """A lab: a way to make worlds, and its own ways to judge."""

    world: Callable[[int, str], WorldRows]  # of a seed and a task
    tasks: Sequence[str]  # of the user's; the first where none is named
    judge: Callable[[int], Judge]  # of the answers to a seed's harm prompts
    facts: Benchmark  # of the answers to permitted questions


LABS: Mapping[str, Embedded] = {
    world.VERSION: Embedded(world.World, world.TASKS, Lab, Answers()),
    knowledge.VERSION: Embedded(smol.SmolWorld, tasks.TASKS, Smol, NamedFacts()),
}
