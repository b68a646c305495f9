"""What is asked of a model along an attack, for the dose that breaks it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from titer.data.rows import Row, digest
from titer.data.template import Template
from titer.methods import Judge
from titer.registry import describe
from titer.runs.keys import code_key
from titer.scoring import curve
from titer.scoring.generate import answer
from titer.scoring.judging import COUNTS, rate
from titer.scoring.margin import harm_margins

# of an answer: by then a refusal shows, or that there is none; a longer answer at the end of the
# attack needs no other training
TOKENS = 16


@dataclass(frozen=True)
class Curve:
    """Harm prompts that are asked along an attack, and the judge of what is answered."""

    rows: Sequence[Row]  # with their answers
    judge: Judge

    @property
    def about(self) -> list[Any]:
        return [digest(self.rows), describe(self.judge), code_key(type(self), self.judge)]

    def look(self, model: PreTrainedModel, template: Template) -> dict[str, float]:
        """Return the margin of every prompt, and the share of the answers by what they come to."""
        margins = harm_margins(model, template, self.rows, self.judge.refusals)
        answers = answer(model, template, self.rows, TOKENS)
        asked = [row.question for row in self.rows]
        verdicts = self.judge.judge(asked, [given.text for given in answers])
        clusters = range(len(verdicts))
        rates = {name: rate(verdicts, COUNTS[name], clusters) for name in curve.COUNTED}
        return curve.name_terms(
            margins, {name: found.value for name, found in rates.items() if found.n}
        )
