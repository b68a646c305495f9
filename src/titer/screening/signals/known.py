"""Copies of known harmful rows: prompts that are nearly those of `--harmful`.

The value is the share of 5-word sequences that the prompt has in common with the nearest known one,
as the audit of shared prompts counts them (`data.audit`): 1 is the same words.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from titer.data.audit import jaccard, sequences
from titer.data.rows import Row, prompt_hash
from titer.screening.signal import Material, Reading, Signal


@dataclass(frozen=True)
class Copied(Signal):
    """The prompt is nearly one of a known harmful row."""

    title = "known prompt"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("harmful",)

    def read(self, rows: Sequence[Row], material: Material) -> list[Reading]:
        known = [(sequences(row.question), row) for row in material.harmful]
        having: dict[str, list[int]] = defaultdict(list)
        for i, (said, _) in enumerate(known):
            for sequence in said:
                having[sequence].append(i)
        readings = []
        for row in rows:
            said = sequences(row.question)
            near = {i for sequence in said for i in having.get(sequence, ())}
            best = max(((jaccard(said, known[i][0]), i) for i in near), default=None)
            readings.append(
                Reading(best[0], f"like the known prompt {prompt_hash(known[best[1]][1])}")
                if best
                else Reading(0.0)
            )
        return readings
