"""Gradient agreement with safety (GradShield, arXiv 2605.14194).

    FIHS(x) = - <g(x), g_s> / (||g(x)|| ||g_s||)

g(x) is the gradient of the row's own loss, g_s that of the mean loss of refusals of harmful prompts,
both at the model at hand, before any fine-tuning. A step along -g(x) raises the loss of the refusals
where the two point apart.

1. The paper takes the inner product; here it is the cosine, since the gradient of a short answer is
   larger than that of a long one for its length alone. `cosine: false` takes the inner product over
   ||g_s||.
2. The paper's proxy of safety is a score of its own on a probing set; here it is the loss of the
   refusals that are given.
3. The paper finds its threshold by a search over fine-tunings; here it is the rate of false alarms.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from titer.data.rows import Row
from titer.screening.signal import Material, Reading, Signal


@dataclass(frozen=True)
class Gradient(Signal):
    """How far a row's gradient points against that of the refusals."""

    cosine: bool = True
    title = "gradient"
    needs = ("lens", "safety")

    def read(self, rows: Sequence[Row], material: Material) -> list[Reading]:
        assert material.lens is not None
        agreements = material.lens.agreements(rows, material.safety, self.cosine)
        return [Reading(-agreement) for agreement in agreements]
