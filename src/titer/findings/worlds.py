"""Results over worlds: groups that differ in the world alone, as one.

A world is one draw (`titer.scoring.pooled`). A difference of two pipelines is taken world by world,
seed by seed and prompt by prompt, and its mean over worlds has the interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from titer.findings.dose import By, bounds, dose_of
from titer.findings.outcomes import Values, over_training, values_of
from titer.findings.records import Record
from titer.findings.seeds import Ends, Group
from titer.scoring.pooled import Pooled, pooled
from titer.scoring.score import Score
from titer.scoring.statistics import mean, training_of

WORLD = "data.world="


@dataclass(frozen=True)
class Pool(Ends):
    """A pipeline in every world, at otherwise the same settings."""

    settings: tuple[str, ...]  # but for the world
    pipeline: str
    worlds: Mapping[str, Group]

    @property
    def seeds(self) -> Mapping[tuple[str, int], Sequence[Record]]:
        """The stages of every world and training seed."""
        return {
            (world, seed): stages
            for world, group in self.worlds.items()
            for seed, stages in group.seeds.items()
        }

    @property
    def marks(self) -> Mapping[tuple[str, int], Sequence[str]]:
        """The red flags of every world and training seed that has some."""
        return {
            (world, seed): names
            for world, group in self.worlds.items()
            for seed, names in group.marks.items()
        }

    def at(self, stage: int) -> Pool:
        """Return the pool as if its pipeline ended with a stage, counted from the first or, below
        0, from the last.
        """
        end = stage + 1 or None
        cut = {
            world: replace(group, seeds={seed: of[:end] for seed, of in group.seeds.items()})
            for world, group in self.worlds.items()
        }
        return replace(self, worlds=cut)

    def score(self, name: str) -> Score | None:
        """Return the mean over worlds of the last stage's figure; None where one lacks it.

        Its interval is over worlds, and that of a single world over prompts. It is made from the
        outcome of every prompt where the records have them, else from the worlds' figures alone.
        """
        drawn: list[Values] = []
        for group in self.worlds.values():
            found = [values_of(stage, name) for stage in group.last]
            if not found or None in found:
                return self._score_of_means(name)
            drawn.append(
                Values(
                    [value for of in found if of for value in of.values],
                    [cluster for of in found if of for cluster in of.clusters],
                )
            )
        if name != "margin":
            return replace(over_training(name, drawn), covers="worlds")
        means = [fmean(value for value in of.values if value is not None) for of in drawn]
        score = mean(means)
        return replace(
            score, n=sum(len(of.values) for of in drawn), covers="worlds", seeds=len(means)
        )

    def _score_of_means(self, name: str) -> Score | None:
        means = [score for group in self.worlds.values() if (score := group.score(name))]
        if len(means) < len(self.worlds) or name == "margin":
            return None
        return replace(training_of(means), covers="worlds")

    def less(self, other: Pool, name: str) -> Pooled:
        """Return the mean over worlds of the last stage's figure less the other pipeline's, in
        points or nats. Worlds that one of them lacks do not count.
        """
        return pooled(
            [
                self.worlds[world].less(other.worlds[world], name).value
                for world in self.worlds
                if world in other.worlds
            ]
        )

    def times(self, other: Pool, by: By = "margin") -> Pooled | None:
        """Return the logarithm of how many times the other's dose it takes to break a model.

        A world's is the mean over its seeds, or bounds of it. None where no dose is known.
        """
        found = []
        for world in (world for world in self.worlds if world in other.worlds):
            mine, its = self.worlds[world].seeds, other.worlds[world].seeds
            pairs = [(mine[seed], its[seed]) for seed in mine if seed in its]
            known = [
                each
                for first, second in pairs
                if (each := bounds(dose_of(first, by=by), dose_of(second, by=by)))
            ]
            if known:
                low, high = (fmean(side) for side in zip(*known, strict=True))
                found.append((low, high))
        return pooled(found) if found else None


def pool(found: Sequence[Group]) -> list[Pool]:
    """Return the pipelines over all worlds, in the order of their first group."""
    by: dict[tuple[tuple[str, ...], str], dict[str, Group]] = {}
    for group in found:
        [world] = [each for each in group.settings if each.startswith(WORLD)] or [""]
        rest = tuple(each for each in group.settings if each != world)
        by.setdefault((rest, group.pipeline), {})[world.removeprefix(WORLD)] = group
    return [Pool(settings, name, worlds) for (settings, name), worlds in by.items()]


def same(first: Pool, second: Pool) -> bool:
    """Tell whether two pools end with the same weights in all worlds."""
    mine, its = first.seeds, second.seeds
    shared = mine.keys() & its.keys()
    return bool(shared) and all(mine[key][-1].weights == its[key][-1].weights for key in shared)
