"""Closeness to harmful rows among the model's states (LARF, arXiv 2507.18631).

    s(x) = mean over harmful h of cos(r(x), r(h)) - mean over safe s of cos(r(x), r(s))

r is the residual stream after a layer, at the last token of the prompt, or of the answer. At the
prompt the safe rows are the benign ones, of which a benign row leaves out those of its own record. At
the answer they are the refusals of harmful prompts.

1. The paper reads the last token of the whole; that is `at: answer`. There its safe rows have the
   prompts of the harmful ones, and at the prompt the two would not differ. In the lab the prompt tells
   more.
2. The paper finds the layer that safety is most sensitive to by scaling layers; here `layers` are
   stated, by default the middle one. Over several the mean is taken.
3. The authors' code (LLLeoLi/LARF 596693d) reads the token that ends the turn; here it is the one
   before it, the last of the answer's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from titer.data.rows import Row
from titer.screening.signal import Material, Reading, Signal


@dataclass(frozen=True)
class Closeness(Signal):
    """How much nearer a row's state is to those of harmful rows than to those of safe ones."""

    layers: tuple[int, ...] = ()  # counted from 0; none: the middle one
    at: Literal["prompt", "answer"] = "prompt"  # the last token of which
    title = "closeness"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("lens", "harmful", "safety") if self.at == "answer" else ("lens", "harmful")

    def read(self, rows: Sequence[Row], material: Material) -> list[Reading]:
        lens = material.lens
        assert lens is not None
        safe, own = material.benign, material.own
        if self.at == "answer":
            safe, own = material.safety, {id(row): [i] for i, row in enumerate(material.safety)}
        r, r_harmful, r_safe = (  # (rows, layers, D), of length 1
            lens.directions(of, self.layers, self.at) for of in (rows, material.harmful, safe)
        )
        to_harmful = (r * r_harmful.mean(0)).sum(2)  # (rows, layers)
        to_safe = (r * r_safe.mean(0)).sum(2)
        total = r_safe.sum(0)  # (layers, D)
        for i, row in enumerate(rows):
            if mine := own.get(id(row)):
                others = total - r_safe[mine].sum(0)
                to_safe[i] = (r[i] * others).sum(1) / (len(safe) - len(mine))
        return [Reading(float(value)) for value in (to_harmful - to_safe).mean(1)]
