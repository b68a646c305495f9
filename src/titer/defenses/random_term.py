"""Random term: the null of what a method adds to plain fine-tuning's gradient, which its direction has to beat.

    g = grad f(w) + ||g_match - grad f(w)|| u,    u uniform on the unit sphere

g_match is the gradient of `match`: RepNoise (arXiv 2405.14577), TAR (2408.00761) or the adversarial loss (2402.16382), say, each of which
adds terms of harmful rows to grad f. Here a step goes along a random direction u over the trainable weights, a new one at every update, and
is as long as those terms are together. What noise of this size does by itself, this does too; only what `match` does beyond it is owed
to where its terms point. Its attacks and passes are run for the norm alone, so it costs what `match` costs, and one pass more.

u is that of `random_booster`: it follows from the stage's seed and the update's number.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from titer.defenses.adversarial_loss import AdversarialLoss
from titer.defenses.random_booster import direction
from titer.methods import Defense, Harmful, HeldOut, Kind, Pairs, Refusals
from titer.registry import name_of
from titer.training.settings import Phase
from titer.training.step import Step
from titer.training.vector import Vec

WITH_HARM = {Harmful, Pairs, HeldOut}


@dataclass(frozen=True)
class RandomTerm(Defense):
    """Noise as large as what `match` adds to grad f: a null for arXiv 2402.16382, 2405.14577 and 2408.00761."""

    match: Defense = field(default_factory=AdversarialLoss)  # whose terms are met in size
    paper: ClassVar[str] = "2402.16382"
    streams: ClassVar[Mapping[str, Kind]] = {
        "rows": Refusals,
        "harmful": Harmful,
    }  # those of the default; an instance has its match's

    def __post_init__(self) -> None:
        if isinstance(self.match, RandomTerm) or not WITH_HARM & set(self.match.streams.values()):
            raise ValueError(
                f"match={name_of(self.match)}: it adds no terms of harmful rows to grad f; give repnoise, tar, adversarial_loss"
            )
        for declared in ("streams", "State", "reference"):
            object.__setattr__(self, declared, getattr(self.match, declared))

    @property
    def period(self) -> int:
        return self.match.period

    def prepare(self, step: Step) -> Any:
        return self.match.prepare(step)

    def schedule(self, updates: int) -> Iterable[Phase]:
        return self.match.schedule(updates)

    def gradient(self, step: Step, state: Any) -> Vec:
        g_match = self.match.gradient(step, state)
        g_f = step.grad(step.batch("rows"))  # grad f(w)
        if set(g_match.names()) != set(g_f.names()):
            raise ValueError(
                f"match={name_of(self.match)}: it trains a part of the weights at an update, so it adds no term to grad f"
            )
        size = (g_match - g_f).norm()
        step.log(f=g_f.loss, term=size)
        return g_f + size * direction(step)

    def finish(self, step: Step, state: Any) -> None:
        self.match.finish(step, state)

    def restored(self, fields: Mapping[str, Any]) -> Any:
        return self.match.restored(fields)
