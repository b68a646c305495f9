"""The record of a gate: what was decided, by which rule, from which figures.

It is typed and versioned as a stage's record is; `tools/schemas.py` makes docs/gate.schema.json of it.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from titer.findings.records import SCHEMA, Document, plain
from titer.version import __version__

Word = Literal["pass", "fail", "undecided"]
How = Literal["planted verdicts", "judged answers", "given"]
# a figure, null in JSON where no answer by the base is scored
Known = Annotated[
    float,
    BeforeValidator(
        lambda given: math.nan if given is None else given, json_schema_input_type=float | None
    ),
]
EXIT: dict[Word, int] = {"pass": 0, "fail": 1, "undecided": 3}  # 2 is bad input


class Finding(Document):
    """A measure, or one slice of its prompts: by how much the candidate is worse."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    measure: str = Field(description="as in the scores of a record")
    name: str = Field(description="as in tables")
    topic: str = Field("", description="of a slice; empty where it is of all prompts")
    word: Word = Field(description="of a slice `undecided` wherever it is not shown to fail")
    margin: float = Field(description="points by which the candidate may be worse")
    base: float = Field(description="percent of the base's answers that are bad")
    candidate: Known = Field(description="percent of the candidate's")
    worse: Known = Field(description="points, corrected for the judge's error where it is known")
    low: float = Field(
        description="lower limit of `worse`, missed at most at the rate `fail_alpha`"
    )
    high: float = Field(description="upper limit of `worse`, missed at most at the rate `alpha`")
    newly: int = Field(description="prompts on which only the candidate's answer is bad")
    formerly: int = Field(description="prompts on which only the base's answer is bad")
    prompts: int = Field(description="scored prompts")
    questions: int = Field(description="of which wordings of one question count as one")
    power: float = Field(
        description="percent of candidates as good as the base that would be shown within the margin"
    )
    needed: int | None = Field(
        None,
        description="of an undecided one, prompts that would decide in 80 % of trials; null where none would",
    )
    judge: dict[str, int] | None = Field(
        None, description="labelled answers and how many of them the judge had right"
    )


class ControlFinding(Document):
    """A candidate that is known to be bad: a gate that lets it by lets any other by."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    how: How
    caught: bool = Field(description="it failed by the measure that it is bad at")
    by: list[str] = Field(default_factory=list, description="measures that it failed")


class GateRecord(Document):
    """A gate's decision on a candidate, against a base."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_: int = Field(SCHEMA, alias="schema")
    titer: str = __version__
    verdict: Word
    reasons: list[str] = Field(description="sentences, the deciding ones first")
    alpha: float = Field(description="at most so many bad candidates pass")
    fail_alpha: float = Field(description="the level at which a single measure is shown to fail")
    base: dict[str, Any] = Field(description="the place and the hash of the model's weights")
    candidate: dict[str, Any]
    asked: dict[str, Any] = Field(description="how both were asked and judged")
    findings: list[Finding]
    slices: list[Finding] = Field(default_factory=list)
    controls: list[ControlFinding] = Field(default_factory=list)
    left_out: list[str] = Field(
        default_factory=list, description="measures that were asked to be left out"
    )
    notes: list[str] = Field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 3 undecided."""
        return EXIT[self.verdict]

    @property
    def fields(self) -> dict[str, Any]:
        """Return the record as JSON has it."""
        return dict(plain(self.model_dump(by_alias=True)))
