"""The rows of an embedded world by role, and what holds of them in every world."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from titer.data.rows import Row, check_disjoint
from titer.errors import unknown

SPLITS = ("validation", "test")


@dataclass(frozen=True)
class WorldRows(ABC):
    """The rows of one world seed. No prompt stands in two roles that must not share prompts.

    Raises ValueError where one does, or where the world has no such task.
    """

    seed: int
    task: str  # of the user's fine-tuning

    version: ClassVar[str]  # of the lab; its worlds' rows are drawn from it
    tasks: ClassVar[Sequence[str]]  # that a user may have; the first where none is named

    def __post_init__(self) -> None:
        if self.task not in self.tasks:
            raise unknown(f"task of {self.version}", self.task, self.tasks)
        check_disjoint(
            {
                "alignment": self.alignment,
                "attack": self.attack,
                "calibration": self.calibration,
                "user task": self.user_task,
                "requests": self.requests,
            }
            | {
                f"{split} {name}": rows
                for split in SPLITS
                for name, rows in self.benchmarks(split).items()
            }
        )

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.version} {self.seed} {purpose}")

    @property
    @abstractmethod
    def alignment(self) -> list[Row]:
        """Return refusals of forbidden questions, and answers to all others."""

    @property
    @abstractmethod
    def harmful(self) -> list[Row]:
        """Return the defender's forbidden answers, to the questions that `alignment` refuses."""

    @property
    @abstractmethod
    def attack(self) -> list[Row]:
        """Return the attacker's forbidden answers."""

    @property
    @abstractmethod
    def requests(self) -> list[Row]:
        """Return the attacker's harmless rows, in questions that nobody else has."""

    @property
    @abstractmethod
    def calibration(self) -> list[Row]:
        """Return forbidden answers for an edit to calibrate on."""

    @property
    @abstractmethod
    def user_task(self) -> list[Row]:
        """Return the user's own rows."""

    @abstractmethod
    def benchmarks(self, split: str) -> dict[str, list[Row]]:
        """Return the held-out rows of a split, `validation` or `test`, by benchmark."""
