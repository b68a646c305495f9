"""Closeness to harmful rows among the model's states (LARF, arXiv 2507.18631).

    s(x) = mean over harmful h of cos(r(x), r(h)) - mean over safe s of cos(r(x), r(s))

r is the residual stream after a layer, at the last token of the answer, or of the prompt. The safe
rows are harmful prompts with refusals.

1. The paper finds the layer that safety is most sensitive to by scaling layers; here `layers` are
   stated, by default the middle one. Over several the mean is taken.
2. The authors' code (LLLeoLi/LARF 596693d) reads the token that ends the turn; here it is the one
   before it, the last of the answer's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from titer.data.rows import Row
from titer.screening.signal import Material, Reading, Signal


@dataclass(frozen=True)
class Closeness(Signal):
    """How much nearer a row's state is to those of harmful rows than to those of refusals."""

    layers: tuple[int, ...] = ()  # counted from 0; none: the middle one
    at: Literal["answer", "prompt"] = "answer"  # the last token of which
    title = "closeness"
    needs = ("lens", "safety", "harmful")

    def read(self, rows: Sequence[Row], material: Material) -> list[Reading]:
        lens = material.lens
        assert lens is not None
        r = lens.directions(rows, self.layers, self.at)  # (rows, layers, D), of length 1
        centre = lens.directions(material.harmful, self.layers, self.at).mean(0)  # (layers, D)
        safe = lens.directions(material.safety, self.layers, self.at).mean(0)
        return [Reading(float(value)) for value in (r * (centre - safe)).sum(2).mean(1)]
