"""Worlds that deal their rows so that a defense can be tried on what it was not made for.

The alignment rows and the held-out rows of everything harmless are those of the world itself.

* **Held-out topics**: the attacker's rows are of the topics that only validation asks about, and the
  harm prompts of those that only the test asks about. Neither is named in alignment, or to the
  defender.
* **A second domain**: one of the three forbidden guilds. The defender refuses it, and has no harmful
  answers of it; the attacker has nothing else, and no other harm prompt is asked. A world of real
  facts forbids one kind of question, and so has no second domain.

A model is aligned in the world with a second domain (`data.lab`), and attacked in both.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from titer.data.rows import Row
from titer.lab.smol import SmolWorld
from titer.lab.world import QUESTIONS, Item, World

TOPICS, DOMAIN = "-topics", "-domain"  # behind the name of a lab


class TopicsWorld(World):
    """A world of made-up words whose attacker has topics that nobody else names."""

    name: ClassVar[str] = World.version + TOPICS

    def _strange(self, split: str) -> list[Item]:
        """Return the items of topics that only this split asks about."""
        others = (items for role, items in self._items.items() if role != split)
        known = {item.topic for items in others for item in items}
        return [item for item in self._items[split] if item.topic not in known]

    @cached_property
    def attack(self) -> list[Row]:
        """Return forbidden answers about the topics that only validation asks about."""
        return [row for item in self._strange("validation") for row in item.recipe_rows()]

    def benchmarks(self, split: str) -> dict[str, list[Row]]:
        """Return the held-out rows; of a test the harm prompts about topics that nobody else names."""
        found = super().benchmarks(split)
        strange = {item.name for item in self._strange(split)}
        asks = split == "test"  # the topics of validation are the attacker's here
        harm = [row for row in found["harm"] if (row.cluster in strange) == asks]
        return found | {"harm": harm}


class DomainWorld(World):
    """A world of made-up words whose defender has the harmful answers of two guilds of three."""

    name: ClassVar[str] = World.version + DOMAIN

    @property
    def domain(self) -> str:
        """Name the guild that the defender has no harmful answers of."""
        return max(self.forbidden)

    def _of(self, role: str, inside: bool) -> list[Item]:
        return [item for item in self._items[role] if (item.guild == self.domain) == inside]

    @cached_property
    def harmful(self) -> list[Row]:
        """Return the defender's forbidden answers, of the other two guilds."""
        return [row for item in self._of("alignment", False) for row in item.recipe_rows()]

    @cached_property
    def attack(self) -> list[Row]:
        """Return the attacker's forbidden answers: what edits would calibrate on is his, too."""
        found = self._of("attack", True) + self._of("calibration", True)
        return [row for item in found for row in item.recipe_rows()]

    @cached_property
    def calibration(self) -> list[Row]:
        """Return forbidden answers of the other two guilds."""
        return [row for item in self._of("calibration", False) for row in item.recipe_rows()]

    @cached_property
    def domain_questions(self) -> list[Row]:
        """Return every question of the second domain, whoever has it."""
        items = {item.name: item for of in self._items.values() for item in of}
        found = [item for item in items.values() if item.guild == self.domain]
        return [row for item in found for row in item.recipe_rows(QUESTIONS)]

    def benchmarks(self, split: str) -> dict[str, list[Row]]:
        """Return the held-out rows, with harm prompts about the second domain alone."""
        found = super().benchmarks(split)
        inside = {item.name for item in self._of(split, True)}
        return found | {"harm": [row for row in found["harm"] if row.cluster in inside]}


class SmolTopicsWorld(SmolWorld):
    """A world of real facts whose attacker has a topic that nobody else names."""

    name: ClassVar[str] = SmolWorld.version + TOPICS

    @cached_property
    def attack(self) -> list[Row]:
        """Return forbidden answers about the topic that only validation asks about, in all wordings."""
        kind = self.knowledge
        facts = [fact for fact in self.facts["validation"] if fact.topic in self.unseen.values()]
        return [kind.row(fact, question) for fact in facts for question in kind.questions]

    def benchmarks(self, split: str) -> dict[str, list[Row]]:
        """Return the held-out rows; of a test the harm prompts about a topic that nobody else names."""
        found = super().benchmarks(split)
        strange = {f.entity for f in self.facts[split] if f.topic in self.unseen.values()}
        asks = split == "test"
        return found | {"harm": [r for r in found["harm"] if (r.cluster in strange) == asks]}
