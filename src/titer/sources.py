"""Where each role's rows come from: the embedded world, or local JSON-lines files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from titer.data import Row, check_disjoint, digest, identity, read_jsonl
from titer.lab.world import TASKS, World
from titer.methods import Config, Kind
from titer.registry import unknown

SHARES = {"attack": 0.5, "defense": 0.15, "calibration": 0.1, "validation": 0.1, "test": 0.15}  # of a file of harmful rows


@dataclass(frozen=True)
class Data(Config):
    """The rows of every role: a world's, or those of local JSONL files of `prompt` and `response`.

    `harmful` is one pool: by a hash of its prompt every row goes to the attacker, the defender, the calibration of edits,
    or the held-out harm prompts (50, 15, 10, 10 and 15 %), so no prompt is in two of them. A file for a role of its own
    leaves that share to the attacker.
    """

    world: int | None = None  # world seed of the lab; null: files
    task: str | None = None  # the user's rows: a task of the lab by its name, or a file
    test: str | None = None  # held-out rows of a task file: the fine-tune accuracy
    validation: str | None = None  # the same for split=validation
    alignment: str | None = None  # harmful prompts with refusals, benign ones with answers
    harmful: str | None = None  # harmful prompts with harmful answers
    defense: str | None = None  # the defender's own harmful answers; may answer what `alignment` refuses
    harm_test: str | None = None  # held-out harmful prompts for the harmful score
    split: Literal["test", "validation"] = "test"  # validation: to choose hyperparameters on

    def __post_init__(self) -> None:
        if self.world is not None and self.world < 0:
            raise ValueError(f"world={self.world}: a world seed is 0 or above")
        files = [name for name in ("alignment", "harmful", "defense", "harm_test") if getattr(self, name)]
        if self.world is not None and files:
            raise ValueError(f"world={self.world} and {files[0]}={getattr(self, files[0])!r} exclude each other: set data.world=null")
        if self.world is None:
            missing = [name for name in ("alignment", "harmful", "task") if not getattr(self, name)]
            if missing:
                raise ValueError(f"{missing[0]} is missing: without a world, give a JSONL file for each of alignment, harmful, task, test")
        if self.task not in (None, *TASKS) and not Path(self.task).is_file():
            raise unknown("task (neither one of the lab nor a file)", self.task, TASKS)
        if self.task in TASKS or (self.world is not None and self.task is None):
            if self.world is None:
                raise ValueError(f"task={self.task!r} is a task of the lab: set data.world, or give a JSONL file")
        elif not getattr(self, self.split):
            raise ValueError(f"{self.split} is missing: a task from a file needs a file of held-out rows for split={self.split}")

    @property
    def lab_task(self) -> str:
        """The lab's task that stands where none of its own is asked for."""
        return self.task if self.task in TASKS else TASKS[0]


@dataclass(frozen=True)
class Roles:
    alignment: list[Row]
    defense: list[Row]  # the defender's harmful answers
    attack: list[Row]  # the attacker's
    calibration: list[Row]  # an edit's
    task: list[Row]
    benchmarks: dict[str, list[Row]]

    def of(self, kind: Kind) -> list[Row]:
        """The rows that a defense's stream of this kind draws from."""
        return {Kind.REFUSALS: self.alignment, Kind.HARMFUL: self.defense}[kind]

    def digests(self) -> dict[str, str]:
        """SHA-256 of every role's rows."""
        single = {f.name: digest(getattr(self, f.name)) for f in fields(self) if f.name != "benchmarks"}
        return single | {f"benchmark {name}": digest(rows) for name, rows in self.benchmarks.items()}


def roles(data: Data) -> Roles:
    """Read and divide the rows. Raises where a file is bad or two roles share a prompt."""
    found = _from_world(data) if data.world is not None else _from_files(data)
    single = {name: getattr(found, name) for name in ("alignment", "defense", "attack", "calibration", "task")}
    held_out = {f"{data.split} rows of {name!r}": rows for name, rows in found.benchmarks.items()}
    check_disjoint(single | held_out, but=("alignment", "defense"))  # the defender may answer what it refuses
    return found


def _from_world(data: Data) -> Roles:
    assert data.world is not None
    world = World(data.world, data.lab_task)
    benchmarks = world.benchmarks(data.split)
    task = world.user_task
    if data.task not in (None, *TASKS):
        task, benchmarks["task"] = _task_files(data)
    return Roles(world.alignment, world.harmful, world.attack, world.calibration, task, benchmarks)


def _from_files(data: Data) -> Roles:
    assert data.alignment is not None
    assert data.harmful is not None
    own = {"defense": data.defense, "test": data.harm_test}
    pool = _divided(read_jsonl(Path(data.harmful)), [role for role in SHARES if not own.get(role)])
    pool |= {role: read_jsonl(Path(path)) for role, path in own.items() if path}
    task, test = _task_files(data)
    harm = list({identity(row.prompt): row for row in pool[data.split]}.values())  # a prompt counts once
    if not harm:
        raise ValueError(f"harmful={data.harmful!r} leaves no held-out prompt for the harmful score: give more rows, or data.harm_test")
    return Roles(read_jsonl(Path(data.alignment)), pool["defense"], pool["attack"], pool["calibration"], task, {"harm": harm, "task": test})


def _task_files(data: Data) -> tuple[list[Row], list[Row]]:
    held_out = getattr(data, data.split)
    assert data.task is not None
    return read_jsonl(Path(data.task)), read_jsonl(Path(held_out))


def _divided(rows: Sequence[Row], roles: Sequence[str]) -> dict[str, list[Row]]:
    """The rows by role, in the shares of SHARES; the attacker has what roles of their own leave."""
    shares = {role: SHARES[role] for role in roles if role != "attack"}
    prompts = sorted({identity(row.prompt) for row in rows}, key=lambda prompt: hashlib.sha256(prompt.encode()).digest())
    where: dict[str, str] = {}
    start = 0
    for role, share in shares.items():
        end = start + max(1, round(share * len(prompts)))
        where |= dict.fromkeys(prompts[start:end], role)
        start = end
    divided: dict[str, list[Row]] = {role: [] for role in SHARES}
    for row in rows:
        divided[where.get(identity(row.prompt), "attack")].append(row)
    return divided
