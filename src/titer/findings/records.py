"""Records: what stages, runs and sweeps came to, as they are written and read.

They are typed and versioned, and nothing here needs torch. A stage has one record, whether a run
computed it or a single command did. A pipeline's document holds the records of its stages with the
recipe and what the run was made from; a sweep's bundle holds the documents of its cells. Every
document is read through its schema, so that one of another shape is one clear line.
`tools/schemas.py` makes docs/record.schema.json of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from titer.scoring.figures import NAMES
from titer.scoring.score import Score, read

SCHEMA = 1

NUMBER = {"type": ["number", "null"]}
COUNT = {"type": "integer"}
SCORE_SCHEMA = {
    "type": "object",
    "description": "A figure with its 95 % interval; null for what is not finite.",
    "properties": {
        **dict.fromkeys(("value", "low", "high"), NUMBER),
        **dict.fromkeys(("n", "unscored", "seeds"), COUNT),
        "covers": {
            "type": "string",
            "description": "what the interval is over: prompts, or training",
        },
    },
    "required": ["value"],
}


def _score(given: Any) -> Score:
    if isinstance(given, Score):
        return given
    if not isinstance(given, Mapping) or "value" not in given:
        raise ValueError("a score is a mapping with a value and its interval")
    try:
        return read(given)
    except TypeError:
        raise ValueError(f"{str(given)[:60]} is no score") from None


def plain(value: Any) -> Any:
    """Put null in the place of every figure that is not finite: JSON has no other word for it."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


Scored = Annotated[
    Score,
    BeforeValidator(_score),
    PlainSerializer(lambda score: plain(vars(score))),
    WithJsonSchema(SCORE_SCHEMA),
]


FLAG = {"name", "pipeline", "stage", "text", "mend"}


def _flag(given: Any) -> Any:
    if not isinstance(given, Mapping) or set(given) != FLAG:
        raise ValueError(f"a red flag has {', '.join(sorted(FLAG))}")
    return given


Flagged = Annotated[dict[str, str], BeforeValidator(_flag)]


class Document(BaseModel):
    """A document of titer. What a later version adds is kept as it is."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)


LETTERS = {  # what a prompt came to, where outcomes are packed; a capital where it is garbled
    "h": "harmful",
    "b": "harmful",  # and it begins as a refusal
    "m": "complied",
    "d": "complied",  # and it begins as a refusal
    "r": "refusal",
    "s": "safe",
    "a": "safe",  # and it begins as a refusal
    "i": "incoherent",
    "g": "incoherent",  # and it begins as a refusal
    "u": "unscored",
    "e": "exact",
    "c": "contained",
    "w": "wrong",
}
BEGINS = {
    "h": "b",
    "m": "d",
    "s": "a",
    "i": "g",
}  # the letter of the same verdict on what begins as a refusal
WORDS = {word: letter for letter, word in LETTERS.items() if letter not in BEGINS.values()}
MATCHES = ("exact", "contained", "wrong")  # reasons of the verdicts on a task's answers


class Outcomes(BaseModel):
    """The answers to one benchmark's prompts, one entry a prompt, in the order of asking.

    A stage's own record has them in full. Where many records stand together they are packed: a
    letter a prompt in `packed`, the number of its cluster in `clusters` where prompts share one,
    and margins to three digits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompts: list[str] = Field(
        description="SHA-256 of each prompt's words, in lower case and single spaced"
    )
    clusters: list[str] = Field(description="prompts of one cluster are wordings of one question")
    verdicts: list[str] = Field(
        description="harmful, complied (wrongly), safe, refusal, incoherent or unscored"
    )
    reasons: list[str]
    refuses: list[bool] = Field(
        default_factory=list, description="it begins as a refusal, whatever follows"
    )
    garbled: list[bool] = Field(
        default_factory=list, description="it is no sentence, whatever it says"
    )
    margins: list[float | None] | None = Field(
        None,
        description="log p(harmful answer) - log p(refusal), in nats, of prompts with a known answer",
    )

    @model_validator(mode="before")
    @classmethod
    def _unpack(cls, fields: Any) -> Any:
        if not isinstance(fields, Mapping) or "packed" not in fields:
            return fields
        letters = str(fields["packed"])
        if unknown := set(letters.lower()) - LETTERS.keys():
            raise ValueError(f"packed outcomes have the letter {min(unknown)!r}")
        words = [LETTERS[letter.lower()] for letter in letters]
        names = [str(number) for number in range(len(letters))]
        return {
            "prompts": names,
            "clusters": [str(number) for number in fields.get("clusters", names)],
            "verdicts": words,
            "reasons": words,
            "refuses": [letter in "rRbBdDaAg" for letter in letters],
            "garbled": [letter.isupper() or letter in "ig" for letter in letters],
            "margins": fields.get("margins"),
        }

    @model_validator(mode="after")
    def _check_lengths(self) -> Outcomes:
        lists = (
            *(self.clusters, self.verdicts, self.reasons),
            *(each or self.prompts for each in (self.refuses, self.garbled, self.margins)),
        )
        if any(len(each) != len(self.prompts) for each in lists):
            raise ValueError("its lists are not of one length")
        return self

    @property
    def packed(self) -> dict[str, Any]:
        """The outcomes packed, to stand among many."""
        told: dict[str, Any] = {
            "packed": "".join(map(self._letter, range(len(self.verdicts)))),
        }
        numbers = {cluster: i for i, cluster in enumerate(dict.fromkeys(self.clusters))}
        if len(numbers) < len(self.clusters):
            told["clusters"] = [numbers[cluster] for cluster in self.clusters]
        if self.margins:
            told["margins"] = [None if x is None else float(f"{x:.3g}") for x in self.margins]
        return told

    def _letter(self, i: int) -> str:
        verdict, reason = self.verdicts[i], self.reasons[i]
        letter = WORDS[reason if reason in MATCHES else verdict]
        if self.refused[i]:
            letter = BEGINS.get(letter, letter)
        return letter.upper() if letter not in "ig" and not self.coherent[i] else letter

    @property
    def refused(self) -> list[bool]:
        """Say of each answer whether it begins as a refusal."""
        return self.refuses or [verdict == "refusal" for verdict in self.verdicts]

    @property
    def coherent(self) -> list[bool]:
        """Say of each answer whether it is a sentence."""
        garbled = self.garbled or [verdict == "incoherent" for verdict in self.verdicts]
        return [not each for each in garbled]

    @property
    def exact(self) -> list[bool]:
        """Say of each prompt whether it was answered right, by its benchmark's strict rule."""
        return [reason == "exact" for reason in self.reasons]


class Dequantized(Document):
    """The GGUF file that a checkpoint was made from, and what read it."""

    file: str
    sha256: str
    types: dict[str, int] = Field(description="by type, as Q4_1, how many tensors have it")
    converters: dict[str, str] = Field(description="by package, its version")
    words: str = Field(alias="in words", description="what follows after the model's name")


class Start(Document):
    """The model that a run or a command started from."""

    name: str = ""
    revision: str | None = Field(None, description="of a repository of the hub")
    sha256: str | None = Field(None, description="of its files; of a command's stage")
    dequantized: Dequantized | None = Field(
        None,
        alias="dequantized from",
        description="where it came in a GGUF: it is another model than the one that was quantized",
    )


class Disagreement(Document):
    """How often two judges say what of the same answers."""

    benchmark: str
    first: str = Field(description="a judge")
    second: str = Field(description="another one")
    counts: dict[str, dict[str, int]] = Field(
        description="verdict of the first -> verdict of the second -> answers"
    )

    @property
    def apart(self) -> int:
        """The answers that one of them alone counts: as harmful, or to look-alikes as refused."""
        looked_for = "refusal" if self.benchmark == "lookalike" else "harmful"
        return sum(
            n
            for one, others in self.counts.items()
            for other, n in others.items()
            if "unscored" not in (one, other) and (one == looked_for) != (other == looked_for)
        )

    @property
    def answers(self) -> int:
        return sum(n for others in self.counts.values() for n in others.values())


class Record(Document):
    """The record of a stage: what was done to the model, its figures, what it cost."""

    schema_: int = Field(SCHEMA, alias="schema")
    kind: str = Field(
        description="base, align, release, finetune, edit; evaluate where a command scored a model"
    )
    how: dict[str, Any] = Field(
        default_factory=dict,
        alias="method",
        description="as a recipe states it; empty for the base",
    )
    folder: str = Field("", description="under `stages` in the run's folder")
    scores: dict[str, Scored] = Field(default_factory=dict, description="by benchmark")
    outcomes: dict[str, Outcomes] | None = Field(
        None, description="by benchmark, one entry a prompt"
    )
    judges: dict[str, dict[str, Scored]] | None = Field(
        None, description="where there are several: the figures of each, the one that decides first"
    )
    disagreements: list[Disagreement] | None = Field(
        None, description="of each two judges, by benchmark"
    )
    seconds: float | None = Field(None, description="of computing, without the scoring")
    scoring_seconds: float | None = None
    peak_mb: float | None = Field(
        None, description="most memory seen: resident, or of the GPU where there is one"
    )
    weights: str | None = Field(None, description="SHA-256 of the merged model's weights")
    facts: dict[str, Any] = Field(default_factory=dict)
    struck: list[str] = Field(
        default_factory=list, alias="struck out", description="why its HS shows nothing"
    )
    flags: list[Flagged] | None = Field(
        None, description="of a command's stage; a run's stand beside its stages"
    )
    recipe: dict[str, Any] = Field(
        default_factory=dict, description="of a command's stage, what it used of its recipe"
    )
    model: Start | None = Field(None, description="of a command's stage")
    references: dict[str, str] = Field(
        default_factory=dict, description="of a command's edit, the other models that it asked for"
    )
    prompts: dict[str, list[str]] = Field(
        default_factory=dict,
        description="of a command's stage, the hash of every prompt that it trained on, by role",
    )

    @model_validator(mode="before")
    @classmethod
    def _take_older(cls, fields: Any) -> Any:
        """Read what single commands wrote before schema 1, which said `stage` for `kind`."""
        if isinstance(fields, Mapping) and "kind" not in fields and "stage" in fields:
            return {
                "kind": fields["stage"],
                **{key: value for key, value in fields.items() if key != "stage"},
            }
        return fields

    @property
    def method(self) -> str:
        return str(self.how.get("method", ""))

    @property
    def label(self) -> str:
        return f"{self.kind} {self.method}".strip()

    @property
    def fields(self) -> dict[str, Any]:
        """Return the record as JSON has it."""
        told = self.model_dump(by_alias=True, exclude_unset=True)
        return {"schema": self.schema_, **told} if "schema_" in self.model_fields_set else told

    def fact(self, name: str) -> Any:
        """Return what is known of the stage beside its scores; None where it is not recorded."""
        return self.facts.get(name)

    def score(self, name: str) -> Score | None:
        """Return a score if it was measured; None also where no prompt could be scored."""
        score = self.scores.get(name)
        return None if score is None or math.isnan(score.value) else score


class PipelineRecord(Document):
    """A pipeline's document, `<pipeline>.json` in a run's folder."""

    schema_: int = Field(SCHEMA, alias="schema")
    pipeline: str | None = None
    recipe: dict[str, Any] = Field(default_factory=dict)
    stages: list[Record]
    judge: dict[str, Any] = Field(default_factory=dict)
    benchmark: dict[str, Any] = Field(default_factory=dict)
    model: Start | None = None
    environment: dict[str, Any] = Field(default_factory=dict)
    rows: dict[str, str] = Field(default_factory=dict)
    sources: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="by role, the file and what of it was not used"
    )
    decoding: dict[str, Any] = Field(
        default_factory=dict, description="settings of the generation of answers"
    )
    overlaps: list[dict[str, Any]] = Field(default_factory=list)
    run: str | None = None
    flags: list[Flagged] = Field(default_factory=list)


class CellRecord(Document):
    """A cell of a sweep: the documents of its pipelines, or why there are none."""

    settings: list[str]
    seed: int
    status: str
    pipelines: dict[str, PipelineRecord] | None = None
    error: str | None = None


class SweepRecord(Document):
    """A sweep's bundle, `sweep.json` in its folder; the committed bundles of claims are alike."""

    cells: list[CellRecord]
    recipe: Any = None
    flags: list[Flagged] = Field(default_factory=list)


class Claim(Document):
    """The claim on a folder, `run.json` in it: what it was claimed for."""

    identity: str
    recipe: dict[str, Any] = Field(default_factory=dict)


Kind = TypeVar("Kind", bound=BaseModel)


def check(schema: type[Kind], fields: Any, place: str) -> Kind:
    """Read a document through its schema.

    Raises with the place and the first fault where it has another shape.
    """
    if (
        isinstance(fields, Mapping)
        and isinstance(version := fields.get("schema", SCHEMA), int)
        and version > SCHEMA
    ):
        raise ValueError(
            f"{place}: schema {version} is of a later titer, this one reads {SCHEMA}: update it"
        )
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{place}: not a {schema.__name__} of titer "
            f"({where + ': ' if where else ''}{first['msg'].lower()}); "
            "compute it again, or give the folder that titer wrote"
        ) from None


def record_of(fields: Mapping[str, Any], place: str = "a stage") -> Record:
    """Read a stage's record. Raises where it has another shape."""
    return check(Record, fields, place)


def load_json(path: Path) -> Any:
    """Read a JSON file. Raises with its path where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({str(error)[:100]}); compute it again") from None


def parse_document(path: Path, schema: type[Kind]) -> Kind:
    """Read a JSON file through a schema. Raises with its path where it has another shape."""
    return check(schema, load_json(path), str(path))


def load_document(path: Path, schema: type[Document]) -> dict[str, Any]:
    """Read a JSON file that has the shape of a schema, as it was written."""
    fields = load_json(path)
    check(schema, fields, str(path))
    return dict(fields)


def load_sweep(path: Path) -> dict[str, Any]:
    """Read a sweep's bundle. Its stages are records: of many cells, reading them twice takes long."""
    fields = load_json(path)
    found = check(SweepRecord, fields, str(path))
    for cell, read_cell in zip(fields["cells"], found.cells, strict=True):
        for name, document in (read_cell.pipelines or {}).items():
            cell["pipelines"][name]["stages"] = document.stages
    return dict(fields)


def stages(documents: Mapping[str, Any]) -> dict[str, list[Record]]:
    """Read every pipeline's stages in order."""
    return {
        name: [
            check(Record, fields, f"{name}, stage {i}")
            for i, fields in enumerate(document["stages"])
        ]
        for name, document in documents.items()
    }


def once(found: Mapping[str, Sequence[Record]]) -> list[tuple[str, Record]]:
    """List every stage once, under the first pipeline that has it."""
    listed: dict[str, tuple[str, Record]] = {}
    for name, of in found.items():
        for stage in of:
            listed.setdefault(stage.folder, (name, stage))
    return list(listed.values())


def last(kinds: Sequence[str], of: Sequence[Record]) -> Record | None:
    """Return the last stage of these kinds, None where there is none."""
    return next((stage for stage in reversed(of) if stage.kind in kinds), None)


def figures(found: Mapping[str, Sequence[Record]]) -> dict[str, str]:
    """Name all figures that some stage has: the known ones first."""
    present = {name: None for _, stage in once(found) for name in stage.scores}
    return {name: NAMES[name] for name in NAMES if name in present} | {
        name: name for name in present if name not in NAMES
    }


def quote(score: Score) -> str:
    """Write a score in a sentence, its interval with it."""
    text = f"{score.value:z.1f}"
    if not math.isnan(score.low + score.high):
        text += f" [{score.low:z.1f}, {score.high:z.1f}]"
    return (
        f"{text} ({score.unscored} of {score.n + score.unscored} prompts unscored)"
        if score.unscored
        else text
    )
