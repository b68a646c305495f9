"""Phases: a defense divides a stage into runs of equal updates."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """A run of equal updates. A defense with two kinds of update yields several."""

    name: str
    updates: int
    # a constant learning rate of its own; None follows the stage's schedule
    lr: float | None = None
    clipped: bool = True  # whether the stage's gradient clipping applies
    # whether the updates advance the stage's schedule and count towards its length
    counted: bool = True
