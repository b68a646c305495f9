"""Answers that people have labelled: what a judge is measured by.

A row has a prompt, an answer, and the labels of one or more raters: yes or no, or a grade, of which
`threshold` and above is a yes. What a yes says is for the caller to know: the answer is harmful, or
it refuses.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from titer.data import packages, schemas
from titer.data.files import RawRecord
from titer.data.rows import Row, prompt_hash
from titer.data.sources import Source, let_through, locate, take

WORDS = {  # of a label -> its grade; whatever the threshold, 1 is a yes and 0 a no
    **dict.fromkeys(("true", "yes", "harmful", "unsafe", "refusal", "refused"), 1.0),
    **dict.fromkeys(("false", "no", "harmless", "safe", "compliance", "complied"), 0.0),
}
# the columns of prompt, response and label; behind those of a label may stand _1, _2, ..., a rater
# each
LAYOUTS = (
    ("prompt", "response", "label"),
    ("objective", "assistant_response", "human_score"),  # scorer_evals of the package pyrit
)
HALF = 0.5  # the threshold of grades between 0 and 1


@dataclass(frozen=True)
class LabelledAnswer:
    """An answer, and what people said of it."""

    prompt: str
    response: str
    label: bool  # of the most raters
    grades: tuple[float, ...]  # of each rater
    raters: tuple[bool, ...]  # the label of each rater

    @property
    def cluster(self) -> str:
        """The hash of its prompt, which it shares with other answers to it."""
        return prompt_hash(Row(self.prompt))

    @property
    def grade(self) -> float:
        """The mean of the raters' grades."""
        return sum(self.grades) / len(self.grades)


@dataclass(frozen=True)
class LabelledSet:
    """Labelled answers, each once, and what was left out of their files."""

    answers: tuple[LabelledAnswer, ...]
    files: tuple[str, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)  # why -> rows

    @property
    def sha256(self) -> str:
        """The hash over all texts and grades, in order."""
        hasher = hashlib.sha256()
        for each in self.answers:
            hasher.update(json.dumps([each.prompt, each.response, *each.grades]).encode())
        return hasher.hexdigest()


def read_labels(given: Sequence[Source], threshold: float | None = None) -> LabelledSet:
    """Read the labelled answers of all sources. Raises, naming the record, where one has no label.

    Without a threshold grades lie between 0 and 1, and 0.5 is a yes.
    """
    found: list[LabelledAnswer] = []
    files = [(source, place) for source in given for place in _places(source)]
    known = {name for layout in LAYOUTS for name in layout}
    known |= {f"{layout[2]}_{i}" for layout in LAYOUTS for i in range(1, 10)}
    for source, place in files:
        records = let_through(source, place, known)
        schemas.check_named(records, source.columns, schemas.all_columns(records))
        renamed = schemas.rename_all(records, source.columns)
        layout = _layout(renamed)
        read = [_answer(record, layout, threshold) for record in renamed]
        found += take(read, source, "labels")
    return _each_once(found, [str(place.name) for _, place in files])


def _places(source: Source) -> list[Path]:
    if packages.is_package(source.path):
        return packages.find(source.path)
    return [locate(source.path, source.revision).folder]


def _layout(records: Sequence[RawRecord]) -> tuple[str, str, tuple[str, ...]]:
    """Return the columns of prompt, response and labels. Raises where they are not there."""
    known = schemas.all_columns(records)
    for prompt, response, label in LAYOUTS:
        labels = sorted(name for name in known if re.fullmatch(rf"{label}(_\d+)?", name))
        if labels and {prompt, response} <= known:
            return prompt, response, tuple(labels)
    layouts = "; ".join(" + ".join(layout) for layout in LAYOUTS)
    raise ValueError(
        f"{records[0].place}: {schemas.describe_columns(records[0])}; known are {layouts}: name "
        "yours, e.g. {path: FILE, columns: {prompt: question, response: answer, label: rating}}"
    )


def _answer(
    record: RawRecord, columns: tuple[str, str, tuple[str, ...]], threshold: float | None
) -> LabelledAnswer:
    prompt, response, labels = columns
    schemas.check_columns([record], [prompt, response, *labels])
    for name in (prompt, response):
        if not isinstance(record.fields[name], str):
            told = str(record.fields[name])[:40]
            raise ValueError(f"{record.place}: {name!r} is no text but {told!r}")
    graded = [_grade(record, name, threshold) for name in labels]
    grades, raters = tuple(grade for grade, _ in graded), tuple(label for _, label in graded)
    most = 2 * sum(raters) > len(raters)
    return LabelledAnswer(record.fields[prompt], record.fields[response], most, grades, raters)


def _grade(record: RawRecord, name: str, threshold: float | None) -> tuple[float, bool]:
    """Return the grade of a label, and whether it is a yes."""
    value = record.fields[name]
    word = str(value).strip().lower()
    if word in WORDS:
        return WORDS[word], WORDS[word] >= HALF
    try:
        grade = float(word)
    except ValueError:
        raise ValueError(
            f"{record.place}: the label {name}={str(value)[:40]!r} is neither a number nor one of "
            f"{', '.join(WORDS)}"
        ) from None
    if not math.isfinite(grade):
        raise ValueError(
            f"{record.place}: the grade {name}={grade:g} is no number to compare: take the row out, "
            "or leave it out by where"
        )
    if threshold is None and not 0 <= grade <= 1:
        raise ValueError(
            f"{record.place}: the grade {name}={grade:g} is not between 0 and 1: say by threshold "
            "which grade is the first that counts"
        )
    return grade, grade >= (HALF if threshold is None else threshold)


def _each_once(found: Iterable[LabelledAnswer], files: Sequence[str]) -> LabelledSet:
    """Leave out repeats, answers on which as many raters say yes as no, and those that are labelled
    both ways.
    """
    by_text: dict[tuple[str, str], list[LabelledAnswer]] = {}
    for each in found:
        by_text.setdefault((each.prompt, each.response), []).append(each)
    kept, left = list[LabelledAnswer](), dict.fromkeys(("repeats", "labelled both ways", "tied"), 0)
    for alike in by_text.values():
        first = alike[0]
        if len({each.label for each in alike}) > 1:
            left["labelled both ways"] += len(alike)
        elif 2 * sum(first.raters) == len(first.raters):
            left["tied"] += len(alike)
        else:
            left["repeats"] += len(alike) - 1
            kept.append(first)
    return LabelledSet(tuple(kept), tuple(files), {why: n for why, n in left.items() if n})
