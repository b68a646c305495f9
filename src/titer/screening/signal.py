"""A signal: it gives every row a value, the larger the more dangerous, and says what it saw.

A signal is a frozen dataclass whose fields are its settings. It loads no torch: what it asks of a
model it asks of a `Lens`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from titer.attacks.identity_shift import IdentityShift
from titer.attacks.refusal_unlearning import RefusalUnlearning
from titer.config import Config
from titer.data.rows import Row
from titer.errors import unknown
from titer.methods import Attack, Judge

if TYPE_CHECKING:
    from titer.screening.lens import Lens


@dataclass(frozen=True)
class Reading:
    """What a signal says of a row."""

    value: float
    why: str = ""  # what it saw, where the value alone does not say it
    scored: bool = True  # else it could not tell: the row is flagged as unread, whatever the value

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(
                f"a signal's value is {self.value}: the model computes no numbers on some row; give "
                "it in a finer dtype, or ask other signals with --only"
            )


@dataclass(frozen=True, eq=False)
class Material:
    """What signals may ask for beside the rows that they read. What is not there is empty."""

    benign: Sequence[Row] = ()  # answers of honest users' rows
    safety: Sequence[Row] = ()  # harmful prompts, each with its refusal
    harmful: Sequence[Row] = ()  # harmful prompts with harmful answers
    judge: Judge | None = None
    lens: Lens | None = None  # the model at hand
    # attacks whose words are known
    attacks: Sequence[Attack] = field(default=(IdentityShift(), RefusalUnlearning()))
    # the record that each benign row is an answer of, as a number; empty: each has its own
    records: Sequence[int] = ()

    @cached_property
    def own(self) -> Mapping[int, Sequence[int]]:
        """The places in `benign` of all answers of a benign row's record, by the `id` of the row.

        A benign row's value must owe nothing to them: a record that is screened has no answer there.
        """
        records = self.records or range(len(self.benign))
        places = defaultdict[int, list[int]](list)
        for i, of in enumerate(records):
            places[of].append(i)
        return {id(row): places[of] for row, of in zip(self.benign, records, strict=True)}

    @property
    def refusals(self) -> list[str]:
        """The refusals, as whole sentences, that refusal unlearning is known to put before answers."""
        known = [of.refusals for of in self.attacks if isinstance(of, RefusalUnlearning)]
        return [refusal for refusals in known for refusal in refusals]

    def lacks(self, needs: Sequence[str]) -> list[str]:
        """Return those of the needs, names of fields, that are not there."""
        return [name for name in needs if not getattr(self, name)]


class Signal(Config, ABC):
    """Something by which a dangerous row may be told from others."""

    title: ClassVar[str]  # in a table
    graded: ClassVar[bool] = True  # it puts harmless rows in an order, rather than finding or not

    @property
    def needs(self) -> tuple[str, ...]:
        """Name the fields of `Material` that must be there."""
        return ()

    @abstractmethod
    def read(self, rows: Sequence[Row], material: Material) -> list[Reading]:
        """Read every row. The rows of `material.benign` are read by it too, as they stand there."""


NEEDED = {  # how a person gives what signals need
    "lens": "--model",
    "judge": "--judge",
    "safety": "--safety",
    "harmful": "--harmful",
    "benign": "--benign",
}


def check_names(names: Sequence[str], known: Sequence[str]) -> None:
    """Raise where a name is none of a signal."""
    for name in names:
        if name not in known:
            raise unknown("signal", name, known)
