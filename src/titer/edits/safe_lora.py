"""Safe LoRA (arXiv 2405.16833): after fine-tuning, project the updates that agree least with the alignment's.

    V = W_aligned - W_base          of every weight under the adapter
    C = V V^T / ||V||_F             in the place of the projector V (V^T V)^-1 V^T
    c = cos(C dW, dW)               dW = (alpha / r) B A, what fine-tuning added
    dW <- C dW                      where c <= tau, or where c is among the lowest

`projector` says what C is:

* `surrogate`, the authors', as above. It is no projector, and has a scale: its eigenvalues are s^2 / ||V||_F,
  s the singular values of V, so twice V is twice C dW, and where alignment moved the weights little C dW is
  next to nothing. `norm ratio`, ||C dW||_F / ||dW||_F of every weight, tells how near to a deletion it comes.
* `exact`: U U^T, U the left singular vectors of V, the `rank` leading ones at most, and none whose singular
  value is no larger than what rounding the aligned weights to their dtype brings. Of a V of full rank that is
  the identity: then cut the rank.
* `zero`: the control that the surrogate has to beat. The weights that it would project lose their updates, dW
  <- 0.

C acts on B, so an adapter stays one. C itself (out, out) is never formed: C B = V (V^T B) / ||V||_F, and c
takes matrices of the rank alone. Where alignment changed nothing, V = 0, C is 0 and so is c.

Departures from the authors' code (IBM/SafeLoRA, d81fda1):
1. Weights are met by name, not by order and shape: biases, layers with out = r and other orders of parameters
   do no harm.
2. `layers` projects exactly as many weights; of equal cosines the first. The authors round cosines to five
   decimals, and project all that tie.
3. Of a model that was trained as a whole, dW stands in the place of B. Theirs takes adapters alone.
4. `exact` and `zero` are not theirs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from scipy.sparse.linalg import svds
from torch import Tensor

from titer.config import Names
from titer.methods import About, Fidelity, Needs, UpdateEdit
from titer.weights.finetuned import Weight
from titer.weights.update import Update


@dataclass(frozen=True)
class Agreement:
    """The position of the updates to what alignment changed, by weight."""

    cosine: Mapping[str, float]  # c
    ratio: Mapping[str, float]  # ||C dW||_F / ||dW||_F

    def facts(self, chosen: Sequence[str]) -> dict[str, Any]:
        return {
            "chosen weights": len(chosen),
            "chosen": list(chosen),
            "cosine": dict(self.cosine),
            "norm ratio": dict(self.ratio),
        }


@dataclass(frozen=True)
class SafeLoRA(UpdateEdit):
    """Project the update of some layers onto what alignment changed (Hsu et al., arXiv 2405.16833)."""

    # K, how many weights of the lowest cosines are projected; None: those that tau says
    layers: int | None = 10
    # tau, the cosine up to which a weight is projected; None: as many as layers says
    tau: float | None = None
    # C: V V^T / ||V||, the projector onto V's range, or 0, which is the control
    projector: Literal["surrogate", "exact", "zero"] = "surrogate"
    rank: int | None = None  # of the exact projector at most
    targets: Names = ("all",)  # names of layers, or of the last part of them
    keeps_rank = True
    about: ClassVar[About] = About(
        title="Safe LoRA",
        paper="2405.16833",
        fidelity=Fidelity(
            equation="tests/test_safe_lora.py", code="IBM/SafeLoRA d81fda1, float64, 2026-11-21"
        ),
    )

    def __post_init__(self) -> None:
        if (self.layers is None) == (self.tau is None):
            raise ValueError(
                f"layers={self.layers} and tau={self.tau}: one of them chooses what is projected; make the "
                "other null"
            )
        if self.layers is not None and self.layers < 1:
            raise ValueError(f"layers={self.layers}: project at least one")
        if self.tau is not None and not 0.0 <= self.tau <= 1.0:
            raise ValueError(
                f"tau={self.tau}: the cosine of an update and its projection lies between 0 and 1"
            )
        if self.rank is not None and (self.projector != "exact" or self.rank < 1):
            raise ValueError(
                f"rank={self.rank}: cuts the exact projector to at least 1; leave it out, or set projector "
                "to exact"
            )

    @property
    def needs(self) -> Needs:
        return Needs(references=("base",), targets=self.targets)

    def prepare(self, weights: Sequence[Weight]) -> tuple[Agreement, list[str]]:
        found = agreement(weights, self.projector == "exact", self.rank)
        return found, self.select(found.cosine)

    def select(self, cosine: Mapping[str, float]) -> list[str]:
        """Choose the weights to project."""
        if self.tau is not None:
            return [name for name, c in cosine.items() if c <= self.tau]
        assert self.layers is not None
        if self.layers > len(cosine):
            raise ValueError(
                f"layers={self.layers}: fine-tuning changed {len(cosine)} weights; project as many at most, "
                "or set tau"
            )
        return sorted(cosine, key=lambda name: cosine[name])[: self.layers]

    def edit(self, weight: Weight, state: tuple[Agreement, list[str]]) -> Update | None:
        if weight.name not in state[1]:
            return None
        return (
            0.0 * weight.update
            if self.projector == "zero"
            else project(weight, self.projector == "exact", self.rank)
        )

    def facts(self, state: tuple[Agreement, list[str]]) -> Mapping[str, Any]:
        return state[0].facts(state[1])


def agreement(weights: Sequence[Weight], exact: bool, rank: int | None) -> Agreement:
    """Compare each update with what alignment changed. Raises where they have nothing in common."""
    cosine, ratio = dict[str, float](), dict[str, float]()
    for weight in weights:
        dw, cdw = weight.update, project(weight, exact, rank)
        norm = dw.norm()
        cosine[weight.name], ratio[weight.name] = cdw.cosine(dw), cdw.norm() / norm if norm else 0.0
    if not any(ratio.values()):
        raise ValueError(
            "no update has a part in what alignment changed: give as base the model that alignment started "
            "from"
        )
    return Agreement(cosine, ratio)


def project(weight: Weight, exact: bool, rank: int | None) -> Update:
    """Compute C dW, C the surrogate or the exact projector."""
    dw, aligned = weight.update, weight.aligned
    v = aligned - weight.base  # (out, in)
    if exact:
        # of independent errors of eps W / 2 at most
        noise = torch.finfo(weight.kind).eps * float(aligned.norm()) / math.sqrt(min(v.shape))
        u = directions(v, noise, rank)
        return replace(dw, b=u @ (u.T @ dw.b))
    return surrogate(dw, v)


def surrogate(dw: Update, v: Tensor) -> Update:
    """Compute V V^T dW / ||V||_F."""
    norm = Update(
        v
    ).norm()  # summed in pairs: torch's own in float32 is off by a thousandth at 4096 x 4096
    return replace(dw, b=v @ (v.T @ dw.b) / norm) if norm else 0.0 * dw


def directions(v: Tensor, above: float, rank: int | None) -> Tensor:
    """Find the leading left singular vectors of V (out, k), whose singular values are above a floor."""
    size = float(v.abs().max())
    if size == 0.0 or rank is None or rank >= min(v.shape):  # ARPACK takes none of these
        u, s, _ = torch.linalg.svd(v, full_matrices=False)
    else:
        left, values, _ = svds(
            (v / size).numpy(), rank, rng=np.random.default_rng(0)
        )  # it works with squares, which may underflow
        u, s = torch.from_numpy(left.copy()), size * torch.from_numpy(values.copy())
    leading: Tensor = u[:, s > above]
    return leading
