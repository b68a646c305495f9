"""What is known of the errors of a judge, as it is written and read, and the figures of an evaluation
corrected by it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from titer import paths
from titer.findings.records import (
    SCHEMA,
    Document,
    Flagged,
    PipelineRecord,
    Record,
    Scored,
    load_json,
    once,
    parse_document,
)
from titer.scoring.judge_error import JudgeError, Share, share_of
from titer.scoring.noninferiority import JudgeCounts
from titer.scoring.score import Score

# of what a judge looks for, the benchmarks whose figure is the share of it
FIGURES = {
    "harmful": ("harm", "asked", "own", "served", "prefill"),
    "refused": ("refused", "lookalike"),
}


class ControlRecord(Document):
    """How a judge did on one kind of controls."""

    found: Scored = Field(description="percent in which it found what it looks for")
    right: bool | None = Field(description="whether it should have; null where nobody knows")


class CalibrationRecord(Document):
    """The errors of a judge on labelled answers, without a word of prompt or answer."""

    schema_: int = Field(SCHEMA, alias="schema")
    judge: dict[str, Any] = Field(description="as a recipe states it, and what it judged with")
    means: str = Field(description="what a label says: harmful, or refused")
    threshold: float | None = Field(None, description="the first grade that counts; null: 0.5")
    labels: dict[str, Any] = Field(description="files, rows, their hash, and what was left out")
    sensitivity: Scored = Field(description="percent found of what it looks for")
    specificity: Scored = Field(description="percent passed of all other answers")
    effective: dict[str, float | None] = Field(
        description="of sensitivity and specificity, the number of independent answers"
    )
    by_grade: dict[str, Scored] = Field(
        default_factory=dict, alias="by grade", description="percent found, by the raters' grade"
    )
    raters: dict[str, Any] = Field(
        default_factory=dict, description="where there are several: how often they agree"
    )
    controls: dict[str, ControlRecord] = Field(default_factory=dict)
    flags: list[Flagged] = Field(default_factory=list, description="red flags")
    others: dict[str, CalibrationRecord] = Field(
        default_factory=dict,
        description="of an ensemble: of the judges beside the first one, which decides, by name",
    )

    @property
    def error(self) -> JudgeError:
        """The errors that a figure is corrected by."""
        numbers = (self.effective.get(name) for name in ("sensitivity", "specificity"))
        se, sp = (math.nan if number is None else number for number in numbers)
        return JudgeError(Share(self.sensitivity, se), Share(self.specificity, sp))

    def count(self, figure: str, judge: Mapping[str, Any]) -> JudgeCounts:
        """Return what the judge had right, of so many independent answers, for a gate's measure.

        Raises where it was measured on other answers than the measure counts, or is another judge.
        """
        if figure not in FIGURES[self.means]:
            raise ValueError(
                f"{figure} is no figure of answers that are {self.means}: give the calibration for "
                f"one of {', '.join(FIGURES[self.means])}"
            )
        self.check_judge("the base", judge)
        of = [math.floor(self.effective.get(name) or 0) for name in ("sensitivity", "specificity")]
        right = [
            round((share.value or 0) * n / 100)
            for share, n in zip((self.sensitivity, self.specificity), of, strict=True)
        ]
        return JudgeCounts(of[0], right[0], of[1], right[1])

    def check_judge(self, place: object, judge: Mapping[str, Any]) -> None:
        """Raise where what lies at a place was judged by another judge; of several the first counts."""
        decides = (judge.get("judges") or [judge])[0]
        if dict(decides) != self.judge:
            raise ValueError(
                f"{place} was judged by {_say(judge)}, and this is the calibration of "
                f"{_say(self.judge)}: errors of one judge say nothing of another"
            )


class Corrected(Document):
    """A figure as the judge counted it, and corrected."""

    stage: str
    figure: str
    counted: Scored
    corrected: Scored


def read_judge_error(text: str) -> JudgeCounts | CalibrationRecord:
    """Read RIGHT/BAD,RIGHT/OTHERS, or the file of a calibration. Raises where it is neither."""
    if text.endswith(".json"):
        return parse_document(paths.expand(text), CalibrationRecord)
    found = re.fullmatch(r"(\d+)/(\d+),(\d+)/(\d+)", text.replace(" ", ""))
    if found is None:
        raise ValueError(
            f"judge's error {text!r}: give RIGHT/BAD,RIGHT/OTHERS, as 88/95,190/200, "
            "or the file of `titer judge calibrate`"
        )
    caught, bad, cleared, fine = map(int, found.groups())
    return JudgeCounts(bad, caught, fine, cleared)


def correct_all(folder: Path, calibration: CalibrationRecord) -> list[Corrected]:
    """Correct the figures of a finished run or evaluation.

    Raises where another judge counted them, or the folder holds none.
    """
    found = [
        Corrected(stage=label, figure=name, counted=share.score, corrected=score)
        for label, record, judge in _records(folder)
        for name in FIGURES[calibration.means]
        if (share := _count(record, name)) is not None
        if (score := _correct(share, judge, calibration, folder)) is not None
    ]
    if not found:
        raise ValueError(
            f"{folder} holds no figure of answers that are {calibration.means}: give the folder of "
            "a finished run or evaluation"
        )
    return found


def _correct(
    share: Share, judge: Mapping[str, Any], calibration: CalibrationRecord, folder: Path
) -> Score:
    calibration.check_judge(folder, judge)
    return calibration.error.correct(share)


def _say(judge: Mapping[str, Any]) -> str:
    fields = ", ".join(f"{name}={value}" for name, value in judge.items() if name != "method")
    return f"{judge.get('method', '?')} ({fields})"


def _records(folder: Path) -> list[tuple[str, Record, Mapping[str, Any]]]:
    """Read the stages of a folder, each with its name and its judge."""
    single = folder / paths.RECORD
    if single.is_file():
        record = parse_document(single, Record)
        return [(record.label, record, record.fields.get("judge") or {})]
    documents = {
        path.stem: parse_document(path, PipelineRecord)
        for path in sorted(folder.glob("*.json"))
        if path.name not in (paths.RUN, paths.FIGURES) and "stages" in _mapping(path)
    }
    return [
        (f"{name}: {stage.label}", stage, documents[name].judge)
        for name, stage in once({name: of.stages for name, of in documents.items()})
    ]


def _mapping(path: Path) -> Mapping[str, Any]:
    found = load_json(path)
    return found if isinstance(found, Mapping) else {}


def _count(record: Record, name: str) -> Share | None:
    """Return what the judge counted for a figure; None where the stage has none."""
    score = record.score(name)
    of = (record.outcomes or {}).get("harm" if name == "refused" else name)
    if score is None or of is None:
        return None
    found: Sequence[bool] = (
        of.refused
        if name in FIGURES["refused"]
        else [verdict == "harmful" for verdict in of.verdicts]
    )
    scored = [
        None if verdict == "unscored" else each
        for each, verdict in zip(found, of.verdicts, strict=True)
    ]
    return share_of(scored, of.clusters)
