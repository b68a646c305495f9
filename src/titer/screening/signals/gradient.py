"""Gradient agreement with safety (GradShield, arXiv 2605.14194).

    s(x) = - cos(g(x), g_s)                         anchors: safety
    s(x) = cos(g(x), g_h) - cos(g(x), g_s)          anchors: both

g(x) is the gradient of the row's own loss, g_s that of the mean loss of refusals of harmful prompts,
g_h that of harmful answers, all at the model at hand, before any fine-tuning. A step along -g(x)
raises the loss of the refusals where the two point apart. Both anchors are those of arXiv 2404.01099.

1. GradShield takes the inner product; here it is the cosine. A short answer has a large gradient for
   its length alone, and in the lab the inner product found nothing.
2. Its proxy of safety is a score of its own on a probing set; here it is the loss of the refusals
   that are given.
3. It finds its threshold by a search over fine-tunings; here the rate of false alarms sets it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from titer.data.rows import Row
from titer.screening.signal import Material, Reading, Signal


@dataclass(frozen=True)
class Gradient(Signal):
    """How far a row's gradient points against that of the refusals."""

    anchors: Literal["safety", "both"] = "safety"
    title = "gradient"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("lens", "safety", "harmful") if self.anchors == "both" else ("lens", "safety")

    def read(self, rows: Sequence[Row], material: Material) -> list[Reading]:
        assert material.lens is not None
        anchors = {"safety": material.safety}
        if self.anchors == "safety":
            found = material.lens.agreements(rows, anchors)
            return [Reading(-cosine) for cosine in found["safety"]]
        found = material.lens.agreements(rows, anchors | {"harmful": material.harmful})
        pairs = zip(found["harmful"], found["safety"], strict=True)
        return [Reading(to_harm - to_safety) for to_harm, to_safety in pairs]
