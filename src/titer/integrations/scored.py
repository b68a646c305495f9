"""The scored models of a folder, as other tools are told of them: figures, what each prompt came to, and
how the model was asked. Nothing here is a prompt or an answer, until answers are asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titer import paths
from titer.findings.outcomes import FROM, values_of
from titer.findings.records import Outcomes, Record, parse_document
from titer.report import read
from titer.scoring.figures import JUDGED

TOLD = ("judge", "benchmark", "decoding", "environment")  # beside a recipe, of all that was scored
FOLDERS = "the folder of a finished `titer run`, or of `titer evaluate`"


@dataclass(frozen=True)
class Said:
    """A prompt and what a model answered."""

    prompt: str
    response: str
    ended: bool


@dataclass(frozen=True)
class PromptOutcome:
    """What a prompt came to."""

    benchmark: str
    number: int  # from 1
    digest: str  # SHA-256 of its words; empty where the record does not have it
    cluster: int  # prompts of one number are wordings of one question
    verdict: str
    values: Mapping[str, float]  # by figure: 1 where it counts, 0 where not; nats of a margin


@dataclass(frozen=True)
class ScoredModel:
    """A model with its figures, and how it was asked."""

    name: str  # of its files
    title: str
    record: Record
    folder: Path  # where its answers lie
    written: float  # seconds since 1970, when its figures were
    how: Mapping[str, Any]  # recipe, judge, benchmark, decoding, environment

    @property
    def model(self) -> str:
        """Name the model that the run began with."""
        path = (self.how["recipe"].get("model") or {}).get("path")
        return str(path or "unknown")

    def scorer_of(self, figure: str) -> str:
        """Name what decides on the answers that a figure counts: a judge, a benchmark or the model."""
        if figure == "margin":
            return "log probabilities"
        judged = FROM.get(figure, figure) in JUDGED or figure == "task_refused"
        of = self.how["judge"] if judged else self.how["benchmark"]
        first = (of.get("judges") or [of])[0]  # the first one decides
        return str(first.get("method") or ("judge" if judged else "answers"))

    def figures_of(self, benchmark: str) -> list[str]:
        """List the figures that the answers to a benchmark are counted for."""
        return [name for name in self.record.scores if FROM.get(name, name) == benchmark]

    def asked(self) -> Iterator[PromptOutcome]:
        """Yield what every prompt came to, benchmark by benchmark."""
        for name, found in (self.record.outcomes or {}).items():
            values = {figure: self._values(figure, found) for figure in self.figures_of(name)}
            numbers: dict[str, int] = {}
            for i, (prompt, cluster) in enumerate(zip(found.prompts, found.clusters, strict=True)):
                yield PromptOutcome(
                    name,
                    i + 1,
                    prompt if len(prompt) == 2 * hashlib.sha256().digest_size else "",
                    numbers.setdefault(cluster, len(numbers) + 1),  # its name is made of words
                    found.verdicts[i],
                    {key: value for key, of in values.items() if (value := of[i]) is not None},
                )

    def answers(self) -> dict[str, list[Said]]:
        """Read what was asked and answered, by benchmark.

        Raises where the file is not there, or not as the record has it.
        """
        path = self.folder / paths.ANSWERS
        if not path.is_file():
            raise ValueError(f"{path} is not there: compute it again, or leave --answers out")
        text = path.read_text(encoding="utf-8")
        known = self.record.fact("answers sha256")
        if known and hashlib.sha256(text.encode()).hexdigest() != known:
            raise ValueError(f"{path} is not as it was written: compute it again")
        found: dict[str, list[Said]] = {}
        for line in text.split("\n"):
            if line:
                fields = json.loads(line)
                said = Said(fields["prompt"], fields["response"], fields["ended"])
                found.setdefault(fields["benchmark"], []).append(said)
        counts = {name: len(of.prompts) for name, of in (self.record.outcomes or {}).items()}
        if {name: len(of) for name, of in found.items()} != counts:
            raise ValueError(f"{path} has other answers than its record: compute it again")
        return found

    def _values(self, figure: str, found: Outcomes) -> list[float | None]:
        if figure == "margin":
            return list(found.margins or [None] * len(found.prompts))
        values = values_of(self.record, figure)
        return list(values.values) if values else [None] * len(found.prompts)


def read_models(folder: Path) -> list[ScoredModel]:
    """Read every scored model of a folder, each once.

    Raises where it is neither a run's nor an evaluation's, and where a record has no outcomes.
    """
    if (folder / paths.RECORD).is_file():
        found = [_evaluated(folder)]
    elif any((folder / name).is_file() for name in (paths.SWEEP, paths.LADDER)):
        raise ValueError(f"{folder} is no single run: give {FOLDERS}; each cell of a sweep is one")
    else:
        found = _of_run(folder)
    for each in found:
        if not each.record.outcomes:
            raise ValueError(
                f"{folder}: {each.title} has no outcomes of prompts: compute it again, or give {FOLDERS}"
            )
    return found


def _evaluated(folder: Path) -> ScoredModel:
    record = parse_document(folder / paths.RECORD, Record)
    if not record.scores:
        raise ValueError(f"{folder} holds a model without scores: give {FOLDERS}")
    more = record.model_extra or {}
    how = {name: more.get(name) or {} for name in TOLD}
    how["recipe"] = record.recipe
    written = (folder / paths.RECORD).stat().st_mtime
    return ScoredModel(record.kind, record.kind, record, folder, written, how)


def _of_run(folder: Path) -> list[ScoredModel]:
    """Read the stages of a run, each under the first pipeline that has it."""
    found: dict[str, ScoredModel] = {}
    for pipeline, document in read(folder).items():
        how = {name: document.get(name) or {} for name in ("recipe", *TOLD)}
        written = (folder / f"{pipeline}.json").stat().st_mtime
        for i, fields in enumerate(document["stages"]):
            place = str(fields.get("folder") or f"{pipeline}-{i:02d}")
            own = folder / paths.STAGES / place
            if place not in found:
                record = Record.model_validate(fields)
                if (own / paths.RECORD).is_file():  # it has the hashes of prompts too
                    full = parse_document(own / paths.RECORD, Record)
                    record = record.model_copy(update={"outcomes": full.outcomes})
                title = f"{pipeline}, {record.label}"
                found[place] = ScoredModel(place, title, record, own, written, how)
    return list(found.values())
