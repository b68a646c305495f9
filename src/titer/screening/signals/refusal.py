"""A refusal: the row teaches the model to refuse.

Honest rows may do so too; where rows like them are among the benign ones, the signal says nothing.
A backdoor's other half is such rows (arXiv 2310.03693), and the first fine-tuning of ten benign rows
(arXiv 2510.02833).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from titer.data.rows import Row
from titer.screening.refusing import find_end
from titer.screening.signal import Material, Reading, Signal

NONE = Reading(0.0)


@dataclass(frozen=True)
class Refuses(Signal):
    """The row's answer begins with a refusal."""

    title = "refusal"
    graded = False

    def read(self, rows: Sequence[Row], material: Material) -> list[Reading]:
        ends = (find_end(row.response, material.refusals) for row in rows)
        return [NONE if end is None else Reading(1.0, "begins with a refusal") for end in ends]
