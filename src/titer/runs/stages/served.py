"""A stage that asks a model behind a server: its answers to every held-out prompt, for any judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from titer import paths
from titer.data.rows import Answer, Row, digest
from titer.registry import describe
from titer.runs.keys import code_key
from titer.runs.stages.answer import AnswerStage, note_thoughts, write_answers
from titer.runs.stages.stage import Given, Work
from titer.scoring.endpoint import GREEDY, Endpoint, Journal, Reply, ask_all


@dataclass(frozen=True, eq=False)
class ServedModel(Given):
    """A model behind a server. What it is nobody knows but the server: its address and its name
    stand for it.
    """

    endpoint: Endpoint

    @property
    def about(self) -> dict[str, Any]:
        told = describe(self.endpoint)
        return {"kind": "served", **{name: told[name] for name in ("url", "model", "more")}}

    @property
    def how(self) -> dict[str, Any]:
        return {"method": "served"}

    @property
    def label(self) -> str:
        return "served"


@dataclass(frozen=True, eq=False)
class AskServerStage(AnswerStage):
    """Let a served model answer, as greedily as its server does.

    An answer is kept as soon as it is there, and never asked for again.
    """

    joint: ClassVar[bool] = False
    endpoint: Endpoint
    system: str | None

    @property
    def about(self) -> dict[str, Any]:
        return {
            "kind": "answer",
            "of": self.of.key,
            "code": code_key(type(self)),
            "rows": {name: digest(rows) for name, rows in self.benchmarks.items()},
            "system": self.system,
            "answers": self.max_new_tokens,
            "decoding": dict(GREEDY) | self.endpoint.more,
        }

    def compute(self, work: Work, folder: Path) -> dict[str, Any]:
        rows = [row for of in self.benchmarks.values() for row in of]
        chats = [messages(row, self.system) for row in rows]
        journal = Journal(folder / paths.JOURNAL)
        replies = ask_all(self.endpoint, chats, self.max_new_tokens, journal, work.progress.advance)
        given = [reply for reply in replies if isinstance(reply, Reply)]
        answers = [Answer(reply.text, reply.ended, reply.thought) for reply in given]
        each = iter(answers)
        write_answers(
            folder, {name: [next(each) for _ in of] for name, of in self.benchmarks.items()}
        )
        (folder / paths.JOURNAL).unlink(missing_ok=True)
        empty = sum(not answer.text for answer in answers)
        notes = [f"{empty} of {len(answers)} answers came empty"] if empty else []
        return {"weights": None, "notes": note_thoughts(answers) + notes}


def messages(row: Row, system: str | None) -> list[Mapping[str, str]]:
    """Return the messages of a row: a system prompt, the turns before, the question."""
    own = any(turn.role == "system" for turn in row.before)
    first = [{"role": "system", "content": system}] if system and not own else []
    before = [{"role": turn.role, "content": turn.content} for turn in row.before]
    return [*first, *before, {"role": "user", "content": row.question}]
