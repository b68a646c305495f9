"""A stage that judges the answers of a model:

its figures, and the outcome of every prompt. It needs no model.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from titer import paths
from titer.data.rows import Row, cluster_of, identity
from titer.findings.records import plain
from titer.methods import CUT, Benchmark, Judge, Label
from titer.registry import describe, panel_of
from titer.runs.journal import keep_judged
from titer.runs.keys import code_key
from titer.runs.stages.answer import AnswerStage, drop_empty, read_answers, write_privately
from titer.runs.stages.margin import MarginStage
from titer.runs.stages.stage import Stage, Work, scoring_step
from titer.scoring.figures import JUDGED, REWORDED
from titer.scoring.judging import Evaluation, JudgedAnswer, judge_answers
from titer.scoring.score import UNSCORED, Score


@dataclass(frozen=True, eq=False)
class JudgeStage(Stage):
    """Judge what an `AnswerStage` wrote. Another judge is another stage over the same answers."""

    answers: AnswerStage
    margin: MarginStage | None
    judge: Judge
    scorer: Benchmark  # of the task
    facts: Benchmark  # of permitted questions

    @property
    def inputs(self) -> list[Stage]:
        return [self.answers, *([self.margin] if self.margin else [])]

    @property
    def step(self) -> str:
        return scoring_step(self.answers.of)

    @property
    def about(self) -> dict[str, Any]:
        return {
            "kind": "judge",
            "of": self.answers.key,
            "margin": self.margin.key if self.margin else None,
            "judge": describe(self.judge),
            **drop_empty({"judged with": dict(self.judge.fingerprint)}, "judged with"),
            "benchmark": describe(self.scorer),
            "facts": describe(self.facts),
            "clusters": {
                name: [row.cluster for row in rows]
                for name, rows in self.answers.benchmarks.items()
                if any(row.cluster for row in rows)
            },
            "code": code_key(type(self), self.judge, self.scorer, self.facts),
        }

    def compute(self, work: Work, folder: Path) -> dict[str, Any]:
        benchmarks = self.answers.benchmarks
        given = read_answers(work.folder(self.answers) / paths.ANSWERS)
        margins = []
        if self.margin:
            margins = json.loads(
                (work.folder(self.margin) / paths.MARGINS).read_text(encoding="utf-8")
            )
        with keep_judged(self.judge, folder) as judge:
            found = judge_answers(benchmarks, given, judge, self.scorer, margins, self.facts)
            check_scored(found, self.judge)
        text = "".join(json.dumps(_line(record)) + "\n" for record in found.records)
        write_privately(folder / paths.ANSWERS, text)
        scores = {name: plain(asdict(score)) for name, score in found.scores.items()}
        outcomes = outcomes_of(benchmarks, found.records, margins)
        told: dict[str, Any] = {"scores": scores, "outcomes": outcomes}
        if found.judges:
            told |= {
                "judges": {
                    name: {figure: plain(asdict(score)) for figure, score in of.items()}
                    for name, of in found.judges.items()
                },
                "disagreements": count_disagreements(found),
            }
        (folder / paths.SCORES).write_text(json.dumps(told), encoding="utf-8")
        return summarize(found.records) | {
            "answers sha256": hashlib.sha256(text.encode()).hexdigest()
        }


def _line(record: JudgedAnswer) -> dict[str, Any]:
    """Return what is written of an answer; of other judges, and a thought, where there are some."""
    return drop_empty(asdict(record), "others", "thought")


def count_disagreements(found: Evaluation) -> list[dict[str, Any]]:
    """Count what each two judges say of the same answers, by benchmark: a verdict of the first one
    -> one of the second -> answers.
    """
    tables = []
    for benchmark in dict.fromkeys(each.benchmark for each in found.records):
        mine = [each for each in found.records if each.benchmark == benchmark and each.others]
        said = {
            name: [str(each.others[name].label if i else each.verdict) for each in mine]
            for i, name in enumerate(found.judges)
        }
        for first, second in combinations(said if mine else (), 2):
            counts: dict[str, dict[str, int]] = {}
            for (one, other), n in Counter(zip(said[first], said[second], strict=True)).items():
                counts.setdefault(one, {})[other] = n
            tables.append(
                {"benchmark": benchmark, "first": first, "second": second, "counts": counts}
            )
    return tables


def check_scored(found: Evaluation, judge: Judge) -> None:
    """Raise where a judge could not score all but a few of the answers."""
    for i, name in enumerate(panel_of(judge)):
        scores = found.judges.get(name, found.scores)
        reasons = {
            benchmark: [
                (each.verdict, each.reason)
                if not i
                else (each.others[name].label, each.others[name].reason)
                for each in found.records
                if each.benchmark == benchmark and (not i or each.others)
            ]
            for benchmark in JUDGED & scores.keys()
        }
        _check_scored(name, scores, reasons)


def _check_scored(
    judge: str, scores: Mapping[str, Score], said: Mapping[str, Sequence[tuple[str, str]]]
) -> None:
    """Raise where a judge left too many answers unscored; `said` has its verdicts and reasons."""

    def reason(name: str) -> str:
        return next(why for verdict, why in said[name] if verdict == Label.UNSCORED)

    if "harm" in scores and scores["harm"].n == 0:
        raise ValueError(
            f"the judge {judge!r} could not score any harm prompt ({reason('harm')}): "
            "choose another one"
        )
    for name in sorted(JUDGED & scores.keys()):
        score = scores[name]
        if score.is_incomplete:
            raise ValueError(
                f"the judge {judge!r} left {score.unscored} of "
                f"{score.n + score.unscored} {name} prompts "
                f"unscored, more than {100 * UNSCORED:g} % ({reason(name)}): give it what it "
                "needs, such as a longer "
                "input, or choose another one"
            )


def outcomes_of(
    benchmarks: Mapping[str, Sequence[Row]],
    records: Sequence[JudgedAnswer],
    margins: Sequence[float],
) -> dict[str, Any]:
    """List the outcome of every prompt by benchmark, without a word of prompt or answer."""
    told: dict[str, Any] = {}
    left = iter(margins)
    for name, rows in benchmarks.items():
        mine = [record for record in records if record.benchmark == name]
        hashes = [hashlib.sha256(identity(row).encode()).hexdigest() for row in rows]
        told[name] = {
            "prompts": hashes,
            "clusters": [
                cluster_of(row) for row in benchmarks["harm" if name in REWORDED else name]
            ],
            "verdicts": [record.verdict for record in mine],
            "refuses": [record.refuses for record in mine],
            "garbled": [record.garbled for record in mine],
            "reasons": [record.reason for record in mine],
            "margins": [next(left) if row.response else None for row in rows]
            if name == "harm" and margins
            else None,
        }
    return told


def summarize(records: Sequence[JudgedAnswer]) -> dict[str, Any]:
    """Count the answers that were cut off, by the length limit or for the judge."""
    cut = Counter(record.benchmark for record in records if not record.ended)
    unread = Counter(record.benchmark for record in records if CUT in record.reason)
    return {
        "answers cut off": cut.total(),
        "cut off by benchmark": dict(cut),
        "judge input cut": dict(unread),
    }
