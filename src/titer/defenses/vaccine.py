"""Vaccine (arXiv 2402.01109, algorithm 1): align so that attention outputs may drift.

    min_w max_{||eps|| <= rho} f(w; e_1 + eps_1, ..., e_L + eps_L)

f is the cross-entropy of refusals, e_l the output of the attention of layer l. To first order the worst drift
is

    eps_l = rho grad_{e_l} f / ||(grad_{e_1} f, ..., grad_{e_L} f)||

taken in one pass; the gradient that is followed comes from a second one with it in place. `every` perturbs
each tau-th update alone and follows grad f between (appendix A of the paper).

Departures from the authors' code:
1. The norm is over all micro-batches and ranks of the update, as over the paper's batch; theirs, over one
   forward, is norm="micro".
2. No 1e-7 is added to the norm. A vanishing gradient stops the run, since the method would do nothing.
3. The first pass computes no gradient of a weight, which the method throws away.

Compared with their trainer (git-disl/Vaccine 8937f685, float64, 2026-11-21): the same gradient to 2e-15, but
for the 1e-7 that they add to the norm.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from titer.methods import About, Aware, Defense, Fidelity, Needs, Refusals
from titer.training.step import Step
from titer.training.vector import Vec


@dataclass(frozen=True)
class Vaccine(Defense):
    """Perturbation-aware alignment (Huang et al., arXiv 2402.01109)."""

    rho: float = 2.0  # rho, norm of the perturbation of an update
    every: int = 1  # tau, updates from one perturbed to the next
    # over the whole update, or over every micro-batch by itself
    norm: Literal["step", "micro"] = "step"
    about: ClassVar[About] = About(
        title="Vaccine",
        paper="2402.01109",
        stage="align",
        passes="1 + 1/tau",
        fidelity=Fidelity(
            equation="tests/test_vaccine.py", code="git-disl/Vaccine 8937f685, float64, 2026-11-21"
        ),
        aware=Aware(
            "it withstands embeddings that drift by rho, and not by more: at twice the rate its harm is "
            "an undefended model's (arXiv 2405.14577)",
            rate=2.0,
        ),
    )

    def __post_init__(self) -> None:
        if not self.rho >= 0.0:
            raise ValueError(f"rho={self.rho}: the norm of a perturbation must be at least 0")
        if self.every < 1:
            raise ValueError(f"every={self.every}: must be at least 1")

    @property
    def needs(self) -> Needs:
        own = "with norm=micro its perturbation has the norm rho in every micro-batch"
        return Needs({"rows": Refusals}, micro_batch=own if self.norm == "micro" else "")

    @property
    def period(self) -> int:
        return self.every

    def gradient(self, step: Step, state: None) -> Vec:
        batch = step.batch("rows")  # the same batch in both passes
        if step.update % self.every:
            g_f = step.grad(batch)
            step.log(f=g_f.loss)
            return g_f
        g_e = step.at(batch)  # grad_{e_l} f, for every l
        eps = self.rho * (g_e.unit() if self.norm == "step" else g_e.units())
        with step.shifted(eps):  # e_l + eps_l
            g_f = step.grad(batch)
        step.log(f=g_e.loss, f_perturbed=g_f.loss)
        return g_f
