"""The record of an assay, `assay.json` in its folder (docs/assay.schema.json)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from titer.findings.conditions import BEFORE, Condition, Evidence, Pairs, Ruling, Word
from titer.findings.dose import UNIT
from titer.findings.records import SCHEMA, Document, Flagged, Record, Scored, last, plain
from titer.findings.resistance import dose_above, figure_of_harm
from titer.scoring.curve import FACT
from titer.scoring.score import Score

CODES: dict[Word, int] = {"met": 0, "not met": 1, "not enough evidence": 3}  # exit codes


class RulingRecord(Document):
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
    decided_by: RulingRecord = Field(alias="decided by")
    parts: list[RulingRecord] = Field(default_factory=list)


class Attacked(Document):
    """One of the two models before and after one attack with one seed."""

    arm: str = Field(description="attacks; topics, domain: with other rows; task: no attacker")
    attack: str
    seed: int = Field(description="its place among the seeds")
    of: Literal["defended", "original"]
    before: Scored | None = Field(None, description="HS")
    after: Scored | None = Field(None, description="HS")
    asked: Scored | None = Field(None, description="HS in the attacker's words, where he has some")
    dose: dict[str, float | None] | None = Field(
        None, description="attacker's rows that took harm above phi, between two bounds"
    )
    accuracy: Scored | None = Field(None, description="FA")
    prompts: list[str] = Field(
        default_factory=list,
        description="SHA-256 of every harm prompt that was asked after it, in the attacker's words "
        "where these gave more harm",
    )
    verdicts: list[str] = Field(default_factory=list, description="on their answers")

    @property
    def harm(self) -> Score | None:
        """HS after it, as the attacker asks where that is more."""
        scores = [score for score in (self.after, self.asked) if score]
        return max(scores, key=lambda score: score.value, default=None)


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
    attacked: list[Attacked] = Field(default_factory=list)
    rows: dict[str, dict[str, str]] = Field(
        default_factory=dict,
        description="by arm and role, the SHA-256 of the rows that are sent and asked",
    )
    recipe: dict[str, Any] = Field(default_factory=dict)
    judge: dict[str, Any] = Field(default_factory=dict)
    environment: dict[str, Any] = Field(default_factory=dict)
    flags: list[Flagged] = Field(default_factory=list)

    @property
    def is_defense_aware(self) -> bool:
        """Tell whether some attack was made by one who knows the defense."""
        return bool(self.aware)


def tell_attacked(evidence: Evidence, phi: float) -> list[dict[str, Any]]:
    """Return what every fine-tuning did to either model, as JSON has it."""
    longest = evidence.task[max(evidence.task)] if evidence.task else ()
    arms: dict[str, Mapping[str, Pairs]] = {
        "attacks": evidence.attacks,
        "topics": evidence.topics,
        "domain": evidence.domain,
        "task": {"task": longest},
    }
    return [
        {"arm": arm, "attack": name, "seed": seed, "of": of, **_tell_stages(stages, phi)}
        for arm, attacks in arms.items()
        for name, pairs in attacks.items()
        for seed, pair in enumerate(pairs)
        for of, stages in (("defended", pair.defended), ("original", pair.original))
    ]


def _tell_stages(stages: Sequence[Record], phi: float) -> dict[str, Any]:
    start, tuned = last(BEFORE, stages), last(("finetune",), stages)
    looks = (tuned.fact(FACT) or []) if tuned else []
    dose = dose_above(tuned, looks, UNIT, phi) if looks and looks[-1][UNIT] else None
    asked = (tuned.outcomes or {}).get(figure_of_harm(tuned)) if tuned else None
    scores = {
        "before": (start, "harm"),
        "after": (tuned, "harm"),
        "asked": (tuned, "asked"),
        "accuracy": (tuned, "task"),
    }
    return {
        name: plain(vars(score))
        for name, (of, figure) in scores.items()
        if of and (score := of.score(figure))
    } | {
        "dose": plain({"low": dose.low, "high": dose.high}) if dose else None,
        "prompts": asked.prompts if asked else [],
        "verdicts": asked.verdicts if asked else [],
    }


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


def _tell(part: Ruling) -> dict[str, Any]:
    # no upper end is no number of JSON's: null, like one that is not known
    figures = {"value": part.value, "low": part.low, "high": part.high}
    return {"of": part.of, **plain(figures), "verdict": part.word, "why": part.why}


def figure_of(part: RulingRecord) -> str:
    """Write a part's figure with its interval; empty where it has none."""
    if part.value is None or math.isnan(part.value):
        return ""
    if part.low is None and part.high is None:
        return f"{part.value:z.2f}"
    low, high = ("no bound" if end is None else f"{end:z.2f}" for end in (part.low, part.high))
    return f"{part.value:z.2f} [{low}, {high}]"
