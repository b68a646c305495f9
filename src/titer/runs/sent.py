"""What the user sends by an attack, and which of its rows are the attacker's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from titer.data.rows import Row, identity
from titer.methods import Attack, Selection
from titer.runs.roles import Roles


@dataclass(frozen=True, eq=False)
class Sent:
    """The rows of an attack, made of a plan's roles."""

    attack: Attack
    roles: Roles
    rows: list[Row]  # that the user fine-tunes on, or that those are chosen from
    first: list[Row]  # of a fine-tuning before it; mostly there is none
    examples: list[Row]  # that rows to choose from are compared with

    @staticmethod
    def of(attack: Attack, roles: Roles, seed: int) -> Sent:
        """Make the rows. Raises where there are too few."""
        own = roles.attack if attack.wants_harmful else roles.requests
        rows, first = (make(roles.task, own, seed) for make in (attack.rows, attack.first_rows))
        examples = attack.draw_examples(own, seed) if isinstance(attack, Selection) else []
        return Sent(attack, roles, rows, first, examples)

    @property
    def selection(self) -> Selection | None:
        """The attack, where the model that it attacks chooses among the rows."""
        return self.attack if isinstance(self.attack, Selection) else None

    @property
    def size(self) -> int:
        """How many rows the user fine-tunes on."""
        return self.selection.count if self.selection else len(self.rows)

    @property
    def counts(self) -> dict[str, int]:
        """What a record says of the rows."""
        first = {"rows of the fine-tuning before": len(self.first)} if self.first else {}
        return {"harmful rows": self.harmful_rows, "attack rows": self.attack_rows} | first

    @cached_property
    def harmful_rows(self) -> int:
        """How many of the rows are harmful: as they were given, or in the attacker's words."""
        pool = {*self.roles.attack, *map(self.attack.phrase, self.roles.attack)}
        return sum(row in pool for row in self.rows)

    @cached_property
    def attack_rows(self) -> int:
        """How many of them are the attacker's, harmful or not.

        All that are chosen are his, and so is a row of the task that he had answered otherwise before.
        """
        if self.selection:
            return self.selection.count
        pool, before = set(self.roles.task), set(map(identity, self.first))
        return sum(row not in pool or identity(row) in before for row in self.rows)
