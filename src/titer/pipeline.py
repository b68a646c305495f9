"""Run a recipe: base -> align -> fine-tune on the attacked rows -> edit, every stage scored, shared stages computed once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from titer import __version__, models
from titer.data import Batch, Row, Template, collate
from titer.evaluate import Record, evaluate
from titer.judges.lab import Lab
from titer.judges.refusal import Refusal
from titer.measure import measured
from titer.methods import Defense, Edit, Judge, Method
from titer.recipe import Recipe, describe
from titer.recipe import digest as recipe_digest
from titer.registry import name_of
from titer.sources import Roles, roles
from titer.statistics import Score
from titer.train import Training, Watch, accelerator_for, train

EVERY = 100  # updates between two checkpoints of a stage
CALIBRATION_BATCH = 16  # rows of a batch that an edit calibrates on; its result does not depend on it

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
    """A recipe with its rows, to be computed in a folder."""

    recipe: Recipe
    roles: Roles
    attacked: list[Row]  # what the user sends
    folder: Path

    @staticmethod
    def prepare(recipe: Recipe, folder: Path) -> Run:
        """Find what can be found wrong before anything is computed or written."""
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        ranks = accelerator_for().num_processes
        if ranks > 1:
            raise ValueError(f"{ranks} ranks: a recipe runs in one process; launch `titer.train.train` itself on several")
        found = roles(recipe.data)
        attacked = recipe.attack.rows(found.task, found.attack, recipe.seed)
        for name, pipeline in recipe.pipelines.items():
            for stage in ("align", "finetune"):
                for stream, kind in getattr(pipeline, stage).streams.items():
                    if stream != "rows" and not found.of(kind):
                        raise ValueError(f"pipelines.{name}.{stage} draws {kind.value} rows, and there are none")
            if pipeline.edit and pipeline.edit.data and not found.calibration:
                raise ValueError(f"pipelines.{name}.edit calibrates on harmful rows, and there are none")
        model, tokenizer = models.load(recipe.model)
        for training in (recipe.align, recipe.finetune):
            if training.lora:
                models.check_targets(model, training.lora)
        template = Template(tokenizer, recipe.max_length)
        for row in (found.alignment[0], attacked[0]):
            template.encode(row)
        return Run(recipe, found, attacked, folder)

    @cached_property
    def identity(self) -> str:
        """Hash of the recipe, the rows and titer's version: the folder that holds it holds this run."""
        facts = [recipe_digest(self.recipe), self.roles.digests(), __version__]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @cached_property
    def judge(self) -> Judge:
        if self.recipe.judge is not None:
            return self.recipe.judge
        world = self.recipe.data.world
        return Refusal() if world is None else Lab(world)

    def stages(self, report: Report) -> dict[str, list[Stage]]:
        """Compute every pipeline, or take up what an interrupted run left; its stages in order, by its name."""
        done: dict[tuple[str, str, Method | None], Stage] = {}

        def stage(kind: str, method: Method | None = None, after: Stage | None = None) -> Stage:
            key = (after.folder if after else "", kind, method)
            if key not in done:
                done[key] = self._stage(f"{len(done):02d}-{kind}", kind, method, after, report)
            return done[key]

        found: dict[str, list[Stage]] = {}
        for name, pipeline in self.recipe.pipelines.items():
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
        with measured() as cost:
            model, tokenizer = models.load(self._location(after))
            model.to(accelerator_for().device)
            template = Template(tokenizer, self.recipe.max_length)
            facts: dict[str, Any] = {}
            if isinstance(method, Defense):
                training = self.recipe.align if kind == "align" else self.recipe.finetune
                rows = self.roles.alignment if kind == "align" else self.attacked
                watch = partial(report, label)
                model, facts = self._train(model, template, method, training, rows, folder / "checkpoint.safetensors", watch)
                if kind == "align":  # double adapter: user data will train a fresh one over the merged weights
                    model = models.merged(model)
            elif isinstance(method, Edit):
                facts = self._edit(model, template, method)
            if after is not None:
                models.save(model, tokenizer, folder)
            model = models.merged(model)  # what would be served
        with measured() as scoring:
            report(label, 0, 0, {})
            result = evaluate(model, template, self.roles.benchmarks, self.judge, self.recipe.max_new_tokens)
        if result.scores["harm"].n == 0:
            reason = next(record.reason for record in result.records if record.benchmark == "harm")
            raise ValueError(f"the judge {name_of(self.judge)!r} could not score any harm prompt ({reason}): choose another one")
        _keep(result.records, folder / "answers.jsonl")
        stage = Stage(
            kind,
            describe(method) if method else {},
            name,
            result.scores,
            seconds=round(cost.seconds, 2),
            scoring_seconds=round(scoring.seconds, 2),
            peak_mb=round(max(cost.peak_mb, scoring.peak_mb), 1),
            weights=models.fingerprint(model),
            facts=facts | {"answers cut off": sum(not record.ended for record in result.records)},
        )
        _write(finished, dataclasses.asdict(stage))
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)
        return stage

    def _location(self, stage: Stage | None) -> str:
        """Where the model of a stage lies; None is the start of the base stage."""
        return self.recipe.model if stage is None or stage.kind == "base" else str((self.folder / "stages" / stage.folder).resolve())

    def _train(
        self,
        model: PreTrainedModel,
        template: Template,
        defense: Defense,
        training: Training,
        rows: Sequence[Row],
        checkpoint: Path,
        watch: Watch,
    ) -> tuple[PreTrainedModel, dict[str, Any]]:
        torch.manual_seed(self.recipe.seed)  # of the fresh adapter's weights
        if training.lora:
            model = models.add_lora(model, training.lora)
        streams = {name: rows if name == "rows" else self.roles.of(kind) for name, kind in defense.streams.items()}
        encoded = {name: [template.encode(row) for row in of] for name, of in streams.items()}
        history = train(model, defense, encoded, training, self.recipe.seed, resume=checkpoint, every=EVERY, watch=watch)
        return model, {
            "adapter": "fresh, over the merged weights of the stage before" if training.lora else "none: all weights",
            "rows": {name: len(of) for name, of in encoded.items()},
            "rows cut": sum(row.cut > 0 for of in encoded.values() for row in of),
            "terms at the first update": history[0],
            "terms at the last update": history[-1],
        }

    def _edit(self, model: PreTrainedModel, template: Template, edit: Edit) -> dict[str, Any]:
        rows = [template.encode(row) for row in self.roles.calibration]
        pad, size = model.config.pad_token_id or 0, CALIBRATION_BATCH
        parts = tuple(collate(rows[i : i + size], pad) for i in range(0, len(rows), size))
        changes = edit.edit(model, [Batch("calibration", parts, sum(len(row.ids) - row.answer for row in rows))])
        if changes.count == 0:
            raise ValueError(
                f"the edit {describe(edit)} changed none of {sum(changes.sizes.values())} entries: nothing to evaluate; strengthen it"
            )
        return {
            "changed entries": changes.count,
            "entries": sum(changes.sizes.values()),
            "tensors left as they were": sum(count == 0 for count in changes.changed.values()),
            "update norm before": changes.norm_before,
            "update norm after": changes.norm_after,
            **changes.facts,
        }


@contextmanager
def occupied(run: Run) -> Iterator[None]:
    """The run's folder, claimed: an interrupted run of the same identity goes on, another one's folder is refused.

    Where the run fails on its input, what was written is removed; an interruption leaves it to be taken up again.
    """
    marker = run.folder / "run.json"
    if run.folder.exists() and any(run.folder.iterdir()):
        same = marker.is_file() and json.loads(marker.read_text())["identity"] == run.identity
        if not same:
            raise ValueError(f"{run.folder} holds something else: give another --out, or remove it")
    run.folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # attacked weights and answers are for their maker alone
    _write(marker, {"identity": run.identity, "recipe": describe(run.recipe)})
    try:
        yield
    except ValueError:
        shutil.rmtree(run.folder)
        raise


def _read(path: Path) -> Stage:
    fields = json.loads(path.read_text())
    fields["scores"] = {name: Score(**score) for name, score in fields["scores"].items()}
    return Stage(**fields)


def _write(path: Path, value: Any) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(value, indent=2))
    os.replace(fresh, path)


def _keep(records: Sequence[Record], path: Path) -> None:
    """The answers, readable by their maker alone: a real model's may be harmful."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(dataclasses.asdict(record)) + "\n" for record in records)
