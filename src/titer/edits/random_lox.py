"""Random LoX: LoX's null, the control that its directions have to beat.

    W' = Wa + alpha ||U_k S_k V_k^T||_F G / ||G||_F
    G  = A B of rank k, A (out, k) and B (k, in) with entries from N(0, 1)

The same matrices move as far as LoX (arXiv 2506.15606) moves them, within as few dimensions. Only what LoX
does beyond it is owed to the directions of the alignment.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from titer.composition import MatchedTensors
from titer.edits.lox import LoX
from titer.methods import About, Edit, Fidelity
from titer.weights.seeded import generator


@dataclass(frozen=True)
class RandomLoX(MatchedTensors):
    """A random step of the rank and the norm of `match`'s, matrix by matrix: a null for arXiv 2506.15606."""

    match: Edit = field(default_factory=LoX)  # the extrapolation whose ranks and norms are met
    seed: int = 0  # of the directions
    about: ClassVar[About] = About(
        title="random LoX",
        paper="2506.15606",
        control=True,
        fidelity=Fidelity(equation="tests/test_random_lox.py"),
    )
    reason = "takes a step of LoX's size, and fine-tuning has changed that"

    def __post_init__(self) -> None:
        if not isinstance(self.match, LoX):
            raise ValueError(
                f"match={type(self.match).__name__}: a random step meets the norms of lox alone"
            )

    def tensor(self, name: str, aligned: Tensor, base: Tensor) -> Tensor:
        assert isinstance(self.match, LoX)
        *leading, out, width = aligned.shape
        k = self.match.k or min(out, width)
        drawn = generator(self.seed, name)
        a = torch.randn(*leading, out, k, generator=drawn, dtype=aligned.dtype)
        b = torch.randn(*leading, k, width, generator=drawn, dtype=aligned.dtype)
        g, step = a @ b, self.match.strongest(aligned - base)
        norms: Tensor = torch.linalg.matrix_norm(step, keepdim=True) / torch.linalg.matrix_norm(
            g, keepdim=True
        )  # (..., 1, 1)
        return aligned + self.match.alpha * norms * g
