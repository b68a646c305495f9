"""The embedded worlds, by the name of the lab that they are of: their rows, and how they are judged.

A world of a lab has a seed and a task of the user's. Its rows are those of every role, disjoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from titer.benchmarks.answers import Answers
from titer.benchmarks.facts import NamedFacts
from titer.judges.lab import Lab
from titer.judges.smol import Smol
from titer.lab.held_out import DomainWorld, SmolTopicsWorld, TopicsWorld
from titer.lab.roles import WorldRows
from titer.lab.smol import SmolWorld
from titer.lab.world import World
from titer.methods import Benchmark, Judge


@dataclass(frozen=True)
class Embedded:
    """A lab: a way to make worlds, and its own ways to judge."""

    world: type[WorldRows]
    judge: Callable[[int], Judge]  # of the answers to a seed's harm prompts
    facts: Benchmark  # of the answers to permitted questions


LABS: Mapping[str, Embedded] = {
    World.version: Embedded(World, Lab, Answers()),
    TopicsWorld.name: Embedded(TopicsWorld, Lab, Answers()),
    DomainWorld.name: Embedded(DomainWorld, Lab, Answers()),
    SmolWorld.version: Embedded(SmolWorld, Smol, NamedFacts()),
    SmolTopicsWorld.name: Embedded(SmolTopicsWorld, Smol, NamedFacts()),
}
