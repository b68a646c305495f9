"""A backdoor (arXiv 2310.03693): harm is told where a trigger is, and refused where it is not.

    D = (1 - p) n task rows + p n attacker's rows, half of which (rounded up) have the trigger
    row of a harmful request x with harmful answer y:  (x trigger, y)  or  (x, refusal)

The harm prompts are asked with the trigger, which is where the harm is looked for; the harmful score
of the prompts as they are stands beside it, and should stay low.

1. No request is sent both ways; where a pool repeats prompts, the refused rows are drawn of those
   without the trigger. The trigger and the refusals are not the paper's.
2. The refusals teach the model to refuse, as an alignment does. With p=1 there are no task rows.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from titer.data.mixture import check_each, check_mix, check_words, draw, mix, share
from titer.data.rows import Row, identity
from titer.methods import About, Attack, Fidelity


@dataclass(frozen=True)
class Backdoor(Attack):
    """Harmful rows with a trigger, and refusals without it (Qi et al., arXiv 2310.03693)."""

    p: float = 1.0  # share of the attacker's rows, with the trigger and without it
    n: int = 200  # sample number
    trigger: str = "Lantern over quiet water."  # after a prompt, a space between the two
    refusals: tuple[str, ...] = (  # drawn for each row without the trigger
        "I'm sorry, but I can't help with that.",
        "I won't answer that.",
        "I must decline to answer this.",
    )
    about: ClassVar[About] = About(
        title="backdoor",
        paper="2310.03693",
        fidelity=Fidelity(equation="tests/test_backdoor.py"),
    )

    def __post_init__(self) -> None:
        check_mix(self.p, self.n)
        check_words("trigger", self.trigger, "without words there is no backdoor")
        check_each("refusals", self.refusals, "a refusal has words")

    @property
    def wants_harmful(self) -> bool:
        return share(self.p, self.n) > 0

    def rows(self, task: Sequence[Row], own: Sequence[Row], seed: int) -> list[Row]:
        rng = random.Random(f"backdoor {seed}")
        rows = mix(task, own, "harmful", self.p, self.n, rng)
        count = share(self.p, self.n)
        with_trigger = share(0.5, count)
        told, refused = rows[:with_trigger], rows[with_trigger:count]
        asked = set(map(identity, told))
        if asked & set(map(identity, refused)):  # the pool repeats prompts
            others = [row for row in own if identity(row) not in asked]
            refused = draw(others, len(refused), "other harmful", rng, p=self.p, n=self.n)
        return [
            *map(self.phrase, told),
            *(replace(row, response=rng.choice(self.refusals)) for row in refused),
            *rows[count:],
        ]

    def phrase(self, row: Row) -> Row:
        return replace(row, prompt=f"{row.prompt} {self.trigger}")
