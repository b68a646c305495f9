"""Evaluate a model that is in memory: its answers, its harm margin, its figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from transformers import PreTrainedModel

from titer.data.rows import Answer, Row
from titer.data.template import Template
from titer.methods import Benchmark, Judge
from titer.scoring.generate import Engine, answer
from titer.scoring.judging import Evaluation, judge_answers
from titer.scoring.margin import harm_margins
from titer.training.ranks import ALONE, Ranks
from titer.training.settings import Watch, unwatched


def evaluate(
    model: PreTrainedModel,
    template: Template,
    benchmarks: Mapping[str, Sequence[Row]],
    judge: Judge,
    max_new_tokens: int,
    scorer: Benchmark | None = None,
    batch: int = 128,
    say: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Answer every benchmark's prompts and score the answers, as `judging.judge_answers` does."""
    answers = answer_all(model, template, benchmarks, max_new_tokens, batch, say)
    known = [row for row in benchmarks.get("harm", ()) if row.response]
    margins = harm_margins(model, template, known, judge.refusals) if known else []
    return judge_answers(benchmarks, answers, judge, scorer, margins)


def answer_all(
    model: PreTrainedModel,
    template: Template,
    benchmarks: Mapping[str, Sequence[Row]],
    max_new_tokens: int,
    batch: int = 128,
    say: Callable[[str], None] = lambda _: None,
    watch: Watch = unwatched,
    ranks: Ranks = ALONE,
    engine: Engine | None = None,
) -> dict[str, list[Answer]]:
    """Return the greedy answers to every benchmark's prompts; `watch` is told how many there are.

    All prompts are handed to the engine together, which `answer` chooses where none is given, and
    ranks divide them.
    """
    model.eval()
    rows = [row for rows in benchmarks.values() for row in rows]
    answers = iter(answer(model, template, rows, max_new_tokens, batch, say, watch, ranks, engine))
    return {name: [next(answers) for _ in rows] for name, rows in benchmarks.items()}
