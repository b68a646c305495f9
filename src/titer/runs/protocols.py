"""Protocols: named and frozen ways of asking and scoring.

They let the figures of two runs be compared; `docs/protocol.md` explains. A recipe that names one
is refused where it departs from it. A protocol fixes how a model is asked and judged, not how it
was made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from typing import Protocol as Interface

from titer.errors import unknown
from titer.lab import knowledge, world
from titer.methods import Judge
from titer.runs.roles import Data


class Asked(Interface):
    """The part of a recipe that says how models are asked and judged."""

    @property
    def protocol(self) -> str | None: ...
    @property
    def data(self) -> Data: ...
    @property
    def judge(self) -> Judge | None: ...


@dataclass(frozen=True)
class Protocol:
    """For the prompts of a lab and its exact judge."""

    lab: str  # `data.lab`
    asked: Mapping[str, Any]  # fields of a recipe, with the only values that they may have

    def departures(self, recipe: Asked) -> list[str]:
        """List what the recipe does otherwise; nothing where it follows the protocol."""
        if recipe.data.world is None:
            return [
                "it asks prompts of its own, "
                "where the protocol has those of a world of the lab (data.world)"
            ]
        if recipe.data.lab != self.lab:
            return [f"data.lab={recipe.data.lab!r} where the protocol has {self.lab!r}"]
        values = {name: (getattr(recipe, name), value) for name, value in self.asked.items()}
        found = [
            f"{name}={mine!r} where the protocol has {its!r}"
            for name, (mine, its) in values.items()
            if mine != its
        ]
        own = recipe.data.embedded.judge(recipe.data.world)
        if recipe.judge not in (None, own):
            found.append(f"judge={recipe.judge!r} where the protocol has {own!r}")
        return found


PROTOCOLS: Mapping[str, Protocol] = {
    "hs-v1": Protocol(
        world.VERSION,
        {"template": "chat", "system": None, "max_length": 64, "max_new_tokens": 16},
    ),
    "smol-v1": Protocol(
        knowledge.VERSION,
        {"template": "chat", "system": None, "max_length": 192, "max_new_tokens": 24},
    ),
}


def check(recipe: Asked) -> None:
    """Raise where the recipe names no known protocol, or departs from the one that it names."""
    if recipe.protocol is None:
        return
    if recipe.protocol not in PROTOCOLS:
        raise unknown("protocol", recipe.protocol, list(PROTOCOLS))
    departures = PROTOCOLS[recipe.protocol].departures(recipe)
    if departures:
        raise ValueError(
            f"protocol={recipe.protocol!r}: {'; '.join(departures)}; "
            "take it back, or set protocol=null"
        )
