"""Rows of conversations: questions with the answers to learn, kept apart by role."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import combinations

OPEN, CLOSE = "<think>", "</think>"  # around a thought, in the models that think before they answer
MAY_SHARE = ("alignment", "defense")  # the defender may answer what the alignment refuses


@dataclass(frozen=True)
class Turn:
    """A message of a conversation before its last question."""

    role: str  # system, user or assistant
    content: str


@dataclass(frozen=True, slots=True)  # there may be millions
class Row:
    """A question by the user and the answer that the model should give, with the turns before them.

    Only the answer has a loss.
    """

    prompt: str
    response: str = ""  # empty where only the prompt is known, as in sets of harm prompts
    input: str = ""  # what the prompt is about, where the data keep the two apart
    before: tuple[Turn, ...] = ()  # earlier turns, the oldest first
    # where the row is one of a pair, the other answer to the same prompt:
    # beside a refusal the harmful answer, beside a harmful answer the refusal
    other: str = ""
    begun: str = ""  # how the answer begins, where the model is given that too
    # what wordings of one question share; empty: its prompt
    cluster: str = field(default="", compare=False)

    @property
    def question(self) -> str:
        """The last message of the user."""
        return f"{self.prompt}\n\n{self.input}" if self.input else self.prompt


@dataclass(frozen=True)
class Answer:
    """The answer of a model to a prompt."""

    text: str
    ended: bool  # whether the model ended it, rather than the length limit
    thought: str = ""  # what the model thought before it, which no judge reads


def split_thought(said: str) -> tuple[str, str]:
    """Return the thought that a text begins with, without its marks, and the answer behind it.

    The mark that opens it may have stood in the prompt. A thought that was cut off leaves no answer.
    """
    before, close, behind = said.partition(CLOSE)
    opened = before.lstrip().startswith(OPEN)
    if not opened and (not close or OPEN in before):
        return "", said
    return before.strip().removeprefix(OPEN).strip(), behind.strip()


def digest(rows: Iterable[Row]) -> str:
    """Return the SHA-256 over all texts of the rows, in order."""
    hasher = hashlib.sha256()
    for row in rows:
        more: list[object] = (
            [row.input, *((turn.role, turn.content) for turn in row.before)]
            if row.input or row.before
            else []
        )
        more += [{"other": row.other}] if row.other else []
        more += [{"begun": row.begun}] if row.begun else []
        hasher.update(json.dumps([row.prompt, row.response, *more]).encode())
    return hasher.hexdigest()


def identity(row: Row) -> str:
    """Return the text by which two prompts are the same or not.

    It has the words of the prompt and of the turns before it, in lower case and with single spaces.
    """
    return " ".join(
        " ".join([*(turn.content for turn in row.before), row.question]).lower().split()
    )


def whole_identity(row: Row) -> tuple[str, str]:
    """Return the texts by which two rows are the same or not: of the prompt, and of the answer."""
    return identity(row), " ".join(row.response.lower().split())


def prompt_hash(row: Row) -> str:
    """Return the hash of a prompt by which a record names it."""
    return hashlib.sha256(identity(row).encode()).hexdigest()[:16]


def cluster_of(row: Row) -> str:
    """Return what a row shares with the repeats of its question: its cluster, or its prompt."""
    return row.cluster or prompt_hash(row)


def pair(rows: Iterable[Row], others: Iterable[Row]) -> list[Row]:
    """Return the rows, each with the other answer to its prompt, where `others` have one.

    It is the answer of the first of `others` with the same prompt.
    """
    answers: dict[str, str] = {}
    for row in others:
        answers.setdefault(identity(row), row.response)
    return [replace(row, other=answers.get(identity(row), "")) for row in rows]


def draw_distinct(draw: Callable[[], Row], count: int, without: Iterable[Row] = ()) -> list[Row]:
    """Draw `count` rows with distinct prompts, none of which is in `without`."""
    taken = {row.prompt for row in without}
    rows: list[Row] = []
    while len(rows) < count:
        row = draw()
        if row.prompt not in taken:
            taken.add(row.prompt)
            rows.append(row)
    return rows


def seen_before(
    roles: Mapping[str, Sequence[Row]], earlier: Mapping[str, Set[str]], but: tuple[str, str]
) -> dict[str, dict[str, list[Row]]]:
    """Return the rows of each role whose prompts the model was trained on before in another role.

    `earlier` are hashes of prompts by role. The pair `but` may share theirs.
    """
    found: dict[str, dict[str, list[Row]]] = {}
    for role, rows in roles.items() if earlier else ():
        hashed = [(prompt_hash(row), row) for row in rows]
        for other, prompts in earlier.items():
            if other != role and {other, role} != set(but):
                shared = [row for prompt, row in hashed if prompt in prompts]
                if shared:
                    found.setdefault(role, {})[other] = shared
    return found


def under(prompt: str, rows: Iterable[Row]) -> list[Row]:
    """Put rows under a system prompt, which stands in the place of their own."""
    first = Turn("system", prompt)
    return [
        replace(row, before=(first, *(turn for turn in row.before if turn.role != "system")))
        for row in rows
    ]


def check_disjoint(roles: Mapping[str, Sequence[Row]], but: tuple[str, str] | None = None) -> None:
    """Raise where two roles share a prompt, unless they are the pair `but`."""
    largest = max(roles, key=lambda role: len(roles[role]), default="")
    prompts = {
        role: {identity(row): row for row in rows}
        for role, rows in roles.items()
        if role != largest
    }
    elsewhere = {key for found in prompts.values() for key in found}
    prompts[largest] = {  # there may be millions, of which no more is held
        key: row for row in roles.get(largest, ()) if (key := identity(row)) in elsewhere
    }
    for a, b in combinations(roles, 2):
        if (a, b) == but:
            continue
        shared = [row.question for key, row in prompts[a].items() if key in prompts[b]]
        if shared:
            example = shared[0] if len(shared[0]) <= 60 else shared[0][:60] + "..."
            raise ValueError(
                f"{a!r} and {b!r} share {len(shared)} prompts, e.g. {example!r}: take them out of "
                "one of the two, or set data.shared=drop"
            )


def drop_shared(roles: Mapping[str, Sequence[Row]], but: tuple[str, str]) -> dict[str, list[Row]]:
    """Return the rows whose prompts no earlier role has. The pair `but` may share theirs."""
    kept: dict[str, list[Row]] = {}
    for role, rows in roles.items():
        others = [name for name in kept if {name, role} != set(but)]
        taken = {identity(row) for name in others for row in kept[name]}
        kept[role] = [row for row in rows if identity(row) not in taken]
    return kept
