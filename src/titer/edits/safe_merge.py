"""SafeMERGE (arXiv 2503.17239): after fine-tuning, merge a safe model's updates into those that agree least.

    C, c     of every weight as in Safe LoRA (arXiv 2405.16833), with its surrogate C = V V^T / ||V||_F
    dW      <- a dW + b dW_safe       where c < tau; dW_safe: the update of a safe model

With `drop` both updates are made sparse by DARE (arXiv 2311.03099) before they are merged: of each every
entry is dropped with probability d, else divided by 1 - d.

Departures from the authors' code (aladinD/SafeMERGE, 2af08c1):
1. Updates are merged, the products B A. The authors' code has PEFT merge the factors, sqrt(a) A + sqrt(b)
   A_safe and B likewise, whose product has terms of one adapter's B with the other's A. So the rank is not
   kept here, and a whole model comes out.
2. Weights that are not merged stay as they are to the bit. The authors' DARE thins these too.
3. Weights are met by name, as in Safe LoRA.
4. The paper's safe model is trained on refusals of harmful prompts alone. The one that a run makes is
   trained on all alignment rows, benign ones with answers among them, with the settings of the user's
   fine-tuning. Another is given with `--reference safe=MODEL`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from titer.config import Names
from titer.edits.resta import check_drop, dare
from titer.edits.safe_lora import Agreement, agreement
from titer.methods import About, Fidelity, Needs, UpdateEdit
from titer.weights.finetuned import Weight
from titer.weights.update import Update


@dataclass(frozen=True)
class SafeMERGE(UpdateEdit):
    """Merge the updates of some layers with those of a safe model (Djuhera et al., arXiv 2503.17239)."""

    tau: float = 0.35  # tau, the cosine below which a weight is merged
    # a and b, of the fine-tuning update and of the safe one
    weights: tuple[float, float] = (0.8, 0.2)
    # d, probability that an entry of an update is dropped; 0: linear merging, no DARE
    drop: float = 0.0
    seed: int = 0  # of what is dropped
    targets: Names = ("all",)  # names of layers, or of the last part of them
    about: ClassVar[About] = About(
        title="SafeMERGE",
        paper="2503.17239",
        fidelity=Fidelity(
            equation="tests/test_safe_merge.py",
            code="aladinD/SafeMERGE 2af08c1, float64 adapters, 2026-11-21",
        ),
    )

    def __post_init__(self) -> None:
        if not 0.0 <= self.tau <= 1.0:
            raise ValueError(
                f"tau={self.tau}: the cosine of an update and its projection lies between 0 and 1"
            )
        if not all(0.0 <= each < math.inf for each in self.weights):
            raise ValueError(f"weights={list(self.weights)}: must be at least 0, and finite")
        check_drop(self.drop)

    @property
    def needs(self) -> Needs:
        return Needs(references=("base", "safe"), targets=self.targets)

    def prepare(self, weights: Sequence[Weight]) -> Agreement:
        return agreement(weights, exact=False, rank=None)

    def edit(self, weight: Weight, state: Agreement) -> Update | None:
        if state.cosine[weight.name] >= self.tau:
            return None
        a, b = self.weights
        finetuned, safe = (
            dare(update, self.drop, self.seed, f"{name} {weight.name}")
            for name, update in (("finetuned", weight.update), ("safe", weight.update_of("safe")))
        )
        return a * finetuned + b * safe

    def facts(self, state: Agreement) -> Mapping[str, Any]:
        return state.facts([name for name, c in state.cosine.items() if c < self.tau])
