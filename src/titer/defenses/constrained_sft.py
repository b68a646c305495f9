"""Constrained SFT (arXiv 2406.05946, equation 3): learn each answer token until it is likelier than before.

    min_w  mean_t  -(2 / beta_t) log sigma( beta_t log(p_t / p'_t) )

p_t is the probability of the t-th answer token of a user's row given what stands before it, p'_t the same of
the model that the stage began with. The gradient is that of the cross-entropy with a weight for every token,

    w_t grad(-log p_t),    w_t = 2 sigma( -beta_t log(p_t / p'_t) )

which is 1 at the start, falls towards 0 once a token has become likelier by a factor of about e^(1 / beta_t),
and rises towards 2 for one that has become less likely. So a large beta_t holds a token where it was. The
default holds the first five, where an answer turns into a refusal or not. beta=[0] is plain SFT, and a single
beta holds all tokens alike: the null of the first five.

t counts the tokens that are trained on: in a row whose answer is begun they start behind its beginning, and
earlier turns are none of them. The p'_t are read once, before the first update, when the model is what the
stage begins with: a pass over the distinct rows without a gradient, divided among the ranks. One number for
every answer token is kept, and no weights.

What is computed is w_t (-log p_t) with no gradient of w_t: it has the gradient of the objective, and not its
value. f, the plain cross-entropy, and the mean of w_t are logged instead.

Departures from the authors' code:
1. It keeps every w_t at 0.001 at least, which the equation does not. That is floor=0.001.
2. Its AdamW has a beta1 of .5 while fine-tuning, for the optimizer to respect the constraint. Here it is that
   of every method, torch's .9.
3. Its mean is over the answer tokens of a micro-batch on a device, here over those of the whole update.
4. Its beta_t and p'_t are rounded to float32.

Compared with their loss (Unispac/shallow-vs-deep-alignment fb1749e3, LoRA and full, float64, 2026-11-29):
with floor=0.001, p'_t in float64 and beta_t rounded as theirs, the same gradient to 4e-15; with beta_t as
they are, to 3e-9. Without the floor 6e-4 of it differ once the rows are learned by heart.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from titer.data.batches import Part
from titer.methods import About, Defense, Fidelity
from titer.training.before import count_tokens, read_before, recall
from titer.training.losses import Loss, entropies
from titer.training.step import Step
from titer.training.vector import Vec


@dataclass
class Before:
    """The log p'_t of every row, (T,) of its T answer tokens, under the row's name."""

    log_p: dict[str, Tensor]


@dataclass(frozen=True)
class ConstrainedSFT(Defense):
    """Token-wise constrained fine-tuning (Qi et al., arXiv 2406.05946)."""

    # beta_t of an answer's tokens in their order; the last one is that of all further tokens
    beta: tuple[float, ...] = (0.5, 2.0, 2.0, 2.0, 2.0, 0.1)
    floor: float = 0.0  # least w_t of a token
    about: ClassVar[About] = About(
        title="constrained SFT",
        paper="2406.05946",
        stage="finetune",
        passes="1",
        fidelity=Fidelity(
            equation="tests/test_constrained_sft.py",
            code="Unispac/shallow-vs-deep-alignment fb1749e3, the loss, float64, 2026-11-29",
        ),
    )
    State: ClassVar[type | None] = Before

    def __post_init__(self) -> None:
        if not self.beta or not all(0.0 <= beta < math.inf for beta in self.beta):
            raise ValueError(
                f"beta={list(self.beta)}: give at least one number, all of them at least 0 and finite"
            )
        if not 0.0 <= self.floor <= 1.0:
            raise ValueError(
                f"floor={self.floor}: must lie between 0 and 1, the weight of a token in plain SFT"
            )

    def prepare(self, step: Step) -> Before:
        """Read the log p'_t of the stage's rows."""
        return Before(read_before(step, step.streams["rows"].rows, log_probabilities))

    def gradient(self, step: Step, state: Before) -> Vec:
        rows = step.batch("rows")
        sums: list[Tensor] = []
        g = step.grad(rows, self._constrain(state, sums))
        f, weight = step.sum_over_ranks(sums, 2)
        step.log(f=f / rows.tokens, weight=weight / rows.tokens)
        return g

    def _constrain(self, before: Before, sums: list[Tensor]) -> Loss:
        """Make a loss of w_t (-log p_t). Of every micro-batch `sums` gets those of -log p_t and w_t."""

        def loss(model: PreTrainedModel, part: Part) -> Tensor:
            log_p = log_probabilities(model, part)  # (N,)
            log_p_before = recall(before.log_p, part).to(log_p)
            beta = self._beta_of(part).to(log_p)  # (N,)
            w = 2 * torch.sigmoid(-beta * (log_p.detach() - log_p_before))
            w = w.clamp(min=self.floor)
            sums.append(torch.stack([-log_p.detach().sum(), w.sum()]).double())
            return -(w * log_p).sum()

        return loss

    def _beta_of(self, part: Part) -> Tensor:
        """Return beta_t of every answer token: (N,)."""
        beta = torch.tensor(self.beta, dtype=torch.float64)
        t = torch.cat([torch.arange(count) for count in count_tokens(part)])  # counted from 0
        return beta[t.clamp(max=len(beta) - 1)]


def log_probabilities(model: PreTrainedModel, part: Part) -> Tensor:
    """Return log p(token | what stands before it) of every answer token, in nats: (N,)."""
    return -entropies(model, part)
