"""Run a recipe: base -> align -> fine-tune on the attacked rows -> edit, every stage scored, shared stages computed once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from titer import adapters, models
from titer.evaluate import Record
from titer.measure import measured
from titer.methods import CUT, Defense, Edit, Method
from titer.recipe import describe
from titer.registry import name_of
from titer.stages import Setting
from titer.statistics import Score

Report = Callable[[str, int, int, Mapping[str, float]], None]  # (stage, update, of how many or 0 when computed, terms by name)


@dataclass(frozen=True)
class Stage:
    """A finished stage. `folder` holds its model, unless it is the base, and every answer it gave."""

    kind: str  # base, align, finetune or edit
    method: dict[str, Any]  # as a recipe states it; empty for the base
    folder: str
    scores: dict[str, Score]  # by benchmark
    seconds: float  # of computing, without the scoring
    scoring_seconds: float
    peak_mb: float  # most memory seen: resident, or of the GPU where there is one
    weights: str  # SHA-256 of the merged model
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.kind} {self.method['method']}" if self.method else self.kind


@dataclass(frozen=True)
class Run:
    """All pipelines of a recipe, to be computed in a folder."""

    setting: Setting
    folder: Path

    def stages(self, report: Report) -> dict[str, list[Stage]]:
        """Compute every pipeline, or take up what an interrupted run left; its stages in order, by its name."""
        done: dict[tuple[str, str, Method | None], Stage] = {}

        def stage(kind: str, method: Method | None = None, after: Stage | None = None) -> Stage:
            key = (after.folder if after else "", kind, method)
            if key not in done:
                done[key] = self._stage(f"{len(done):02d}-{kind}", kind, method, after, report)
            return done[key]

        found: dict[str, list[Stage]] = {}
        for name, pipeline in self.setting.recipe.pipelines.items():
            base = stage("base")
            aligned = stage("align", pipeline.align, base)
            tuned = stage("finetune", pipeline.finetune, aligned)
            found[name] = [base, aligned, tuned]
            if pipeline.edit is not None:
                found[name].append(stage("edit", pipeline.edit, tuned))
        return found

    def _stage(self, name: str, kind: str, method: Method | None, after: Stage | None, report: Report) -> Stage:
        folder = self.folder / "stages" / name
        finished = folder / "stage.json"
        if finished.is_file():
            return _read(finished)
        folder.mkdir(parents=True, exist_ok=True)
        label = f"{kind} {name_of(method)}" if method else kind
        setting, start = self.setting, self._checkpoint(after)
        with measured() as cost:
            model, template = setting.opened(start)
            facts: dict[str, Any] = {}
            if isinstance(method, Defense):
                resume = folder / "checkpoint.safetensors"
                model, facts = setting.trained(model, template, kind, method, resume, partial(report, label))
                if kind == "align":  # double adapter: user data will train a fresh one over the merged weights
                    model = adapters.merged(model)
            elif isinstance(method, Edit):
                facts = setting.edited(model, template, method)
            if after is not None:
                files = models.located(start)
                models.save(model, template.tokenizer, folder, (files.base or files) if adapters.carried(model) else None)
            model = adapters.merged(model)  # what would be served
        said: list[str] = []
        with measured() as scoring:
            report(label, 0, 0, {})
            result = setting.scored(model, template, said.append)
        answers = keep(result.records, folder / "answers.jsonl")
        stage = Stage(
            kind,
            describe(method) if method else {},
            name,
            result.scores,
            seconds=round(cost.seconds, 2),
            scoring_seconds=round(scoring.seconds, 2),
            peak_mb=round(max(cost.peak_mb, scoring.peak_mb), 1),
            weights=models.fingerprint(model),
            facts=facts | answered(result.records, answers, said),
        )
        write(finished, dataclasses.asdict(stage))
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)
        return stage

    def _checkpoint(self, stage: Stage | None) -> models.Checkpoint:
        """The model after a stage; None is the start of the base stage."""
        given = self.setting.recipe.model
        if stage is None or stage.kind == "base":
            return given
        path = str((self.folder / "stages" / stage.folder).resolve())
        return dataclasses.replace(given, path=path, revision=None, base=None)


@contextmanager
def occupied(folder: Path, setting: Setting, what: str = "run") -> Iterator[None]:
    """The folder of what is computed, claimed: an interrupted one of the same identity goes on, another one's folder is refused.

    Where the run fails on its input, what was written is removed; an interruption leaves it to be taken up again.
    """
    marker, identity = folder / "run.json", f"{what} {setting.identity}"
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        same = marker.is_file() and json.loads(marker.read_text()).get("identity") == identity
        if not same:
            raise ValueError(f"{folder} holds something else: give another --out, or remove it")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # attacked weights and answers are for their maker alone
    write(marker, {"identity": identity, "recipe": describe(setting.recipe)})
    try:
        yield
    except ValueError:
        shutil.rmtree(folder)
        raise


def _read(path: Path) -> Stage:
    fields = json.loads(path.read_text())
    fields["scores"] = {name: Score(**score) for name, score in fields["scores"].items()}
    return Stage(**fields)


def write(path: Path, value: Any) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(value, indent=2))
    os.replace(fresh, path)


def keep(records: Sequence[Record], path: Path) -> str:
    """Write the answers, readable by their maker alone, since a real model's may be harmful; their SHA-256."""
    text = "".join(json.dumps(dataclasses.asdict(record)) + "\n" for record in records).encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)
    return hashlib.sha256(text).hexdigest()


def answered(records: Sequence[Record], sha256: str, notes: Sequence[str]) -> dict[str, Any]:
    """What is to be known of the answers that a stage was scored by."""
    cut = Counter(record.benchmark for record in records if not record.ended)
    unread = Counter(record.benchmark for record in records if CUT in record.reason)
    facts = {"answers cut off": cut.total(), "cut off by benchmark": dict(cut), "judge input cut": dict(unread), "answers sha256": sha256}
    return facts | ({"notes": list(notes)} if notes else {})
