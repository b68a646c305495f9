"""The record of an assay, `assay.json` in its folder. `docs/assay.schema.json` is made from here."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field

from titer.findings.assay import Condition, Part, Word
from titer.findings.records import SCHEMA, Document, Flagged, plain

CODES: dict[Word, int] = {"met": 0, "not met": 1, "not enough evidence": 3}  # exit codes


class PartRecord(Document):
    """The answer under one attack, or for one figure."""

    of: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: Word
    why: str = Field("", description="where the interval alone does not say it")


class ConditionRecord(Document):
    """A condition of immunization, and the part that decides it."""

    name: str
    definition: str
    threshold: str
    unit: str
    verdict: Word
    decided_by: PartRecord = Field(alias="decided by")
    parts: list[PartRecord] = Field(default_factory=list)


class AssayRecord(Document):
    """An assay: two models under the same fine-tunings, and what they show of each condition."""

    schema_: int = Field(SCHEMA, alias="schema")
    defended: dict[str, Any] = Field(description="the model: its name and the SHA-256 of its files")
    original: dict[str, Any]
    verdict: Word = Field(description="met where every required condition is")
    required: list[str]
    conditions: list[ConditionRecord]
    thresholds: dict[str, float]
    budget: dict[str, Any] = Field(description="of every attack, and the seeds of training")
    attacks: dict[str, Any] = Field(description="by name, as a recipe states them")
    aware: list[str] = Field(
        alias="defense-aware attacks", description="attacks whose attacker knows the defense"
    )
    disjoint: dict[str, Any] = Field(description="the attacker's prompts beside the defender's")
    recipe: dict[str, Any] = Field(default_factory=dict)
    judge: dict[str, Any] = Field(default_factory=dict)
    environment: dict[str, Any] = Field(default_factory=dict)
    flags: list[Flagged] = Field(default_factory=list)

    @property
    def is_defense_aware(self) -> bool:
        """Tell whether some attack was made by one who knows the defense."""
        return bool(self.aware)


def tell_conditions(conditions: Iterable[Condition]) -> list[dict[str, Any]]:
    """Return conditions as JSON has them."""
    return [
        {
            "name": each.name,
            "definition": each.definition,
            "threshold": each.threshold,
            "unit": each.unit,
            "verdict": each.word,
            "decided by": _tell(each.decisive),
            "parts": [_tell(part) for part in each.parts],
        }
        for each in conditions
    ]


def _tell(part: Part) -> dict[str, Any]:
    # no upper end is no number of JSON's: null, like one that is not known
    figures = {"value": part.value, "low": part.low, "high": part.high}
    return plain({"of": part.of, **figures, "verdict": part.word, "why": part.why})  # type: ignore[no-any-return]


def figure_of(part: PartRecord) -> str:
    """Write a part's figure with its interval; empty where it has none."""
    if part.value is None or math.isnan(part.value):
        return ""
    if part.low is None and part.high is None:
        return f"{part.value:z.2f}"
    low, high = ("no bound" if end is None else f"{end:z.2f}" for end in (part.low, part.high))
    return f"{part.value:z.2f} [{low}, {high}]"


def schema_text() -> str:
    """Write the JSON schema: `python -m titer.findings.assay_record docs/assay.schema.json`."""
    return (
        json.dumps({"schema": SCHEMA, "document": AssayRecord.model_json_schema()}, indent=1) + "\n"
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(schema_text(), encoding="utf-8")
