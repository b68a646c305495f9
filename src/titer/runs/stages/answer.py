"""A stage that asks a model: its answers to every held-out prompt, for any judge."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from titer import paths
from titer.data.rows import Answer, Row, digest
from titer.runs.stages.stage import AskingStage, Work
from titer.scoring.engines import ENGINES
from titer.scoring.evaluate import answer_all
from titer.scoring.generate import GREEDY
from titer.training.ranks import Ranks
from titer.training.sharding import shard
from titer.training.train import accelerator_for
from titer.weights import checkpoints


@dataclass(frozen=True, eq=False)
class AnswerStage(AskingStage):
    """Let a model answer greedily."""

    joint: ClassVar[bool] = True
    benchmarks: Mapping[str, Sequence[Row]]
    max_new_tokens: int
    at_once: int
    engine: str  # by its name, of `scoring.engines`

    @property
    def about(self) -> dict[str, Any]:
        return self.lineage | {
            "kind": "answer",
            "rows": {name: digest(rows) for name, rows in self.benchmarks.items()},
            "answers": [self.max_new_tokens, self.at_once],
            "decoding": dict(GREEDY),
            "engine": self.engine,
        }

    def compute(self, work: Work, folder: Path) -> dict[str, Any]:
        said: list[str] = []
        model, template = self.open(work)
        weights, accelerator = checkpoints.fingerprint(model), accelerator_for()
        if Ranks.of(accelerator).sharded:
            model = shard(model, accelerator)
        answers = answer_all(
            model,
            template,
            self.benchmarks,
            self.max_new_tokens,
            self.at_once,
            said.append,
            work.progress.advance,
            Ranks.of(accelerator),
            ENGINES[self.engine],
        )
        if not work.leads:
            return {}
        write_answers(folder, answers)
        given = [each for of in answers.values() for each in of]
        return {"weights": weights, "notes": said + note_thoughts(given)}


def drop_empty(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the fields without those of `names` that hold nothing."""
    return {key: value for key, value in fields.items() if value or key not in names}


def note_thoughts(answers: Sequence[Answer]) -> list[str]:
    """Say how many answers came with a thought; nothing where none did."""
    n = sum(bool(each.thought) for each in answers)
    return (
        [f"{n} of {len(answers)} answers came with a thought beside it, which no judge reads"]
        if n
        else []
    )


def write_answers(folder: Path, answers: Mapping[str, Sequence[Answer]]) -> None:
    """Write the answers to every benchmark's prompts into a stage's folder, thoughts beside them."""
    lines = [
        {"benchmark": name, **drop_empty(asdict(each), "thought")}
        for name, of in answers.items()
        for each in of
    ]
    write_privately(folder / paths.ANSWERS, "".join(json.dumps(line) + "\n" for line in lines))


def write_privately(path: Path, text: str) -> None:
    """Write what a real model said, which may be harmful, for its maker alone to read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text.encode())


def read_answers(path: Path) -> dict[str, list[Answer]]:
    """Read what an `AnswerStage` wrote."""
    found: dict[str, list[Answer]] = {}
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line:
            fields = json.loads(line)
            found.setdefault(fields["benchmark"], []).append(
                Answer(fields["text"], fields["ended"], fields.get("thought", ""))
            )
    return found
