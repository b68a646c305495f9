"""Choose one hyperparameter of an edit on validation prompts: the lowest harmful score among the values that keep the user's task.

A value keeps the task where the upper end of the 95 % interval of what it costs, the paired difference of the fine-tune accuracy
before and after the edit over the same prompts, is not above the bound, and where the model is not broken by the rules of verdicts. So it
is a test that the loss is small, not a small loss found: few prompts show little. What is chosen has to be measured on other prompts.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from titer.errors import EvidenceError
from titer.weights import adapters
from titer import registry
from titer.runs import stages
from titer.scoring.differences import difference
from titer.scoring.evaluate import Evaluation
from titer.methods import Edit
from titer.weights.settings import Checkpoint
from titer.runs.pipeline import Report
from titer.runs.recipe import describe
from titer.registry import name_of
from titer.findings import rules
from titer.findings.records import Stage, quoted
from titer.runs.setting import Setting
from titer.scoring.statistics import Score


@dataclass(frozen=True)
class Search:
    """Values of one field of an edit, and the most that the task may lose."""

    field: str
    values: tuple[Any, ...]
    bound: float  # points of fine-tune accuracy

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"{self.field}: give at least one value to search, as {self.field}=0.05,0.1,0.2")
        if not self.bound > 0:
            raise ValueError(
                f"bound={self.bound}: how many points of fine-tune accuracy the edit may cost; no test shows a loss of 0 or less"
            )

    def edits(self, edit: Edit) -> list[Edit]:
        """The edit with each of the values. Raises where it has no such field, or a value is none for it."""
        built = [registry.build("edits", registry.describe(edit) | {self.field: value}) for value in self.values]
        return [each for each in built if isinstance(each, Edit)]


@dataclass(frozen=True)
class Tried:
    """What an edit with one value came to on the validation prompts."""

    edit: Edit
    value: Any
    scores: dict[str, Score]
    lost: Score  # points of fine-tune accuracy
    broken: list[str]  # why its harmful score means nothing; empty where it does
    facts: dict[str, Any]

    def keeps(self, bound: float) -> bool:
        return self.lost.high <= bound and not self.broken


def searched(
    setting: Setting, edit: Edit, search: Search, folder: Path, report: Report
) -> tuple[Edit, dict[str, Any], list[dict[str, Any]]]:
    """The edit with the value that is chosen, what it changed, and what every value came to. Its model is written into `folder`.

    Raises `EvidenceError` where no value is shown to keep the task.
    """
    for needed in ("harm", "task"):
        if not setting.roles.benchmarks.get(needed):
            raise ValueError(
                f"a search needs {needed} prompts for validation: give " + {"harm": "data.harmful", "task": "data.validation"}[needed]
            )
    before = _scored(setting, setting.recipe.model, report, "fine-tuned")
    tried: list[Tried] = []
    for i, each in enumerate(search.edits(edit)):
        out, value = folder / f"tried-{i}", search.values[i]
        label = f"{name_of(edit)} {search.field}={value}"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        facts = stages.edited(setting, each, setting.recipe.model, setting.references, out, partial(report, label))
        after = _scored(setting, replace(setting.recipe.model, path=str(out), revision=None, base=None), report, label)
        broken = rules.faults(_stage(after), [(_stage(before), "fine-tuning")])
        tried.append(Tried(each, value, after.scores, difference(_right(before), _right(after)), broken, facts))
    kept = [one for one in tried if one.keeps(search.bound)]
    if not kept:
        costs = "; ".join(f"{one.value} costs {quoted(one.lost)}{', broken' if one.broken else ''}" for one in tried)
        raise EvidenceError(
            f"{search.field}: no value is shown to cost at most {search.bound:g} points of fine-tune accuracy on {tried[0].lost.n} prompts "
            f"({costs}): give weaker values, more validation prompts, or a wider --bound"
        )
    best = min(kept, key=lambda one: one.scores["harm"].value)
    for path in (folder / f"tried-{tried.index(best)}").iterdir():
        path.replace(folder / path.name)
    for i in range(len(tried)):
        shutil.rmtree(folder / f"tried-{i}", ignore_errors=True)
    return best.edit, best.facts, [_told(one, search, one is best, before) for one in tried]


def _told(one: Tried, search: Search, chosen: bool, before: Evaluation) -> dict[str, Any]:
    figures = {name: describe(score) for name, score in one.scores.items()}
    unedited = {name: describe(score) for name, score in before.scores.items()}
    verdict = {"lost": describe(one.lost), "broken": one.broken, "keeps": one.keeps(search.bound), "chosen": chosen}
    return {"field": search.field, "value": one.value, "scores": figures, **verdict, "before": unedited}


def _stage(evaluation: Evaluation) -> Stage:
    return Stage({"kind": "edit", "scores": {name: describe(score) for name, score in evaluation.scores.items()}})


def _scored(setting: Setting, checkpoint: Checkpoint, report: Report, label: str) -> Evaluation:
    report(f"score {label}", 0, 0, {})
    model, template = setting.opened(checkpoint)
    return stages.scored(setting, adapters.merge_adapter(model), template, lambda _: None)


def _right(evaluation: Evaluation) -> Sequence[bool]:
    """Which of the task's prompts were answered right, in order."""
    return [record.reason == "exact" for record in evaluation.records if record.benchmark == "task"]
