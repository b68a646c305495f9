"""Choose one hyperparameter of an edit on validation prompts: the lowest harmful score among the
values that keep the user's task.

A value keeps the task where the upper end of the 95 % interval of what it costs, the paired
difference of the fine-tune accuracy before and after the edit over the same prompts, is not above
the bound, and where the model is not broken by the rules of verdicts. So it is a test that the loss
is small, not a small loss found: few prompts show little. What is chosen has to be measured on
other prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from titer import registry
from titer.errors import EvidenceError
from titer.findings import rules
from titer.findings.outcomes import values_of
from titer.findings.records import Record, plain, quote
from titer.methods import Edit
from titer.runs.execute import Executor, score_record
from titer.runs.plan import Plan
from titer.runs.stages.stage import ModelStage
from titer.scoring.differences import difference
from titer.scoring.score import Score

NEEDED = {
    "harm": "data.harmful",
    "task": "data.validation",
}  # benchmarks of a search, and where their prompts come from


@dataclass(frozen=True)
class Search:
    """Values of one field of an edit, and the most that the task may lose."""

    field: str
    values: tuple[Any, ...]
    bound: float = 2.0  # points of fine-tune accuracy

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(
                f"{self.field}: give at least one value to search, as {self.field}=0.05,0.1,0.2"
            )
        if not self.bound > 0:
            raise ValueError(
                f"bound={self.bound}: how many points of fine-tune accuracy the edit may cost; "
                "no test shows a loss of 0 "
                "or less"
            )

    def edits(self, edit: Edit) -> list[Edit]:
        """Build the edit with each of the values.

        Raises where it has no such field, or a value is none for it.
        """
        fields = registry.describe(edit)
        return [
            cast(Edit, registry.build("edits", fields | {self.field: value}))
            for value in self.values
        ]


@dataclass(frozen=True)
class Trial:
    """What an edit with one value came to on the validation prompts."""

    edit: Edit
    value: Any
    record: Record
    lost: Score  # points of fine-tune accuracy
    faults: list[str]  # why its harmful score means nothing; empty where it does

    def keeps(self, bound: float) -> bool:
        """Say whether the edit is shown to keep the task."""
        return self.lost.high <= bound and not self.faults


def search(
    plan: Plan, edit: Edit, asked: Search, work: Executor
) -> tuple[Edit, list[dict[str, Any]]]:
    """Return the edit with the value that is chosen, and what every value came to.

    Raises `EvidenceError` where no value is shown to keep the task.
    """
    for needed, role in NEEDED.items():
        if not plan.roles.benchmarks.get(needed):
            raise ValueError(f"a search needs {needed} prompts for validation: give {role}")
    start = plan.given("finetune", plan.recipe.model)
    stages: list[ModelStage] = [plan.edit("edit", start, each, []) for each in asked.edits(edit)]
    scorings = [plan.score(stage) for stage in (start, *stages)]
    work.expect(scorings)
    before, *records = (score_record(scoring, work) for scoring in scorings)
    return choose(asked, asked.edits(edit), before, records)


def choose(
    asked: Search, edits: Sequence[Edit], before: Record, records: Sequence[Record]
) -> tuple[Edit, list[dict[str, Any]]]:
    """Choose among edits by their records: the one with the lowest harmful score that keeps the
    task.
    """
    trials = [
        Trial(
            edit,
            value,
            record,
            _lost(before, record),
            rules.faults(record, [(before, "fine-tuning")]),
        )
        for edit, value, record in zip(edits, asked.values, records, strict=True)
    ]
    kept = [trial for trial in trials if trial.keeps(asked.bound)]
    if not kept:
        costs = "; ".join(
            f"{trial.value} costs {quote(trial.lost)}{', broken' if trial.faults else ''}"
            for trial in trials
        )
        raise EvidenceError(
            f"{asked.field}: no value is shown to cost at most {asked.bound:g} points of "
            "fine-tune accuracy on "
            f"{trials[0].lost.n} prompts ({costs}): give weaker values, more validation prompts, "
            "or a wider --bound"
        )
    best = min(kept, key=lambda trial: trial.record.scores["harm"].value)
    return best.edit, [_tell(trial, asked, trial is best, before) for trial in trials]


def _tell(trial: Trial, asked: Search, chosen: bool, before: Record) -> dict[str, Any]:
    return {
        "field": asked.field,
        "value": trial.value,
        "scores": _scores(trial.record),
        "lost": plain(asdict(trial.lost)),
        "broken": trial.faults,
        "keeps": trial.keeps(asked.bound),
        "chosen": chosen,
        "before": _scores(before),
    }


def _scores(record: Record) -> dict[str, Any]:
    return {name: plain(asdict(score)) for name, score in record.scores.items()}


def _lost(before: Record, record: Record) -> Score:
    """Return the fine-tune accuracy that an edit lost, in points, prompt by prompt."""
    first, second = values_of(before, "task"), values_of(record, "task")
    assert first, "a stage that was scored has the outcome of every prompt"
    assert second
    return difference(
        [bool(value) for value in first.values],
        [bool(value) for value in second.values],
        first.clusters,
    )
