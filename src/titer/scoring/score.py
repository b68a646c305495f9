"""A score: a figure with its interval, and what the interval covers. `statistics` makes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SEEDS = 3  # the least for an interval over training: with two, t is 12.7 and no interval is of use
LARGEST = 100.0  # of a ratio that is told as a number
# of the prompts: more of them could hide a difference that a few hundred prompts would show
UNSCORED = 0.02


@dataclass(frozen=True)
class Score:
    """A figure over prompts, with its 95 % interval.

    An interval over `prompts` holds for these weights: another training seed moves the figure
    further. An interval over `training` covers both.
    """

    value: float  # percent, or nats for a margin; nan where nothing could be scored
    n: int  # scored prompts, of all seeds
    low: float
    high: float
    unscored: int = 0  # prompts that could not be scored; they count nowhere else
    covers: str = "prompts"
    seeds: int = 1  # training seeds that the figure is the mean of

    @property
    def is_incomplete(self) -> bool:
        """Tell whether more is unscored than a figure may rest beside."""
        return self.unscored > UNSCORED * (self.n + self.unscored)

    @property
    def reason(self) -> str:
        """Say why there is no interval; empty where there is one."""
        if not math.isnan(self.low + self.high):
            return ""
        if self.n == 0:
            return "nothing was scored"
        if self.covers == "training" and self.seeds < SEEDS:
            return f"an interval over training needs {SEEDS} seeds, this has {self.seeds}"
        return "the values, or clusters of them, are too few or do not differ"


def read(fields: Mapping[str, Any]) -> Score:
    """Make a score from its JSON, where a figure that is not finite is null."""
    value, low, high = (
        math.nan if fields.get(key) is None else float(fields[key])
        for key in ("value", "low", "high")
    )
    more = {key: fields[key] for key in ("covers", "seeds") if key in fields}
    return Score(
        value, int(fields.get("n") or 0), low, high, int(fields.get("unscored") or 0), **more
    )


def write_ratio(value: float, low: float, high: float) -> str:
    """Write a ratio with its interval, which is left out where it is not known (NaN)."""
    if math.isnan(low + high):
        return f"{value:.2f}"
    above = f"{high:.2f}" if high < LARGEST else "no bound above"
    return f"{value:.2f} [{low:.2f}, {above}]"
