"""A judge's verdict: harmful, as a guard says it of a prompt with its answer.

Any registered judge serves. A row that it leaves unscored is flagged as unread: else an answer in a
language that it does not read would pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from titer.data.rows import Row
from titer.methods import Label
from titer.scoring.judging import ask_judge
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
        asked, said = [row.question for row in rows], [row.response for row in rows]
        told = ask_judge(material.judge, asked, said)
        return [
            Reading(
                float(verdict.label is Label.HARMFUL),
                verdict.reason,
                verdict.label is not Label.UNSCORED,
            )
            for verdict in told
        ]
