"""Adversarial loss (arXiv 2402.16382; arXiv 2405.14577, equation 4): learn refusals, unlearn harmful answers.

    min_w  f(w) - beta b(h(w))

f is the cross-entropy of refusals, h that of harmful answers. -h has no bound below: followed as it is, it
drowns f within some updates. So the ascent is bounded by b, in one of two ways:

    bound="log":    b(h) = log(1 + h)                          its gradient grad h / (1 + h) weakens
    bound="clamp":  b(h) = mean over tokens of min(h_t, ln V)  a token less likely than one in V is left alone

Prompts carry no loss, so the tokens that a refusal and a harmful answer share stay untouched.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from transformers import PreTrainedModel

from titer.data.batches import Part
from titer.methods import About, Aware, Defense, Fidelity, Harmful, Needs, Refusals
from titer.training.losses import cross_entropy, entropies
from titer.training.step import Step
from titer.training.vector import Vec


@dataclass(frozen=True)
class AdversarialLoss(Defense):
    """Ascent on harmful answers beside descent on refusals (Rosati et al., arXiv 2402.16382)."""

    beta: float = 0.1  # beta, weight of the ascent; the default is ours
    bound: Literal["log", "clamp"] = "log"  # b, what keeps the ascent from drowning f
    about: ClassVar[About] = About(
        title="adversarial loss",
        paper="2402.16382",
        stage="align",
        passes="2",
        fidelity=Fidelity(equation="tests/test_adversarial_loss.py"),
        aware=Aware(
            "it moves the last layers alone: at twice the rate its harm is near an undefended model's "
            "(arXiv 2405.14577)",
            rate=2.0,
        ),
    )
    needs = Needs(streams={"rows": Refusals, "harmful": Harmful})

    def __post_init__(self) -> None:
        if not self.beta >= 0.0:
            raise ValueError(
                f"beta={self.beta}: must be at least 0; a negative one would learn the harmful answers"
            )

    def gradient(self, step: Step, state: None) -> Vec:
        g_f = step.grad(step.batch("rows"))  # grad f
        g_h = step.grad(
            step.batch("harmful"), clamp_entropy if self.bound == "clamp" else cross_entropy
        )  # grad h
        assert g_h.loss is not None  # it is a gradient
        step.log(f=g_f.loss, h=g_h.loss)
        return g_f - (self.beta if self.bound == "clamp" else self.beta / (1 + g_h.loss)) * g_h


def clamp_entropy(model: PreTrainedModel, part: Part) -> Tensor:
    """Compute the cross-entropy in which no token counts more than ln V, as a uniform guess.

    A token at the bound has no gradient.
    """
    return (
        entropies(model, part).clamp(max=math.log(model.config.get_text_config().vocab_size)).sum()
    )
