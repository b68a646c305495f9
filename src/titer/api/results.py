"""What the functions of titer return: records, with the folder that has everything."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer import paths
from titer.findings.assay_record import AssayRecord, ConditionRecord
from titer.findings.attack_search import AttackSearchRecord, AttackTrial
from titer.findings.gate_record import Finding, GateRecord
from titer.findings.ladder import LadderRecord, RungRecord
from titer.findings.records import (
    PipelineRecord,
    Record,
    SweepRecord,
    check,
    load_document,
    parse_document,
    record_of,
)
from titer.scoring.figures import NAMES

if TYPE_CHECKING:
    import pandas
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from titer.findings.verdict import PipelineVerdict
    from titer.screening.screen import RowFinding, Screened


@dataclass(frozen=True)
class Result:
    """What a stage came to: its record, and the folder with its model or its answers."""

    folder: Path
    record: Record
    _kept: tuple[Any, ...] = field(
        default=(), repr=False, compare=False
    )  # temporary folders that must last as long

    @property
    def scores(self) -> dict[str, Any]:
        """The figures by benchmark; none where nothing was scored."""
        return dict(self.record.scores)

    @property
    def flags(self) -> list[str]:
        """The red flags that it raises, a sentence each."""
        from titer.findings import flags

        return [str(flag) for flag in flags.from_documents(self.record.flags or [])]

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the model, an adapter unmerged, and its tokenizer.

        Raises where the stage left no model.
        """
        from titer.weights import checkpoints

        return checkpoints.load(str(self.folder))

    def to_pandas(self) -> pandas.DataFrame:
        """Return the figures, a row each."""
        return to_frame([{"stage": self.record.label, **_figures(self.record)}])

    def _repr_html_(self) -> str:
        """Show the figures, or where nothing was scored what else the stage says of itself."""
        if self.record.scores:
            return to_html(self.to_pandas(), self.flags)
        facts = self.record.facts.items()
        told = {name: value for name, value in facts if isinstance(value, int | float | str)}
        stage = {"stage": self.record.label, "seconds": self.record.seconds}
        return to_html(to_frame([stage | told]), self.flags)


@dataclass(frozen=True)
class Results:
    """What the pipelines of a run, or the cells of a sweep, came to: their documents, and the
    folder with everything.
    """

    folder: Path
    documents: dict[str, Any]  # of a run by pipeline; of a sweep its bundle
    _kept: tuple[Any, ...] = field(default=(), repr=False, compare=False)

    @property
    def pipelines(self) -> dict[str, PipelineRecord]:
        """The records of a run's pipelines, by name; none of a sweep."""
        if "cells" in self.documents:
            return {}
        return {
            name: check(PipelineRecord, document, name) for name, document in self.documents.items()
        }

    @property
    def verdicts(self) -> list[PipelineVerdict]:
        """What became of the alignment in every pipeline of a run, in a word and in sentences."""
        from titer.findings.records import stages
        from titer.findings.verdict import verdicts, was_attacked

        if "cells" in self.documents:
            return []
        return verdicts(stages(self.documents), was_attacked(self.documents))

    @property
    def answer(self) -> tuple[str, str]:
        """What fine-tuning did to the alignment of a run, and what helped: a sentence each."""
        from titer.findings.answer import answer
        from titer.findings.records import stages
        from titer.findings.verdict import was_attacked

        if "cells" in self.documents:
            return "", ""
        return answer(stages(self.documents), was_attacked(self.documents))

    @property
    def flags(self) -> list[str]:
        """The red flags of the whole run, or of a sweep and its cells, a sentence each."""
        from titer.findings import flags

        if "cells" in self.documents:
            return [str(flag) for flag in flags.of_sweep(self.documents)]
        one: Mapping[str, Any] = next(iter(self.documents.values()), {})
        return [str(flag) for flag in flags.from_documents(one.get("flags", []))]

    def to_pandas(self) -> pandas.DataFrame:
        """Return the figures of every stage, a row each; of a missing cell why it is."""
        if "cells" not in self.documents:
            return to_frame(list(_rows(self.documents)))
        cells = self.documents["cells"]
        rows = [
            {"settings": " ".join(cell["settings"]), "seed": cell["seed"], **row}
            for cell in cells
            for row in (_rows(cell["pipelines"]) if cell.get("pipelines") else [_missing(cell)])
        ]
        return to_frame(rows)

    def _repr_html_(self) -> str:
        return to_html(self.to_pandas(), self.flags)


@dataclass(frozen=True)
class _Finding(ABC):
    """What was found of a model: a record, and the folder with everything."""

    folder: Path
    record: Any
    _kept: tuple[Any, ...] = field(default=(), repr=False, compare=False)

    @property
    def flags(self) -> list[str]:
        """The red flags that it raises, a sentence each."""
        from titer.findings import flags

        return [str(flag) for flag in flags.from_documents(self.record.flags)]

    @abstractmethod
    def to_pandas(self) -> pandas.DataFrame:
        """Return what it consists of, a row each."""

    def _repr_html_(self) -> str:
        return to_html(self.to_pandas(), self.flags)


@dataclass(frozen=True)
class LadderResult(_Finding):
    """What a ladder found of a model: its record, and the folder with everything."""

    record: LadderRecord

    def to_pandas(self) -> pandas.DataFrame:
        """Return the rungs, a row each."""
        return to_frame([_rung(rung) for rung in self.record.rungs])


@dataclass(frozen=True)
class AttackSearchResult(_Finding):
    """What a search of an attack came to: its record, and the folder with everything."""

    record: AttackSearchRecord

    def to_pandas(self) -> pandas.DataFrame:
        """Return the trials, a row each."""
        return to_frame([_trial(trial) for trial in self.record.trials])


@dataclass(frozen=True)
class AssayResult(_Finding):
    """What an assay found of a model beside its original: its record, and the folder."""

    record: AssayRecord

    def to_pandas(self) -> pandas.DataFrame:
        """Return the conditions, a row each."""
        return to_frame([_condition(condition) for condition in self.record.conditions])


@dataclass(frozen=True)
class GateResult:
    """What a gate decided: its record, and the folder with it and the evaluations."""

    folder: Path
    record: GateRecord
    _kept: tuple[Any, ...] = field(default=(), repr=False, compare=False)

    @property
    def verdict(self) -> str:
        """The word pass, fail or undecided."""
        return self.record.verdict

    @property
    def reasons(self) -> list[str]:
        """Why, the deciding sentence first."""
        return list(self.record.reasons)

    def to_pandas(self) -> pandas.DataFrame:
        """Return the measures and the slices, a row each."""
        return to_frame([_measure(of) for of in (*self.record.findings, *self.record.slices)])

    def _repr_html_(self) -> str:
        return to_html(self.to_pandas(), [f"{self.verdict}: {' '.join(self.reasons)}"])


@dataclass(frozen=True)
class ScreenResult:
    """What a screen found in an upload, row by row."""

    screened: Screened
    _kept: tuple[Any, ...] = field(default=(), repr=False, compare=False)

    @property
    def findings(self) -> list[RowFinding]:
        """What it says of every row, in the order of the rows."""
        return self.screened.findings

    @property
    def alarms(self) -> list[RowFinding]:
        """The rows that it flags."""
        return self.screened.alarms

    def to_pandas(self) -> pandas.DataFrame:
        """Return the rows of the upload, a row each: whether it is flagged, why, and its scores."""
        return to_frame([_screened_row(of) for of in self.findings])

    def _repr_html_(self) -> str:
        from titer.report.screening import summarize

        frame = self.to_pandas()
        return to_html(frame[frame["flagged"]], [summarize(self.screened)])


def load(
    folder: str | Path,
) -> Result | Results | LadderResult | AttackSearchResult | AssayResult | GateResult:
    """Read what a finished run, sweep, ladder, search of an attack, assay, gate or single stage left
    in its folder.

    Raises where the folder holds none of them.
    """
    from titer import report

    place = Path(folder)
    if (place / paths.LADDER).is_file():
        return LadderResult(place, parse_document(place / paths.LADDER, LadderRecord))
    if (place / paths.ATTACK_SEARCH).is_file():
        found = parse_document(place / paths.ATTACK_SEARCH, AttackSearchRecord)
        return AttackSearchResult(place, found)
    if (place / paths.ASSAY).is_file():
        return AssayResult(place, parse_document(place / paths.ASSAY, AssayRecord))
    if (place / paths.GATE).is_file():
        return GateResult(place, parse_document(place / paths.GATE, GateRecord))
    if (place / paths.SWEEP).is_file():
        return Results(place, load_document(place / paths.SWEEP, SweepRecord))
    if (place / paths.RECORD).is_file():
        return Result(place, parse_document(place / paths.RECORD, Record))
    return Results(place, report.read(place))


def _figures(record: Record) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name, score in record.scores.items():
        label = NAMES.get(name, name)
        told |= {label: score.value, f"{label} low": score.low, f"{label} high": score.high}
    return told | {"seconds": record.seconds, "weights": record.weights}


def _rung(rung: RungRecord) -> dict[str, Any]:
    harm, cost = rung.harm, rung.cost
    told: dict[str, Any] = {"rung": rung.name, "access": cost.access, "passes": cost.passes}
    told |= {"rows": cost.rows, "updates": cost.updates, "FLOPs": cost.flops}
    told |= {"HS": harm.value, "HS low": harm.low, "HS high": harm.high} if harm else {"HS": None}
    return told | {"shows": rung.word, "why": rung.why}


def _trial(trial: AttackTrial) -> dict[str, Any]:
    harm = trial.harm
    told: dict[str, Any] = {"trial": trial.number, **trial.settings, "state": trial.state}
    told |= {"HS": harm.value, "HS low": harm.low, "HS high": harm.high} if harm else {"HS": None}
    lost = {f"{NAMES[name]} lost": score.value for name, score in trial.lost.items()}
    return told | lost | {"why": trial.why}


def _condition(condition: ConditionRecord) -> dict[str, Any]:
    by = condition.decided_by
    told = {"condition": condition.name, "verdict": condition.verdict, "decided by": by.of}
    figures = {"value": by.value, "low": by.low, "high": by.high, "unit": condition.unit}
    return told | figures | {"threshold": condition.threshold, "why": by.why}


def _measure(of: Finding) -> dict[str, Any]:
    told = {"measure": of.name, "topic": of.topic, "verdict": of.word}
    figures = {"base": of.base, "candidate": of.candidate, "worse": of.worse}
    limits = {"low": of.low, "high": of.high, "margin": of.margin}
    return told | figures | limits | {"prompts": of.prompts, "needed": of.needed}


def _screened_row(of: RowFinding) -> dict[str, Any]:
    why = "; ".join(f"{reason.signal} ({reason.text})" for reason in of.reasons)
    return {"row": of.number, "place": of.place, "flagged": of.is_flagged, "why": why, **of.scores}


def _rows(documents: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, document in documents.items():
        for fields in document["stages"]:
            record = record_of(fields)
            struck = "; ".join(record.struck)
            yield {
                "pipeline": name,
                "stage": record.label,
                **_figures(record),
                "struck out": struck,
            }


def _missing(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {"missing": cell.get("error") or cell["status"]}


def to_frame(rows: list[dict[str, Any]]) -> pandas.DataFrame:
    import pandas

    return pandas.DataFrame(rows)


def to_html(frame: pandas.DataFrame, flags: Sequence[str]) -> str:
    from html import escape

    import pandas

    figures = {f"{name}{end}" for name in NAMES.values() for end in ("", " low", " high", " lost")}
    # to a decimal; but a rate or a share, whose column is below 1, to three digits
    formats: Any = {
        name: "{:.3g}".format
        for name, column in frame.select_dtypes("float").items()
        if name not in figures and 0 < column.abs().max() < 1
    }
    with pandas.option_context("display.max_colwidth", None):  # whole sentences
        table = str(frame.to_html(formatters=formats, float_format="{:z.1f}".format, na_rep=""))
    return table + "".join(f"<p>{escape(flag)}</p>" for flag in flags)
