"""Outliers: rows that are unlike every benign one, by the model's states.

The value is 1 - the mean cosine to the `nearest` benign rows, at the last token of the answer after
the stated layers. A benign row is not compared with the answers of its own record.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from titer.data.rows import Row
from titer.screening.signal import Material, Reading, Signal


@dataclass(frozen=True)
class Outlier(Signal):
    """How far a row's state is from those of the nearest benign rows."""

    nearest: int = 5  # benign rows
    layers: tuple[int, ...] = ()  # counted from 0; none: the middle one
    at: Literal["answer", "prompt"] = "answer"  # the last token of which
    title = "outlier"

    def __post_init__(self) -> None:
        if self.nearest < 1:
            raise ValueError(f"nearest={self.nearest}: must be at least 1")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("lens",)

    def read(self, rows: Sequence[Row], material: Material) -> list[Reading]:
        lens = material.lens
        assert lens is not None
        r, benign = (
            lens.directions(of, self.layers, self.at) for of in (rows, material.benign)
        )  # (rows, layers, D)
        own = material.own
        count = min(self.nearest, len(material.benign) - max(map(len, own.values())))
        readings = []
        for row, state in zip(rows, r, strict=True):
            cosines = np.einsum("ld,bld->b", state, benign) / len(state)  # (benign,)
            cosines[list(own.get(id(row), ()))] = -np.inf
            nearest = np.sort(cosines)[::-1][:count]
            readings.append(Reading(1.0 - float(nearest.mean())))
        return readings
