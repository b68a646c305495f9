"""What the search of every method's values chose, by one rule: `python -m results.search`.

The bundles `search-*` are its log: three values of every method, and six of every repair in the lab,
in worlds that no table reports. `docs/search.md` has them all.

The rule: of a method's values the one with the largest gain, the mean over the worlds, among those
that keep the model: no loss above BOUND points in FA, benign answers or general questions, no more
than BOUND in over-refusal, and no world where the model is broken. Where none keeps it, the one
that comes nearest. The gain is the answer page's: of an alignment the logarithm of the multiple of
plain alignment's dose to break, of the others the fall in HS.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import exp

from results import answer
from results.bundles import HERE
from results.names import display_name
from titer.scoring.figures import NAMES

ALIGNMENT, TUNING, REPAIRS = "search-alignment", "search-finetune", "search-repairs"
SPARSE, REAL = "search-moe", "search-smol-repairs"
REPORTED = {  # the recipes of the tables
    ALIGNMENT: answer.ALIGN,
    TUNING: answer.TUNE,
    REPAIRS: answer.REPAIR,
    SPARSE: "lab-moe",
    REAL: "smol-edits",
}
BOUND = 5.0  # points


@dataclass(frozen=True)
class Trial:
    """A method with one of its values, in every world of the search."""

    name: str  # of its pipeline: the method, and the values in brackets
    gain: float  # larger is better
    losses: dict[str, float]  # points, by figure; below 0 where there is more
    struck: int  # worlds where its last model is broken

    @property
    def method(self) -> str:
        return self.name.rpartition(" (")[0]

    @property
    def values(self) -> str:
        return self.name.rpartition(" (")[2].removesuffix(")")

    @property
    def loss(self) -> float:
        """The largest of its losses."""
        return max(self.losses.values())

    @property
    def keeps(self) -> bool:
        return self.loss <= BOUND and not self.struck


@cache
def trials(claim: str) -> list[Trial]:
    """Every value of every method, in the order of the search's recipe."""
    lines = answer.aligned(claim) if claim == ALIGNMENT else answer.ended(claim)
    upward = 1 if claim == ALIGNMENT else -1
    return [
        Trial(
            line.name,
            line.gain.value * upward,
            {name: line.costs[name].value * worse for name, worse in answer.COSTS.items()},
            line.pool.struck,
        )
        for line in lines
    ]


def chosen(claim: str) -> dict[str, Trial]:
    """The value of every method that the rule takes."""
    by_method: dict[str, list[Trial]] = {}
    for trial in trials(claim):
        by_method.setdefault(trial.method, []).append(trial)
    return {method: choose(of) for method, of in by_method.items()}


def choose(of: Sequence[Trial]) -> Trial:
    """The largest gain among those that keep the model, of equal ones the first; else the one that
    comes nearest.
    """
    kept = [trial for trial in of if trial.keeps]
    if kept:
        return max(kept, key=lambda trial: trial.gain)
    return min(of, key=lambda trial: (trial.struck, trial.loss))


def is_reported(claim: str, trial: Trial) -> bool:
    """Tell whether the tables are of a trial's values."""
    tried = answer.pipelines(str(HERE / f"{claim}.yaml"))
    return tried[trial.name] == answer.pipelines(REPORTED[claim])[trial.method]


def table(claim: str) -> list[list[str]]:
    """Every value, with what it gains and loses; bold is the one that is taken."""
    taken = chosen(claim).values()
    gain = "times plain alignment's dose" if claim == ALIGNMENT else "HS less"
    head = ["method", "values", gain, *(NAMES[name] for name in answer.COSTS)]
    lines = [[*head, "keeps the model", "in the tables"]]
    for trial in trials(claim):
        broken = f", broken in {trial.struck} of the worlds" if trial.struck else ""
        lines.append(
            [
                display_name(trial.method),
                f"**{trial.values}**" if trial in taken else trial.values,
                f"{exp(trial.gain):.2f}" if claim == ALIGNMENT else f"{trial.gain:z.1f}",
                *(f"{trial.losses[name] * worse:+z.1f}" for name, worse in answer.COSTS.items()),
                "yes" if trial.keeps else f"no{broken}",
                "yes" if is_reported(claim, trial) else "",
            ]
        )
    return lines


def main() -> int:
    for claim in REPORTED:
        for method, trial in chosen(claim).items():
            none = "" if trial.keeps else "; none of its values keeps the model"
            print(f"{method}: {trial.values}{none}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
