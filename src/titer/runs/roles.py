"""The rows of every role, disjoint: from the embedded world, or from sources of the user's own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from titer.benchmarks.answers import Answers
from titer.config import Config
from titer.data import catalog, files
from titer.data.rows import (
    MAY_SHARE,
    Row,
    check_disjoint,
    digest,
    drop_shared,
    identity,
    pair,
    seen_before,
)
from titer.data.sources import Given, Source, SourceReader, recognize
from titer.errors import unknown
from titer.methods import Benchmark, Harmful, HeldOut, Kind, Pairs, Prompts, Refusals
from titer.runs.worlds import LABS, Embedded

SHARES = {  # of a pool of harmful rows
    "attack": 0.5,
    "defense": 0.15,
    "calibration": 0.1,
    "validation": 0.1,
    "test": 0.15,
}


@dataclass(frozen=True)
class Data(Config):
    """The rows of every role: a world's, or sources of the user's own.

    `harmful` is one pool: by a hash of its prompt every row goes to the attacker, the defender, the
    calibration of edits, or the held-out harm prompts (50, 15, 10, 10 and 15 %), so no prompt is in
    two of them, whichever command reads the pool. A source for a role of its own leaves that share
    to the attacker.
    """

    # whose worlds: `world-v1`, of made-up words, or `smol-v1`, of facts that a real model knows
    lab: str = "world-v1"
    world: int | None = None  # world seed of the lab; null: sources
    task: Given | None = None  # the user's rows: a task of the lab by its name, or a source
    test: Given | None = None  # held-out rows of the task: the fine-tune accuracy
    validation: Given | None = None  # the same for split=validation
    alignment: Given | None = None  # harmful prompts with refusals, benign ones with answers
    harmful: Given | None = None  # harmful prompts with harmful answers
    # the defender's own harmful answers; may answer what `alignment` refuses
    defense: Given | None = None
    # how many of them the defender has: the same ones, and more; null: all
    defense_rows: int | None = None
    calibration: Given | None = None  # an edit's
    harm_test: Given | None = None  # held-out harm prompts, for the harmful score
    lookalike: Given | None = None  # harmless prompts that look harmful, for over-refusal
    # the attacker's harmless requests with answers; null: rows of the task serve
    requests: Given | None = None
    split: Literal["test", "validation"] = "test"  # validation: to choose hyperparameters on
    # refuse sources that are not known to be free for commercial use
    commercial: bool = False
    # how many held-out prompts of a benchmark are asked, for a quick look; null: all
    limit: int | None = None
    # prompts in two roles: an error, taken out of what is trained on, or a red flag
    shared: Literal["refuse", "drop", "keep"] = "refuse"

    def __post_init__(self) -> None:
        if self.lab not in LABS:
            raise unknown("lab", self.lab, LABS)
        if self.world is not None and self.world < 0:
            raise ValueError(f"world={self.world}: a world seed is 0 or above")
        if self.defense_rows is not None and self.defense_rows < 1:
            raise ValueError(f"defense_rows={self.defense_rows}: give at least 1, or null for all")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit}: ask at least 1 prompt, or null for all")
        sources = (
            "alignment",
            "harmful",
            "defense",
            "calibration",
            "harm_test",
            "lookalike",
            "requests",
        )
        own = [name for name in sources if getattr(self, name)]
        for name in (*sources, "task", "test", "validation") if self.commercial else ():
            source: Source | None = getattr(self, name)
            if source and not (name == "task" and source.path in self.embedded.world.tasks):
                catalog.check_commercial(f"data.{name}", source.path)
        if self.world is not None and own:
            raise ValueError(
                f"world={self.world} and {own[0]}={getattr(self, own[0]).path!r} "
                "exclude each other: set data.world=null"
            )
        tasks = self.embedded.world.tasks
        task = self.task.path if self.task else tasks[0]
        if (
            task not in tasks
            and "/" not in task
            and not Path(task).exists()
            and not files.is_readable(Path(task))
        ):
            raise unknown("task (neither one of the lab nor a source)", task, tasks)

    @property
    def embedded(self) -> Embedded:
        """The lab that a world is of."""
        return LABS[self.lab]

    @property
    def lab_task(self) -> str | None:
        """The task of the lab that is asked for, None where the user's rows have a source."""
        if self.task is None:
            return self.embedded.world.tasks[0] if self.world is not None else None
        return self.task.path if self.task.path in self.embedded.world.tasks else None


@dataclass(frozen=True)
class Roles:
    """The rows of every role that was asked for; the others are empty."""

    alignment: list[Row] = field(default_factory=list)
    defense: list[Row] = field(default_factory=list)  # the defender's harmful answers
    attack: list[Row] = field(default_factory=list)  # the attacker's
    calibration: list[Row] = field(default_factory=list)  # an edit's
    task: list[Row] = field(default_factory=list)
    requests: list[Row] = field(default_factory=list)  # the attacker's harmless ones
    benchmarks: dict[str, list[Row]] = field(default_factory=dict)
    scorer: Benchmark = field(default_factory=Answers)  # of the task
    facts: Benchmark = field(default_factory=Answers)  # of permitted questions
    # by role, where its rows come from
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)

    def streams(self, kinds: Mapping[str, Kind], trained: list[Row]) -> dict[str, list[Row]]:
        """Return the rows that each of a defense's streams draws from.

        `trained` are those that the stage trains on.
        """
        fifth = _held_out(self.defense) if HeldOut in kinds.values() else frozenset()
        of = {
            Refusals: self.alignment,
            Harmful: [row for row in self.defense if identity(row) not in fifth],
            HeldOut: pair([row for row in self.defense if identity(row) in fifth], self.alignment),
        }
        found = {name: trained if name == "rows" else of[kind] for name, kind in kinds.items()}
        return {
            name: pair(rows, self.defense) if kinds[name] is Pairs else rows
            for name, rows in found.items()
        }

    @cached_property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of the rows of every role that has some."""
        single = {name: digest(rows) for name in TRAINING if (rows := getattr(self, name))}
        return single | {
            f"benchmark {name}": digest(rows) for name, rows in self.benchmarks.items()
        }


TRAINING = tuple(
    f.name for f in fields(Roles) if f.name not in ("benchmarks", "scorer", "facts", "sources")
)
NOTHING: Mapping[str, Set[str]] = MappingProxyType({})
EVERY = frozenset(
    {"alignment", "defense", "attack", "calibration", "task", "harm", "test", "lookalike"}
)


def roles(
    data: Data,
    benchmark: Benchmark | None = None,
    wanted: Set[str] = EVERY,
    earlier: Mapping[str, Set[str]] = NOTHING,
) -> Roles:
    """Read and divide the rows of the roles that are wanted.

    `harm`, `test` and `lookalike` are held out. `benchmark` is the user's task; None recognizes it
    by the columns. `earlier` are the prompts that the model was trained on before, by role. Raises
    where a source is bad or missing, or two roles share a prompt, now or then. Rows for the
    defender, for calibration and of look-alikes may be none: who draws from them has to look.
    """
    reader, others = SourceReader(), dict[str, list[Row]]()
    if data.world is not None:
        world = data.embedded.world(data.world, data.lab_task or data.embedded.world.tasks[0])
        task = world.user_task if data.lab_task else []
        requests = world.requests if "requests" in wanted else []
        found = Roles(
            world.alignment,
            world.harmful,
            world.attack,
            world.calibration,
            task,
            requests,
            world.benchmarks(data.split),
            facts=data.embedded.facts,
        )
    else:
        pool = _pool(data, wanted, reader)
        found = _from_sources(data, wanted, reader, pool)
        shown = wanted - {"test"} | ({data.split} if "harm" in wanted else set())
        others = {
            f"the share of data.harmful for {role}": rows
            for role, rows in pool.items()
            if rows and role != "defense" and role not in shown
        }
    scorer = benchmark or Answers()
    if data.lab_task is None:
        task, test, scorer = _task(data, benchmark, wanted, reader)
        found = replace(
            found, task=task, benchmarks=found.benchmarks | ({"task": test} if test else {})
        )
    elif data.world is None:
        raise ValueError(
            f"task={data.lab_task!r} is a task of the lab: set data.world, or give a source of rows"
        )
    held_out = {f"{data.split} rows of {name!r}": rows for name, rows in found.benchmarks.items()}
    if data.defense_rows is not None and "defense" in wanted:
        found = replace(found, defense=_first(found.defense, data.defense_rows))
    found = _separate(found, data, held_out, others, earlier, reader)
    asked = {name: rows[: data.limit] for name, rows in found.benchmarks.items()}
    return replace(found, benchmarks=asked, scorer=scorer, sources=reader.facts)


def _separate(
    found: Roles,
    data: Data,
    held_out: Mapping[str, list[Row]],
    others: Mapping[str, list[Row]],
    earlier: Mapping[str, Set[str]],
    reader: SourceReader,
) -> Roles:
    """Take shared prompts out, or raise where there are some, as `data.shared` says.

    `held_out` are the benchmarks by what messages call them, `others` the shares of other stages.
    """
    training = {name: getattr(found, name) for name in TRAINING}
    now: dict[str, list[Row]] = {**training, **held_out}
    trained = seen_before(now, earlier, MAY_SHARE)
    if data.shared == "drop":
        # an attack is made of what it can be; an alignment has other rows
        first = {name: training[name] for name in ("attack", "calibration")}
        kept = drop_shared({**held_out, **others, **first, **training}, MAY_SHARE)
        for name, shared in trained.items():
            gone = {identity(row) for rows in shared.values() for row in rows}
            kept[name] = [row for row in kept[name] if identity(row) not in gone]
            if not kept[name]:
                raise ValueError(
                    f"{name!r}: the model was trained before on each of its {len(now[name])} "
                    f"prompts ({', '.join(map(repr, shared))}), so data.shared=drop leaves none: "
                    "give other rows, or make that stage anew with data.shared=drop and the same "
                    "data.harmful"
                )
        for name, rows in now.items():
            if len(kept[name]) < len(rows):
                reader.facts.setdefault(name, {})["dropped as shared"] = len(rows) - len(kept[name])
        asked = {name: kept[label] for label, name in zip(held_out, found.benchmarks, strict=True)}
        left: dict[str, Any] = {name: kept[name] for name in TRAINING}
        found = replace(found, benchmarks=asked, **left)
        now = {name: kept[name] for name in now}
    elif data.shared == "refuse" and trained:
        name, shared = next(iter(trained.items()))
        role, rows = next(iter(shared.items()))
        raise ValueError(
            f"{name!r} has {len(rows)} prompts that the model was trained on before as {role!r}, "
            f"e.g. {rows[0].question[:60]!r}: give others, or set data.shared=drop"
        )
    if data.shared != "keep":
        check_disjoint({**now, **others}, MAY_SHARE)
    return found


def _pool(data: Data, wanted: Set[str], reader: SourceReader) -> dict[str, list[Row]]:
    """Divide the pool of harmful rows, also where only some shares of it are wanted.

    The others are those of other stages: what this one trains on must not be in them.
    """
    held_out = "harm" in wanted
    own = {"defense": data.defense, "calibration": data.calibration, "test": data.harm_test}
    pool: dict[str, list[Row]] = {role: [] for role in SHARES}
    if data.harmful:
        pool = _divide(
            reader.rows("harmful", data.harmful, Harmful),
            [role for role in SHARES if not own.get(role)],
        )
        reader.facts["harmful"]["divided"] = {role: len(rows) for role, rows in pool.items()}
    elif "attack" in wanted or (held_out and not (data.harm_test and data.split == "test")):
        _require(data, "harmful")
    for role, source in own.items():
        if source and (held_out if role == "test" else role in wanted):
            pool[role] = reader.rows(
                "harm_test" if role == "test" else role,
                source,
                Prompts if role == "test" else Harmful,
            )
    return pool


def _from_sources(
    data: Data, wanted: Set[str], reader: SourceReader, pool: Mapping[str, list[Row]]
) -> Roles:
    """Read the rows of all roles but the user's task."""
    held_out = "harm" in wanted
    alignment = (
        reader.rows("alignment", _require(data, "alignment"), Refusals)
        if "alignment" in wanted
        else []
    )
    benchmarks = {}
    if held_out:
        # a prompt counts once
        benchmarks["harm"] = list({identity(row): row for row in pool[data.split]}.values())
        if not benchmarks["harm"]:
            raise ValueError(
                "no held-out prompt is left for the harmful score: "
                "give more rows in data.harmful, or data.harm_test"
            )
    if data.lookalike and "lookalike" in wanted:
        benchmarks["lookalike"] = reader.rows("lookalike", data.lookalike, Prompts)
    defense, attack, calibration = (
        pool[role] if role in wanted else [] for role in ("defense", "attack", "calibration")
    )
    requests = (
        reader.rows("requests", data.requests, Refusals)
        if data.requests and "requests" in wanted
        else []
    )
    return Roles(alignment, defense, attack, calibration, requests=requests, benchmarks=benchmarks)


def _task(
    data: Data, benchmark: Benchmark | None, wanted: Set[str], reader: SourceReader
) -> tuple[list[Row], list[Row], Benchmark]:
    """Read the user's rows, the held-out ones, and what they are scored by."""
    sources = {"task": "task", "test": data.split}
    read = {
        role: reader.records(_require(data, sources[role]))
        for role in ("task", "test")
        if role in wanted
    }
    named = [benchmark] if benchmark else [recognize(records) for records in read.values()]
    scorer = next((found for found in named if found), Answers())
    made = {
        role: reader.task_rows(sources[role], _require(data, sources[role]), records, scorer)
        for role, records in read.items()
    }
    return made.get("task", []), made.get("test", []), scorer


def _require(data: Data, name: str) -> Source:
    source: Source | None = getattr(data, name)
    if source is None:
        raise ValueError(
            f"data.{name} is missing: give a file, a `datasets` folder or a data set of the hub, "
            "or data.world for the lab's"
        )
    return source


def _first(rows: Sequence[Row], count: int) -> list[Row]:
    """Take so many of the rows, in the order of their prompts by hash: fewer are among more."""
    if count > len(rows):
        raise ValueError(
            f"data.defense_rows={count}: the defender has {len(rows)} harmful rows; "
            "give at most so many, or null for all"
        )
    place = {prompt: i for i, prompt in enumerate(_shuffle(rows))}
    return sorted(rows, key=lambda row: place[identity(row)])[:count]


def _held_out(rows: Sequence[Row]) -> frozenset[str]:
    """Take a fifth of the prompts, by their hash, and at least one."""
    prompts = _shuffle(rows)
    return frozenset(prompts[: max(1, len(prompts) // 5)])


def _shuffle(rows: Sequence[Row]) -> list[str]:
    """Put the prompts in an order that is their own, whichever rows stand beside them."""
    return sorted(
        {identity(row) for row in rows}, key=lambda prompt: hashlib.sha256(prompt.encode()).digest()
    )


def _divide(rows: Sequence[Row], roles: Sequence[str]) -> dict[str, list[Row]]:
    """Divide the rows among the roles, in the shares of SHARES.

    The attacker has those of roles that are not asked for, and no other share moves.
    """
    prompts = _shuffle(rows)
    where: dict[str, str] = {}
    start = 0
    for role, share in SHARES.items():
        if role != "attack":
            end = start + max(1, round(share * len(prompts)))
            where |= dict.fromkeys(prompts[start:end], role if role in roles else "attack")
            start = end
    divided: dict[str, list[Row]] = {role: [] for role in SHARES}
    for row in rows:
        divided[where.get(identity(row), "attack")].append(row)
    return divided
