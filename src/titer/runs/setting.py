"""A recipe with its rows: what every stage of a run has in common, and all that determines what it comes to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

import torch
from transformers import PreTrainedModel

from titer import __version__
from titer.weights import adapters, checkpoints, folders
from titer.data.audit import audit
from titer.data.rows import Row, digest
from titer.judges.lab import Lab
from titer.judges.refusal import Refusal
from titer.methods import Defense, Edit, Judge, Kind, Label, Method, Retraining, TensorEdit
from titer.weights.settings import Checkpoint
from titer.runs.keys import code_key
from titer.runs.recipe import Pipeline, Recipe, describe
from titer.runs.recipe import digest as recipe_digest
from titer.registry import name_of
from titer.runs.roles import Roles, TRAINING, roles
from titer.weights.tensors import open_tensors
from titer.data.template import Template
from titer.training.train import accelerator_for

TRAINED = ("align", "finetune")
DEFENDERS = {Kind.HARMFUL, Kind.PAIRS, Kind.HELD_OUT}  # rows that the defender's own harmful ones are needed for
ALL = (*TRAINED, "release", "edit", "evaluate")  # kinds of stages


@dataclass(frozen=True)
class Setting:
    """A recipe with its rows: what all stages of a run have in common."""

    recipe: Recipe
    roles: Roles
    attacked: list[Row]  # what the user sends
    start: folders.Files  # the model that it begins with
    references: Mapping[str, Checkpoint]  # by name, the other models that an edit alone was given; a run makes its own

    @staticmethod
    def read(recipe: Recipe, kinds: Collection[str] = ALL, references: Mapping[str, Checkpoint] | None = None) -> Setting:
        """Find the rows and the model of stages of these kinds, which is enough to tell one run from another.

        `references` are the other models that an edit alone asks for, by name.
        """
        start = folders.locate(recipe.model)
        found = roles(recipe.data, recipe.benchmark, wanted(recipe, kinds))
        own = found.attack if recipe.attack.wants_harmful else found.requests
        attacked = recipe.attack.rows(found.task, own, recipe.seed) if "finetune" in kinds else []
        return Setting(recipe, found, attacked, start, references or {})

    @staticmethod
    def prepare(recipe: Recipe, kinds: Collection[str] = ALL, references: Mapping[str, Checkpoint] | None = None) -> Setting:
        """The same, when all has been found that can be found wrong before anything is computed or written."""
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        accelerator = accelerator_for()
        if accelerator.num_processes > 1:
            raise ValueError(
                f"{accelerator.num_processes} ranks: a recipe runs in one process; launch `titer.train.train` itself on several"
            )
        checkpoints.check_dtype(recipe.model.dtype, accelerator.device)
        setting = Setting.read(recipe, kinds, references)
        template = Template(checkpoints.tokenizer(recipe.model, setting.start), recipe.max_length, recipe.template, recipe.system)
        for kind in TRAINED:
            training = recipe.training(kind) if kind in kinds else None
            if training and recipe.model.dtype == "float16":
                raise ValueError("dtype='float16': its gradients vanish without loss scaling; train in bfloat16 or float32")
            if training and training.lora:
                adapters.check_targets(checkpoints.skeleton(recipe.model), training.lora)
        setting._check(template, kinds)
        return setting

    def _check(self, template: Template, kinds: Collection[str]) -> None:
        """Raise where a stage has no rows to draw from, a row does not fit, or the model has not what a release edits."""
        pipelines = self.recipe.pipelines
        used = {(kind, getattr(pipeline, kind)): name for name, pipeline in pipelines.items() for kind in TRAINED if kind in kinds}
        for (kind, defense), name in used.items():
            for stream, rows in self.streams(kind, defense).items():
                if not rows:
                    raise ValueError(
                        f"pipelines.{name}.{kind} draws {defense.needs.streams[stream].value} rows, and there are none: give data.defense"
                    )
                if defense.needs.streams[stream] is Kind.PAIRS and not any(row.other for row in rows):
                    raise ValueError(
                        f"pipelines.{name}.{kind} needs refusals and harmful answers of the same prompts, and the rows it trains on share "
                        "none with the defender's: give data.defense with prompts of data.alignment"
                    )
                template.encode_all(rows, f"{kind}, stream {stream!r}")
        for plain, asked in zip(self.roles.benchmarks.get("harm", []), self.benchmarks.get("asked", []), strict=False):
            unknown = template.tokenizer.unk_token_id
            if unknown in template.prompt_ids(asked) and unknown not in template.prompt_ids(plain):
                raise ValueError(f"the tokenizer has no tokens for the attacker's words in {asked.question[:60]!r}: give others in attack")
        looks = "finetune" in kinds and self.recipe.probes
        if looks and not (self.roles.alignment and any(row.response for row in self.roles.benchmarks.get("harm", []))):
            raise ValueError(f"probes={looks} look at harm prompts with known answers and at alignment rows: give both, or 0")
        for pipeline in pipelines.values():
            if "release" in kinds and isinstance(pipeline.release, TensorEdit):
                pipeline.release.select({name: tensor.shape for name, tensor in open_tensors(self.start.base or self.start).items()})
        for edit in (edit for pipeline in pipelines.values() for edit in pipeline.edits if "edit" in kinds and edit.needs.rows):
            if not self.calibration(edit):
                role = "calibration" if edit.needs.rows is Kind.HARMFUL else "alignment"
                raise ValueError(f"the edit {name_of(edit)!r} needs {edit.needs.rows} rows, and there are none: give data.{role}")
            template.encode_all(self.calibration(edit), "calibration")

    def with_edit(self, edit: Edit) -> Setting:
        """The same setting for another edit of the same rows."""
        return replace(self, recipe=replace(self.recipe, pipelines={"alone": Pipeline(edit=edit)}))

    @cached_property
    def identity(self) -> str:
        """Hash of the recipe, the rows, the starting model and titer's version: what determines a result."""
        facts = [recipe_digest(self.recipe), self.roles.digests(), self.start_digest, __version__]
        facts += [[name, folders.digest(folders.locate(of))] for name, of in sorted(self.references.items())]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @cached_property
    def start_digest(self) -> str:
        """Of the bytes of the model that it begins with, and the dtype that they are read in."""
        return hashlib.sha256(f"{folders.digest(self.start)} {self.recipe.model.dtype}".encode()).hexdigest()

    def made_of(self, kind: str, method: Method) -> dict[str, Any]:
        """All that determines what a stage makes of the model before it."""
        recipe, training = self.recipe, self.recipe.training(kind)
        if isinstance(method, Retraining):
            training = method.training(recipe.finetune)
        streams = self.streams(kind, method) if isinstance(method, Defense) else {"calibration": self.calibration(method)}
        return {
            "method": describe(method),
            "training": describe(training) if training else None,
            "rows": {name: digest(rows) for name, rows in streams.items()},
            "seed": recipe.seed if isinstance(method, Defense) else None,
            "probes": recipe.probes if kind in ("finetune", "edit") else 0,
            "code": code_key(Setting, method),
            **self._asked,
        }

    def scored_of(self) -> dict[str, Any]:
        """All that determines the scores of a model."""
        recipe, roles = self.recipe, self.roles
        return {
            "judge": describe(self.judge),
            "benchmark": describe(roles.scorer),
            "rows": {name: digest(rows) for name, rows in self.benchmarks.items()},
            "answers": [recipe.max_new_tokens, recipe.answers_at_once],
            "code": code_key(Setting, self.judge, roles.scorer),
            **self._asked,
        }

    @cached_property
    def _asked(self) -> dict[str, Any]:
        """How models are asked and computed, in training and in scoring."""
        recipe = self.recipe
        return {
            "template": [recipe.template, recipe.system, recipe.max_length],
            "threads": torch.get_num_threads(),
            "device": accelerator_for().device.type,
            "versions": {name: version(name) for name in ("torch", "transformers", "peft", "tokenizers", "scipy")},
        }

    @cached_property
    def overlaps(self) -> list[dict[str, Any]]:
        """What the audit found in the roles: counts, and hashes of examples."""
        held_out = {f"{self.recipe.data.split} {name}": rows for name, rows in self.roles.benchmarks.items()}
        return [
            {
                "roles": list(found.roles),
                "prompts": list(found.prompts),
                "exact": found.exact,
                "near": list(found.near),
                "examples": [{"hashes": list(example.hashes), "jaccard": round(example.jaccard, 3)} for example in found.examples],
            }
            for found in audit({name: getattr(self.roles, name) for name in TRAINING} | held_out)
        ]

    @cached_property
    def judge(self) -> Judge:
        if self.recipe.judge is not None:
            return self.recipe.judge
        world = self.recipe.data.world
        return Refusal() if world is None else Lab(world)

    @cached_property
    def benchmarks(self) -> dict[str, list[Row]]:
        """The held-out prompts, with `asked` those of `harm` in the attacker's words where it has any."""
        harm = self.roles.benchmarks.get("harm", [])
        asked = [self.recipe.attack.phrase(row) for row in harm]
        return self.roles.benchmarks | ({"asked": asked} if asked != harm else {})

    @cached_property
    def harmful_rows(self) -> int:
        """How many of the rows that the user sends are harmful."""
        pool = set(self.roles.attack)
        return sum(row in pool for row in self.attacked)

    @cached_property
    def attack_rows(self) -> int:
        """How many of them are the attacker's, harmful or not."""
        pool = set(self.roles.task)
        return sum(row not in pool for row in self.attacked)

    def streams(self, kind: str, defense: Defense) -> dict[str, list[Row]]:
        """The rows of every stream that a defense draws from in a stage."""
        rows = {"finetune": self.attacked, "unsafe": self.roles.defense}.get(kind, self.roles.alignment)
        return self.roles.streams(defense.needs.streams, rows)

    def calibration(self, method: Method) -> list[Row]:
        """The rows that an edit sees. Raises where they are too few for it."""
        kind = method.needs.rows if isinstance(method, Edit) else None
        rows = {Kind.HARMFUL: self.roles.calibration, Kind.REFUSALS: self.refusals}[kind] if kind else []
        return method.rows(rows) if isinstance(method, Retraining) and rows else rows

    @cached_property
    def refusals(self) -> list[Row]:
        """The alignment rows whose answers refuse; where none is known to, all of them."""
        rows = self.roles.alignment
        judge = Refusal() if self.recipe.data.world is None else Lab(self.recipe.data.world)
        verdicts = judge.judge([row.prompt for row in rows], [row.response for row in rows])
        return [row for row, verdict in zip(rows, verdicts, strict=True) if verdict.label is Label.REFUSAL] or rows

    def opened(self, checkpoint: Checkpoint) -> tuple[PreTrainedModel, Template]:
        """A model on the best device there is, and how it is asked."""
        model, tokenizer = checkpoints.load(checkpoint, accelerator_for().device)
        return model, Template(tokenizer, self.recipe.max_length, self.recipe.template, self.recipe.system)


def wanted(recipe: Recipe, kinds: Collection[str]) -> frozenset[str]:
    """The roles whose rows stages of these kinds need: of a whole run all, of an evaluation alone those that are given."""
    data, found = recipe.data, set[str]()
    methods = [getattr(pipeline, kind) for pipeline in recipe.pipelines.values() for kind in TRAINED if kind in kinds]
    if "align" in kinds or any(Kind.REFUSALS in method.needs.streams.values() for method in methods):
        found |= {"alignment"}
    if any(DEFENDERS & set(method.needs.streams.values()) for method in methods):
        found |= {"defense"}
    if "finetune" in kinds:
        found |= {"task", "attack" if recipe.attack.wants_harmful else "requests"}
    edits = [edit for pipeline in recipe.pipelines.values() for edit in pipeline.edits if "edit" in kinds]
    found |= {"calibration" if edit.needs.rows is Kind.HARMFUL else "alignment" for edit in edits if edit.needs.rows}
    if "finetune" in kinds:  # the models that an edit asks for are trained here; else they are given
        references = {name for edit in edits for name in edit.needs.references}
        found |= ({"alignment"} if "safe" in references else set()) | ({"defense"} if "unsafe" in references else set())
    if "evaluate" in kinds:
        given = {"harm": data.harm_test or data.harmful, "test": getattr(data, data.split), "lookalike": data.lookalike}
        found |= given.keys() if len(kinds) > 1 or data.world is not None else {role for role, source in given.items() if source}
        if not found:
            raise ValueError("nothing to evaluate on: give at least one of data.harm_test, data.test, data.lookalike, or data.world")
    return frozenset(found)
