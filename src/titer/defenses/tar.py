"""TAR (arXiv 2408.00761, section 4): train against tampering, by attacking along the way.

Every update follows an attack of K steps from w, on the defender's harmful rows:

    w_0 = w,  w_i = AdamW(w_(i-1), grad CE)                  i = 1 .. K
    g   = lam_tr sum_i c_i grad L_tr(w_i; held out) + lam_retain grad L_retain(w; rows)
                                                             i = every, 2 every, .. K

    L_tr      entropy: mean over answer tokens of sum_v p_v log p_v, so that a harmful answer stays a guess
              dpo: mean over rows of -log sigma(beta (log p(refusal) - log p(harmful answer)
                                                      - the same of the reference))
    L_retain  CE + lam_rep mean over tokens and residual streams of ||h - h_reference||
    c_i       exp(growth (i - K)), so that the end of the attack counts most

The gradient at w_i is applied at w (first order). The reference is the model that the stage began with. The
attack trains what the stage trains: under a LoRA it is an adapter's, and one large model fits where its
adapter can be trained. A share `switch` of the attacks begins with rows of the stage, for Beta(6, 3) of their
steps, as an attack does that first repairs its losses.

Departures from the authors' code:
1. Entropy is of answer tokens alone, the distance of real tokens. Theirs are of all positions: prompts, pads,
   and what is behind the last token.
2. The rows of L_tr are held out from the attack's in the DPO form too.
3. Their rows of hazardous texts are not harmful answers to prompts, and their first phase (random mapping) is
   not here.
4. distance="squared" is what the paper writes; the norm, unsquared, is what their code does. The last
   residual stream is taken before the final norm, theirs behind it.

Compared with their training loop (rishub-tamirisa/tamper-resistance 19de233f, one outer step, float64,
2026-11-21): with 1 and the final norm put aside, the same gradient to 1e-15, entropy and DPO; as it is, 14 %
of it differs where rows are all answer, 36 % with prompts.
"""

import math
import random
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from titer.data.batches import Batch, Part
from titer.methods import About, Aware, Defense, Fidelity, Harmful, HeldOut, Needs, Refusals
from titer.training.layers import watch_layers
from titer.training.losses import Loss, answer_logits, cross_entropy, entropies, run, wide
from titer.training.step import Step
from titer.training.vector import Vec


@dataclass(frozen=True)
class TAR(Defense):
    """Tampering attack resistance (Tamirisa et al., arXiv 2408.00761)."""

    k: int = 64  # K, steps of an attack; 0 leaves the retain term
    every: int = 4  # steps of an attack from one at which L_tr has its gradient taken to the next
    loss: Literal["entropy", "dpo"] = "entropy"  # L_tr
    lam_tr: float = 4.0  # weight of L_tr
    lam_retain: float = 1.0  # weight of L_retain
    lam_rep: float = 1.0  # weight of the distance in it
    growth: float = 0.0625  # of c_i, per step
    beta: float = 0.1  # beta of DPO
    # learning rates of attacks, of which each draws one
    inner_lr: tuple[float, ...] = (2e-6, 2e-5, 4e-5)
    adversary: Literal["adamw", "sgd"] = "adamw"  # the optimizer of an attack
    switch: float = 1 / 3  # share of the attacks that begin with rows of the stage
    # in L_retain, from the residual streams of the reference: the norm, or its square
    distance: Literal["norm", "squared"] = "norm"
    about: ClassVar[About] = About(
        title="TAR",
        paper="2408.00761",
        stage="align",
        passes="K + floor(K/every) c + 1 + 1/3, c = 1 with entropy, 2 with dpo",
        fidelity=Fidelity(
            equation="tests/test_tar.py",
            code="rishub-tamirisa/tamper-resistance 19de233f, one outer step, float64, 2026-11-21",
        ),
        aware=Aware(
            "it withstands attacks of K steps, of the weights that it trained, at the rates that it drew: "
            "more steps at a higher rate, of an adapter, are none of these (arXiv 2408.00761)",
            updates=200,
            rate=3.0,
        ),
    )
    needs = Needs(
        streams={"rows": Refusals, "harmful": Harmful, "held_out": HeldOut}, references=("start",)
    )

    def __post_init__(self) -> None:
        for name in ("lam_tr", "lam_retain", "lam_rep", "growth", "beta"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 0")
        if self.k < 0 or self.every < 1:
            raise ValueError(
                f"k={self.k}, every={self.every}: give at least 0 steps, and at least 1 from one gradient to "
                "the next"
            )
        if 0 < self.k < self.every:
            raise ValueError(
                f"k={self.k}: an attack is never looked at before step {self.every}; lower every, or let it "
                "last longer"
            )
        if not self.inner_lr or not all(lr > 0.0 for lr in self.inner_lr):
            raise ValueError(
                f"inner_lr={list(self.inner_lr)}: give at least one learning rate, all above 0"
            )
        if not 0.0 <= self.switch <= 1.0:
            raise ValueError(f"switch={self.switch}: a share lies between 0 and 1")

    def prepare(self, step: Step) -> None:
        if self.loss == "dpo" and not all(row.other for row in step.streams["held_out"].rows):
            raise ValueError(
                "loss='dpo' compares refusals with harmful answers of the same prompts: give data.alignment "
                "the defender's prompts"
            )

    def gradient(self, step: Step, state: None) -> Vec:
        g_tr = self._attack(step) if self.k else Vec(())
        g_retain = step.grad(step.batch("rows"), self._retain(step, step.batch("rows")))
        step.log(retain=g_retain.loss)
        return self.lam_tr * g_tr + self.lam_retain * g_retain

    def _attack(self, step: Step) -> Vec:
        """Sum c_i grad L_tr(w_i) along an attack, in place; the weights return to w."""
        held_out = step.batch("held_out")  # the same rows along the whole attack
        loss = _negative_entropy if self.loss == "entropy" else self._dpo(step, held_out)
        rng = random.Random(
            f"tar {step.streams['held_out'].seed} {step.update}"
        )  # ranks agree on the attack
        lr, switches = rng.choice(self.inner_lr), rng.random() < self.switch
        # steps on rows of the stage
        repaired = int(rng.betavariate(6, 3) * self.k) if switches else 0
        weights = step.parameters.values()
        g_tr = Vec(())
        with step.scratch():
            inner = (
                torch.optim.AdamW(weights, lr)
                if self.adversary == "adamw"
                else torch.optim.SGD(weights, lr)
            )
            for i in range(1, self.k + 1):
                g = step.grad(step.draw("rows" if i <= repaired else "harmful"))
                g.hand_to(step.parameters)
                inner.step()  # w_i
                if i % self.every == 0:
                    g_i = step.grad(held_out, loss)
                    g_tr = Vec.of((g_tr + math.exp(self.growth * (i - self.k)) * g_i).fold())
        step.log(attack=g.loss, tr=g_i.loss)
        return g_tr

    def _retain(self, step: Step, rows: Batch) -> Loss:
        """Make a loss of CE + lam_rep ||h - h_reference||."""
        with step.reference(), step.computing():
            references = {id(part): _residuals(step, part) for part in rows.parts}  # each (N, D)

        def loss(model: PreTrainedModel, part: Part) -> Tensor:
            with watch_layers(step.layers) as seen:
                f = cross_entropy(model, part)
            total = f.new_zeros(())
            for residual, reference in zip(seen.residuals, references[id(part)], strict=True):
                moved = (residual[part.real] - reference).norm(dim=1)  # (N,)
                total = total + (moved if self.distance == "norm" else moved**2).sum()
            # step.grad divides by the tokens of the answers; this mean is over all tokens
            return f + self.lam_rep * rows.tokens / rows.length * total / len(seen.residuals)

        return loss

    def _dpo(self, step: Step, held_out: Batch) -> Loss:
        """Make a loss of -log sigma(beta (margin - margin of the reference)).

        A margin is log p(refusal) - log p(harmful answer).
        """
        assert held_out.others is not None  # `prepare` has looked
        refusals = dict(zip(map(id, held_out.parts), held_out.others.parts, strict=True))

        def margin(part: Part) -> Tensor:
            return _log_p(step.model, refusals[id(part)]) - _log_p(step.model, part)  # (B,)

        with step.reference(), step.computing():
            references = {id(part): margin(part) for part in held_out.parts}

        def loss(model: PreTrainedModel, part: Part) -> Tensor:
            lost = -nn.functional.logsigmoid(
                self.beta * (margin(part) - references[id(part)])
            ).sum()
            return (
                lost * held_out.tokens / held_out.rows
            )  # step.grad divides by the tokens; this mean is over rows

        return loss


def _negative_entropy(model: PreTrainedModel, part: Part) -> Tensor:
    """Sum sum_v p_v log p_v over answer tokens, in nats."""
    log_p = wide(answer_logits(model, part)).log_softmax(1)  # (N, V)
    total: Tensor = (log_p.exp() * log_p).sum()
    return total


def _log_p(model: PreTrainedModel, part: Part) -> Tensor:
    """Compute the log-probability of every row's answer: (B,)."""
    return -part.sum_by_row(entropies(model, part))


def _residuals(step: Step, part: Part) -> list[Tensor]:
    """Take the residual streams at real tokens, before every layer and after the last: (N, D)."""
    with watch_layers(step.layers) as seen:
        run(step.model, part)
    return [residual[part.real] for residual in seen.residuals]
