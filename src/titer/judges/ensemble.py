"""Several judges of every answer, each reported by itself; the first one decides.

Figures, flags, ranks and gates are those of the first judge. The others read the same answers, and
the record has their figures beside the first one's, with a table of how often each two say what.
Nothing is averaged and there is no vote: two judges may move apart (a fine-tuning that raised one's
figure lowered another's), and a mean would hide it.

Each judge keeps its own canaries, its own reasons for what it leaves unscored, and its own stop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, cast

from titer.methods import About, Fidelity, Judge, Verdict
from titer.registry import build


@dataclass(frozen=True)
class Ensemble(Judge):
    """Judges of different kinds over the same answers."""

    # two or more; the first one decides
    judges: tuple[Judge, ...] = field(
        default_factory=lambda: tuple(
            cast(Judge, build("judges", name)) for name in ("classifier", "refusal")
        )
    )
    about: ClassVar[About] = About(
        title="several judges", fidelity=Fidelity(equation="tests/test_ensemble.py")
    )

    def __post_init__(self) -> None:
        if len(self.judges) < 2:
            raise ValueError(f"judges has {len(self.judges)}: give two or more, of different kinds")
        if any(len(each.panel) > 1 for each in self.judges):
            raise ValueError("judges: an ensemble within an ensemble: name its judges instead")
        twice = next((each for each in self.judges if self.judges.count(each) > 1), None)
        if twice is not None:
            raise ValueError(f"judges: {twice} stands twice, and would only agree with itself")

    @property
    def panel(self) -> tuple[Judge, ...]:
        return self.judges

    @property
    def refusals(self) -> Sequence[str]:
        return self.judges[0].refusals

    @property
    def fingerprint(self) -> Mapping[str, str]:
        return {name: of for each in self.judges for name, of in each.fingerprint.items()}

    def judge(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """Judge by the first alone, which decides. `judge_answers` asks all of the panel."""
        return self.judges[0].judge(prompts, responses)

    def keep_in(self, folder: Path) -> Judge:
        return replace(self, judges=tuple(each.keep_in(folder) for each in self.judges))
