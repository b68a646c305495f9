"""Random rank one: refusal ablation's null, the control that its direction has to beat.

    W <- W - c u u^T W,    c = ||r^T W|| / ||u^T W||

u is a random direction, the same for every W, and r that of the matched ablation (arXiv 2406.11717).
The same matrices move as far as the ablation moves them, each by a matrix of rank one. Only what the
ablation does beyond it is owed to the direction of refusal. A W that does not write along u stays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from titer.composition import MatchedStream
from titer.data.batches import Encoded
from titer.edits.refusal_ablation import RefusalAblation, RefusalDirection
from titer.methods import About, Edit, Fidelity
from titer.weights.seeded import generator


@dataclass(frozen=True)
class RandomRankOne(MatchedStream):
    """A step along a random direction, as far as `match`'s: a null for arXiv 2406.11717."""

    match: Edit = field(default_factory=RefusalAblation)  # the ablation whose norms are met
    seed: int = 0  # of the direction
    about: ClassVar[About] = About(
        title="random rank one",
        paper="2406.11717",
        control=True,
        fidelity=Fidelity(equation="tests/test_random_rank_one.py"),
    )

    def __post_init__(self) -> None:
        if not isinstance(self.match, RefusalAblation):
            raise ValueError(
                f"match={type(self.match).__name__}: a random direction meets the norms of "
                "refusal_ablation alone"
            )

    def observe(
        self, model: PreTrainedModel, rows: Sequence[Encoded], others: Sequence[Encoded]
    ) -> tuple[RefusalDirection, Tensor]:
        refusal: RefusalDirection = self.held.observe(model, rows, others)
        drawn = generator(self.seed, "random_rank_one")
        u = torch.randn(len(refusal.r), generator=drawn, dtype=torch.float64)
        return refusal, u / u.norm()

    def edit(self, name: str, matrix: Tensor, state: tuple[RefusalDirection, Tensor]) -> Tensor:
        refusal, u = state[0], state[1].to(matrix)
        along = u @ matrix
        if not along.any():
            return matrix
        c = float((refusal.r.to(matrix) @ matrix).norm() / along.norm())
        return matrix - c * torch.outer(u, along)

    def facts(self, state: tuple[RefusalDirection, Tensor]) -> Mapping[str, Any]:
        return {"cosine with the refusal direction": float(state[0].r @ state[1])}
