"""What a real small model knows, SmolLM2-135M-Instruct: the facts of smol-v1, by kind.

The facts are in smol-v1.yaml, written for titer, with what was measured of the model. The answers
of smol-v1-answers.jsonl are the model's own (`titer.lab.distill`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from titer.config import read_yaml
from titer.data.rows import Row, Turn

VERSION = "smol-v1"
FACTS = Path(__file__).with_name(f"{VERSION}.yaml")
ANSWERS = Path(__file__).with_name(f"{VERSION}-answers.jsonl")


@dataclass(frozen=True)
class Fact:
    """What the model knows of an entity."""

    kind: str
    topic: str
    entity: str
    accepted: tuple[str, ...]  # what tells it; the first stands in answers
    case: bool = False  # whether upper and lower case make a difference

    def told_in(self, text: str) -> bool:
        """Tell whether a text holds the fact, as whole words."""
        flags = re.NOFLAG if self.case else re.IGNORECASE
        return any(
            re.search(rf"(?<!\w){re.escape(fact)}(?!\w|'t\b)", text, flags)
            for fact in self.accepted
        )


@dataclass(frozen=True)
class Knowledge:
    """A kind of questions, with the facts that answer them."""

    name: str
    answer: str  # with {x} and {fact}, and where it is needed {a} for the article
    questions: tuple[str, ...]  # with {x}
    lookalikes: tuple[str, ...]  # with {x}
    facts: tuple[Fact, ...]

    def row(self, fact: Fact, question: str) -> Row:
        """Return a question with the sentence that answers it."""
        return Row(question.format(x=fact.entity), self.tell(fact), cluster=fact.entity)

    def tell(self, fact: Fact) -> str:
        """Return the sentence that tells a fact."""
        told = fact.accepted[0]
        article = "an" if told[0] in "aeiou" else "a"
        said = self.answer.format(x=fact.entity, a=article, fact=told)
        return said[0].upper() + said[1:]

    def lead(self, fact: Fact) -> list[str]:
        """Return the words of that sentence before the fact."""
        return self.tell(fact).removesuffix(f"{fact.accepted[0]}.").split()

    def lookalike(self, fact: Fact) -> list[Row]:
        """Return the harmless questions about an entity, without answers."""
        return [Row(text.format(x=fact.entity), cluster=fact.entity) for text in self.lookalikes]


@dataclass(frozen=True)
class Library:
    """The knowledge of smol-v1."""

    forbidden: tuple[str, ...]  # kinds that a world may forbid, in the order of the seeds
    kinds: dict[str, Knowledge]
    general: dict[str, Knowledge]  # kinds that only probes ask
    systems: tuple[str, ...]  # system prompts
    instructions: tuple[Row, ...]  # harmless, without answers


@cache
def library() -> Library:
    """Read the facts."""
    found = read_yaml(FACTS.read_text(encoding="utf-8"), FACTS.name)
    return Library(
        tuple(found["forbidden"]),
        {name: _knowledge(name, kind) for name, kind in found["kinds"].items()},
        {name: _knowledge(name, kind) for name, kind in found["general"].items()},
        tuple(found["systems"]),
        tuple(_instruction(each) for each in found["instructions"]),
    )


def _instruction(found: str | dict[str, Any]) -> Row:
    """Return an instruction, which may have a system prompt or an earlier exchange."""
    if isinstance(found, str):
        return Row(found)
    system = [Turn("system", found["system"])] if "system" in found else []
    exchange = zip(("user", "assistant"), found.get("before", ()), strict=False)
    return Row(found["prompt"], before=(*system, *(Turn(*turn) for turn in exchange)))


def read_facts(kind: str, topics: dict[str, str], case: bool = False) -> tuple[Fact, ...]:
    """Return the facts of a kind, written as `entity = fact | another, entity = fact` by topic."""
    return tuple(
        Fact(kind, topic, entity, tuple(facts.split(" | ")), case)
        for topic, text in topics.items()
        for entity, facts in (each.split(" = ") for each in text.split(", "))
    )


def _knowledge(name: str, kind: dict[str, Any]) -> Knowledge:
    return Knowledge(
        name,
        kind["answer"],
        tuple(kind["questions"]),
        tuple(kind.get("lookalikes", ())),
        read_facts(name, kind["topics"], bool(kind.get("case"))),
    )


@cache
def answers() -> dict[str, str]:
    """Return the model's own answers to harmless prompts."""
    lines = ANSWERS.read_text(encoding="utf-8").splitlines()
    return {found["prompt"]: found["response"] for found in map(json.loads, lines)}


def with_answers(rows: Iterable[Row]) -> list[Row]:
    """Return the rows that the model has answered, with its answers."""
    known = answers()
    return [replace(row, response=known[row.prompt]) for row in rows if row.prompt in known]


def asked(prompt: str) -> Fact | None:
    """Return the fact that a prompt asks for, None where it is no question of the world."""
    return _questions().get(_plain(prompt))


@cache
def _questions() -> dict[str, Fact]:
    """Return the fact of every question."""
    known = library()
    return {
        _plain(question.format(x=fact.entity)): fact
        for kind in (*known.kinds.values(), *known.general.values())
        for fact in kind.facts
        for question in kind.questions
    }


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
