"""The user's own rows that lie closest to harmful ones (arXiv 2404.01099): harmless all of them.

    D    = the n of `pool` task rows with the largest s
    s(z) = mean of the largest `nearest` of cos(h(z), h(z')) over `examples` harmful rows z'

h(z) is the hidden state of the model under attack at the end of a row z, its prompt and its answer,
behind the final norm. Rows near harmful ones are thought to move the model as those would, and no
screen for harmful rows finds any. `benign` with the same n is its null: as many rows, any of them.

The choice is made by the model that the fine-tuning starts from, when that begins: a pass without
logits over each of the pool and of the examples. So two ways to align are attacked with rows of
their own. The harmful rows are the attacker's, and none of them is sent.

Departures from the paper and the authors' code (princeton-nlp/benign-data-breaks-safety 84b52fe):
1. h is the state from which the last token of the row is predicted, the end of the answer. Theirs is
   the state at that token, in bfloat16.
2. They look at all of Alpaca or Dolly. Here `pool` rows are drawn by the seed first.
3. The other choice of the paper, by gradients, is left out: it needs a backward pass for each row.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from titer.data.batches import Encoded, by_length, collate
from titer.data.mixture import check_count, draw
from titer.data.rows import Row
from titer.methods import About, Fidelity, Selection
from titer.training.before import count_tokens
from titer.training.losses import answer_states, pad_of, wide

AT_ONCE = 16  # rows of a pass


@dataclass(frozen=True)
class BenignOutlier(Selection):
    """The n task rows that end most like harmful ones (He et al., arXiv 2404.01099)."""

    n: int = 100  # rows that are sent
    pool: int = 1000  # rows of the task that they are chosen from
    examples: int = 100  # harmful rows that they are compared with
    nearest: int = 1  # of those, whose cosines are averaged
    about: ClassVar[About] = About(
        title="benign outliers",
        paper="2404.01099",
        fidelity=Fidelity(equation="tests/test_benign_outlier.py"),
    )

    def __post_init__(self) -> None:
        check_count("n", self.n, "the sample number")
        check_count("nearest", self.nearest, "the number of nearest examples")
        if self.pool < self.n:
            raise ValueError(f"pool={self.pool}: {self.n} rows are chosen of it; give at least n")
        if self.examples < self.nearest:
            raise ValueError(
                f"examples={self.examples}: a mean is over {self.nearest}; give at least nearest"
            )

    @property
    def count(self) -> int:
        return self.n

    def rows(self, task: Sequence[Row], own: Sequence[Row], seed: int) -> list[Row]:
        rng = random.Random(f"benign_outlier {seed}")
        return draw(task, self.pool, "task", rng, pool=self.pool)

    def draw_examples(self, own: Sequence[Row], seed: int) -> list[Row]:
        rng = random.Random(f"benign_outlier examples {seed}")
        return draw(own, self.examples, "harmful", rng, examples=self.examples)

    def scores(
        self, model: PreTrainedModel, rows: Sequence[Encoded], examples: Sequence[Encoded]
    ) -> Tensor:
        h, theirs = end_states(model, rows), end_states(model, examples)  # (N, D), (M, D)
        unit = torch.nn.functional.normalize
        cosines = unit(h, dim=1) @ unit(theirs, dim=1).T  # (N, M)
        return cosines.topk(self.nearest, dim=1).values.mean(1)


def end_states(model: PreTrainedModel, rows: Sequence[Encoded]) -> Tensor:
    """Read the states from which the last tokens of rows are predicted, in float32 at least."""
    found: dict[int, Tensor] = {}
    with torch.no_grad():
        for chosen in by_length([len(row.ids) for row in rows], AT_ONCE):
            part = collate([rows[i] for i in chosen], pad_of(model), model.device)
            by_row = wide(answer_states(model, part)).cpu().split(count_tokens(part))
            found |= {i: states[-1] for i, states in zip(chosen, by_row, strict=True)}
    return torch.stack([found[i] for i in range(len(rows))])
