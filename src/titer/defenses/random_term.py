"""Random term: the null of what a method adds to plain fine-tuning's gradient, for its direction to beat.

    g = grad f(w) + ||g_match - grad f(w)|| u,    u uniform on the unit sphere

g_match is the gradient of `match`: RepNoise (arXiv 2405.14577), TAR (2408.00761) or the adversarial loss
(2402.16382), say, each of which adds terms of harmful rows to grad f. Here a step goes along a random
direction u over the trainable weights, a new one at every update, and is as long as those terms are together.
What noise of this size does by itself, this does too; only what `match` does beyond it is owed to where its
terms point. Its attacks and passes are run for the norm alone, so it costs what `match` costs, and one pass
more.

u is that of `random_booster`: it follows from the stage's seed and the update's number.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from titer.composition import Composed
from titer.defenses.adversarial_loss import AdversarialLoss
from titer.defenses.random_booster import direction
from titer.methods import About, Defense, Fidelity, Harmful, HeldOut, Pairs
from titer.registry import name_of
from titer.training.step import Step
from titer.training.vector import Vec

WITH_HARM = {Harmful, Pairs, HeldOut}


@dataclass(frozen=True)
class RandomTerm(Composed):
    """Noise as large as what `match` adds to grad f: a null for arXiv 2402.16382, 2405.14577, 2408.00761."""

    match: Defense = field(default_factory=AdversarialLoss)  # whose terms are met in size
    about: ClassVar[About] = About(
        title="random term",
        paper="2402.16382",
        stage="align",
        control=True,
        passes="1 + those of match",
        fidelity=Fidelity(equation="tests/test_random_term.py"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        mend = "give repnoise, tar or adversarial_loss"
        if isinstance(self.match, RandomTerm) or not WITH_HARM & set(
            self.match.needs.streams.values()
        ):
            raise ValueError(
                f"match={name_of(self.match)}: it adds no terms of harmful rows to grad f; {mend}"
            )
        if self.match.partial:
            raise ValueError(
                f"match={name_of(self.match)}: it trains a part of the weights at an update, so it adds no "
                "term to "
                f"grad f; {mend}"
            )

    def gradient(self, step: Step, state: Any) -> Vec:
        g_match = self.match.gradient(step, state)
        g_f = step.grad(step.batch("rows"))  # grad f(w)
        assert set(g_match.names()) == set(g_f.names()), (
            f"{name_of(self.match)} leaves trained weights untouched: it has to say so, by `partial`"
        )
        size = (g_match - g_f).norm()
        step.log(f=g_f.loss, term=size)
        return g_f + size * direction(step)
