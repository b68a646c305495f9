"""T-Vaccine (arXiv 2410.09760): Vaccine on some layers, drawn by how much harmful data pull at them.

Every K updates, on harmful rows:   s_l = ||grad_{e_l} h||,    p_l = s_l / sum_l' s_l'
Every J updates:                    S = gamma layers drawn one after another without replacement, by p
Every update:                       eps_l = rho grad_{e_l} f / ||(grad_{e_l} f)_{l in S}||,    l in S

f is the cross-entropy of refusals, h that of harmful answers, e_l the output of the attention of layer l. The
gradient with eps in place is followed for the weights of the layers in S; all others stay. Harmful rows
choose layers, and enter no update.

Departures from the authors' code:
1. s is of a whole batch, where theirs is of a single row, and may be averaged over scorings (`memory`).
2. Layers that are not drawn stay as a whole, as in the paper. Theirs train the MLPs of those above the lowest
   drawn one, here freeze="attention" (with more than 26 layers, those of the layer below it too).
3. What lies below the lowest drawn layer runs once for both passes and keeps nothing. Above it their code
   recomputes every other layer in the backward pass; here `checkpoint="unselected"` does, and "off" trades
   that memory for time.
4. top=True takes the gamma highest scores, a line that their code has commented out.

Compared with their trainer and Llama (Lslland/T-Vaccine 45137500, float64, LoRA, 2026-11-21): the same
scores, and with freeze="attention" the same gradient to 5e-15, but for the 1e-7 that they add to the norm.
"""

import random
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from titer.methods import About, Defense, Fidelity, Harmful, Needs, Refusals
from titer.training.step import Step
from titer.training.vector import Vec


@dataclass
class Layers:
    scores: dict[str, float] = field(default_factory=dict)  # s, by layer
    chosen: list[int] = field(default_factory=list)  # S


@dataclass(frozen=True)
class TVaccine(Defense):
    """Targeted layer-wise Vaccine (Liu et al., arXiv 2410.09760)."""

    rho: float = 3.0  # rho, norm of the perturbation of an update
    gamma: int = 8  # gamma, layers that are perturbed and trained; all, where the model has no more
    resample: int = 20  # J, updates between two draws of layers
    rescore: int = 200  # K, updates between two scorings
    memory: float = 0.0  # of the scores before, in those after a scoring
    top: bool = False  # the highest scores rather than a draw
    freeze: Literal["layers", "attention"] = "layers"  # what stays of a layer that is not drawn
    # layers that are not drawn keep their activations, or are run again
    checkpoint: Literal["off", "unselected"] = "off"
    partial = True
    about: ClassVar[About] = About(
        title="T-Vaccine",
        paper="2410.09760",
        stage="align",
        passes="2 + 1/K",
        fidelity=Fidelity(
            equation="tests/test_t_vaccine.py",
            code="Lslland/T-Vaccine 45137500, float64, LoRA, 2026-11-21",
        ),
    )
    needs = Needs(streams={"rows": Refusals, "harmful": Harmful})
    State: ClassVar[type | None] = Layers

    def __post_init__(self) -> None:
        if not self.rho >= 0.0:
            raise ValueError(f"rho={self.rho}: the norm of a perturbation must be at least 0")
        for name in ("gamma", "resample", "rescore"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if not 0.0 <= self.memory < 1.0:
            raise ValueError(
                f"memory={self.memory}: must be at least 0 and below 1, where no scoring would count"
            )

    @property
    def period(self) -> int:
        return self.rescore

    def prepare(self, step: Step) -> Layers:
        return Layers()

    def gradient(self, step: Step, state: Layers) -> Vec:
        if (step.update - 1) % self.rescore == 0:
            self._score(step, state)
        if (step.update - 1) % self.resample == 0:
            state.chosen = self._draw(step, state)
        batch = step.batch("rows")  # the same batch in both passes
        with step.only(state.chosen, self.freeze, recompute=self.checkpoint == "unselected"):
            g_e = step.at(batch, state.chosen)  # grad_{e_l} f, l in S
            with step.shifted(self.rho * g_e.unit()):  # e_l + eps_l
                g_f = step.grad(batch)
        step.log(f=g_e.loss, f_perturbed=g_f.loss, lowest=min(state.chosen))
        return g_f

    def _score(self, step: Step, state: Layers) -> None:
        g_e = step.at(step.batch("harmful"))  # grad_{e_l} h
        for layer, norm in g_e.norms().items():
            before = state.scores.get(str(layer), norm)
            state.scores[str(layer)] = self.memory * before + (1 - self.memory) * norm
        step.log(h=g_e.loss)

    def _draw(self, step: Step, state: Layers) -> list[int]:
        """Draw S, in ascending order, by the stage's seed and the update alone: ranks agree on it."""
        scores = {int(layer): score for layer, score in state.scores.items()}
        if self.top:
            return sorted(sorted(scores, key=lambda layer: -scores[layer])[: self.gamma])
        rng = random.Random(f"t_vaccine {step.streams['rows'].seed} {step.update}")
        left = dict(scores)
        for _ in range(min(self.gamma, len(left))):
            [layer] = rng.choices(list(left), list(left.values()))
            del left[layer]
        return sorted(set(scores) - set(left))
