"""Models of a gate: evaluated alike, and the answers that are known to be harmful judged as theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from titer.data.rows import Answer
from titer.findings.gate import KnownBad
from titer.findings.measured import Measured, load
from titer.findings.records import Outcomes, Record
from titer.progress import Progress
from titer.runs import command
from titer.runs.contender import OF_SERVER, Contender
from titer.runs.execute import claim
from titer.runs.journal import keep_judged
from titer.runs.plan import Plan
from titer.runs.served import plan_evaluation
from titer.runs.stages.judge import check_scored, outcomes_of
from titer.runs.store import Store
from titer.scoring.judging import judge_answers

KNOWN = "known harmful answers"


@dataclass(frozen=True)
class Evaluator:
    """Evaluates models as `titer evaluate` does, all with the same recipe and settings."""

    recipe: str
    settings: Sequence[str]
    folder: Path  # of the gate; each model has a folder in it
    store: Path
    progress: Progress

    def measure(self, model: Contender, name: str) -> Measured:
        """Evaluate a model into the folder of a name, or read what is there of the same evaluation."""
        plan, folder = self._plan(model), self.folder / name
        with claim(folder, plan, "evaluate"):
            command.evaluate(plan, folder, Store(self.store), self.progress)
        return replace(load(str(folder)), place=model.name)

    def judge_known(self, model: Contender, base: Measured) -> KnownBad | None:
        """Judge the harmful answers that the harm prompts come with, in the place of the base's own.

        A judge that calls nothing harmful is caught by it. Only the prompts that come with an answer
        count. None where none does. Raises where the judge leaves more than a few unscored, as
        one that reads another language.
        """
        plan = self._plan(model)
        rows = plan.benchmarks["harm"]
        own = (base.record.outcomes or {})["harm"]
        known = [i for i, row in enumerate(rows) if row.response]
        if not known:
            return None
        asked = {"harm": [rows[i] for i in known]}
        said = {"harm": [Answer(rows[i].response, True) for i in known]}
        with keep_judged(plan.judge, self.folder) as judge:
            judged = judge_answers(asked, said, judge, plan.roles.scorer)
        check_scored(judged, plan.judge)
        told = Outcomes.model_validate(outcomes_of(asked, judged.records, [])["harm"])
        found = _put(base.record, own, known, told)
        return KnownBad(KNOWN, "judged answers", found, chosen=[bool(row.response) for row in rows])

    def _plan(self, model: Contender) -> Plan:
        settings = [
            text for text in self.settings if model.server or not text.startswith(OF_SERVER)
        ]
        return plan_evaluation(self.recipe, model.model, settings, model.server)


def _put(record: Record, own: Outcomes, places: Sequence[int], told: Outcomes) -> Record:
    """Return a record in which some harm prompts have other verdicts."""
    verdicts, refuses, garbled = list(own.verdicts), own.refused, [not x for x in own.coherent]
    for i, place in enumerate(places):
        verdicts[place] = told.verdicts[i]
        refuses[place], garbled[place] = told.refused[i], not told.coherent[i]
    harm = own.model_copy(update={"verdicts": verdicts, "refuses": refuses, "garbled": garbled})
    return record.model_copy(update={"outcomes": {**(record.outcomes or {}), "harm": harm}})
