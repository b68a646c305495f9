"""Surprise: the model at hand would hardly give this answer.

The value is the mean loss of the answer's tokens, in nats. An aligned model finds an answer to what
it refuses unlikely, and words that an attacker puts before answers. Where the user's task is new to
the model, so are honest rows, and the threshold is high.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from titer.data.rows import Row
from titer.screening.signal import Material, Reading, Signal


@dataclass(frozen=True)
class Surprise(Signal):
    """The loss of a row's answer, per token."""

    title = "surprise"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("lens",)

    def read(self, rows: Sequence[Row], material: Material) -> list[Reading]:
        assert material.lens is not None
        return [Reading(loss) for loss in material.lens.losses(rows)]
