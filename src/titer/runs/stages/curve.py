"""What is asked of a model along an attack: how much of it breaks the model, and when the task is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel

from titer.data.rows import Row, digest
from titer.data.template import Template
from titer.methods import Judge
from titer.registry import describe
from titer.runs.keys import code_key
from titer.scoring import curve
from titer.scoring.generate import answer
from titer.scoring.judging import COUNTS, ask_judge, rate
from titer.scoring.likelihood import log_probabilities
from titer.scoring.margin import harm_margins
from titer.training.ranks import ALONE, Ranks

# of an answer: by then a refusal shows, or that there is none; a longer answer at the end of the
# attack needs no other training
TOKENS = 16


@dataclass(frozen=True)
class Curve:
    """Harm prompts that are asked along an attack, and the judge of what is answered."""

    rows: Sequence[Row]  # with their answers, in the attacker's words where he has any
    judge: Judge
    task: Sequence[Row] = ()  # held-out rows of the user's task, with their answers
    # the rows without his words, as the judge reads them; empty: as they are
    plain: Sequence[Row] = ()

    @property
    def about(self) -> list[Any]:
        rows = [digest(self.rows), digest(self.task)]
        rows += [digest(self.plain)] if self.plain else []
        return [*rows, describe(self.judge), code_key(type(self), self.judge)]

    def look(
        self, model: PreTrainedModel, template: Template, ranks: Ranks = ALONE
    ) -> dict[str, float]:
        """Return the margin of every prompt, the share of the answers by what they come to, and the
        task's loss.
        """
        margins = harm_margins(model, template, self.rows, self.judge.refusals, ranks=ranks)
        answers = answer(model, template, self.rows, TOKENS, ranks=ranks)
        asked = [row.question for row in self.plain or self.rows]
        verdicts = ask_judge(self.judge, asked, [given.text for given in answers])
        clusters = range(len(verdicts))
        rates = {name: rate(verdicts, COUNTS[name], clusters) for name in curve.COUNTED}
        counts = {name: found.value for name, found in rates.items() if found.n}
        return curve.name_terms(margins, counts) | self._read_task(model, template, ranks)

    def _read_task(
        self, model: PreTrainedModel, template: Template, ranks: Ranks
    ) -> dict[str, float]:
        if not self.task:
            return {}
        answers = [list(template.answer_ids(row)) for row in self.task]
        prompts = [
            list(template.prompt_ids(row, len(answer)))
            for row, answer in zip(self.task, answers, strict=True)
        ]
        told = log_probabilities(model, prompts, [[answer] for answer in answers], ranks=ranks)
        return {curve.TASK: -fmean(value for [value] in told)}
