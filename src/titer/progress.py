"""Where a run tells how far it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class Progress(Protocol):
    """Is told of every step of a run: to compute a stage, to score its model."""

    def expect(self, steps: Sequence[str], stored: int) -> None:
        """Take the steps that will be computed, in order, and how many the store has already.

        The same step twice in a row is one step in two parts.
        """

    def begin(self, step: str) -> None:
        """A step begins."""

    def advance(self, done: int, of: int, terms: Mapping[str, float]) -> None:
        """The step that has begun is so far: updates, tensors, answers."""

    def end(self) -> None:
        """The step is computed."""


class Silent:
    """Tells nobody."""

    def expect(self, steps: Sequence[str], stored: int) -> None: ...
    def begin(self, step: str) -> None: ...
    def advance(self, done: int, of: int, terms: Mapping[str, float]) -> None: ...
    def end(self) -> None: ...


def span(seconds: float) -> str:
    """Write a time in a short way."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
