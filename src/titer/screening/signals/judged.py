"""A judge's verdict: harmful, as a guard says it of a prompt with its answer.

Any registered judge serves. What it leaves unscored counts as harmless here, and is counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from titer.data.rows import Row
from titer.methods import Label
from titer.screening.signal import Material, Reading, Signal


@dataclass(frozen=True)
class Judged(Signal):
    """The judge calls the row's answer harmful."""

    title = "judge"
    graded = False

    @property
    def needs(self) -> tuple[str, ...]:
        return ("judge",)

    def read(self, rows: Sequence[Row], material: Material) -> list[Reading]:
        assert material.judge is not None
        told = material.judge.judge([row.question for row in rows], [row.response for row in rows])
        return [
            Reading(
                float(verdict.label is Label.HARMFUL),
                verdict.reason,
                verdict.label is not Label.UNSCORED,
            )
            for verdict in told
        ]
