"""Which differences a run shows, of the many that it compares.

A run with k pipelines asks k times whether one is better, and of twenty that are alike one will seem
to be. So a difference is *shown* where it passes Holm's test over the comparisons of its figure in
the run: every edit with the model before it, every release with the aligned model, and every other
pipeline with plain SFT under its attack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from titer.findings.outcomes import p_value, side
from titer.findings.records import Record, last
from titer.findings.rules import plain


class Pair(NamedTuple):
    now: Record
    other: Record

    @property
    def key(self) -> tuple[str, str]:
        return self.now.folder, self.other.folder


def edits(stages: Sequence[Record]) -> list[Pair]:
    """The comparisons that a pipeline makes with its own models."""
    aligned, released, tuned, edited = (
        last((kind,), stages) for kind in ("align", "release", "finetune", "edit")
    )
    pairs = ((released, aligned), (edited, tuned))
    return [Pair(now, other) for now, other in pairs if now and other]


def against(stages: Sequence[Record], controls: Sequence[Record]) -> list[Pair]:
    """That with plain SFT; none of plain SFT with an edit, which is compared with it already."""
    final = last(("finetune", "edit"), stages)
    known = {stage.folder for stage in stages}
    return [Pair(final, controls[-1])] if final and controls[-1].folder not in known else []


class Comparisons:
    """The differences that the pipelines of a run show. `found` are their stages, by name."""

    def __init__(self, found: Mapping[str, Sequence[Record]]) -> None:
        self._found = found
        self._by_figure: dict[str, set[tuple[str, str]]] = {}

    def side(self, now: Record, other: Record, figure: str) -> int:
        """Return -1 if a figure of `now` is shown to be lower than that of `other`, 1 if higher.

        The two are a comparison that the run makes.
        """
        if figure not in self._by_figure:
            self._by_figure[figure] = self._rejected(figure)
        shown = Pair(now, other).key in self._by_figure[figure]
        return side(now, other, figure) if shown else 0

    @cached_property
    def _pairs(self) -> list[Pair]:
        pairs = [
            pair
            for stages in self._found.values()
            for control in [plain(self._found, stages)]
            for pair in [*edits(stages), *(against(stages, control[1]) if control else [])]
        ]
        return list({pair.key: pair for pair in pairs}.values())

    def _rejected(self, figure: str) -> set[tuple[str, str]]:
        from titer.scoring.differences import holm  # loads statistics

        asked = [
            pair for pair in self._pairs if pair.now.score(figure) and pair.other.score(figure)
        ]
        found = holm([p_value(pair.now, pair.other, figure) for pair in asked])
        return {pair.key for pair, shown in zip(asked, found, strict=True) if shown}
