"""The plan of an evaluation of a model behind a server, which has no files here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from titer.config import hash_of, read_yaml, validate
from titer.data.rows import Row
from titer.methods import Attack
from titer.registry import describe
from titer.runs.contender import OF_SERVER
from titer.runs.needed import needed_roles
from titer.runs.plan import Plan
from titer.runs.recipe import Recipe, load_single
from titer.runs.recipe import digest as recipe_digest
from titer.runs.roles import roles
from titer.runs.stages.judge import JudgeStage
from titer.runs.stages.served import AskServerStage, ServedModel
from titer.runs.stages.stage import ModelStage
from titer.scoring.endpoint import GREEDY, Endpoint
from titer.version import __version__
from titer.weights import stacks
from titer.weights.folders import Files
from titer.weights.settings import Checkpoint


@dataclass(frozen=True, kw_only=True)
class ServedPlan(Plan):
    """A plan whose only stage is the model behind a server.

    It has no harm margin, and no answers that are begun for the model: a server gives neither.
    """

    endpoint: Endpoint

    @staticmethod
    def of(recipe: Recipe, endpoint: Endpoint) -> ServedPlan:
        """Find the rows of an evaluation. Raises where the server cannot be asked as the recipe says."""
        if recipe.template != "chat":
            raise ValueError(
                f"template={recipe.template!r}: a server puts prompts into the model's own chat "
                "template: set template=chat"
            )
        endpoint.body([], recipe.max_new_tokens)  # raises where it lacks the model's name
        found = roles(recipe.data, recipe.benchmark, needed_roles(recipe, {"evaluate"}))
        nowhere = Files(endpoint.model, Path(), None)
        return ServedPlan(recipe, found, {}, nowhere, {}, endpoint=endpoint)

    @property
    def named(self) -> dict[str, Any]:
        told = describe(self.endpoint)
        return {"name": self.endpoint.model, "server": told}

    @cached_property
    def identity(self) -> str:
        told = [recipe_digest(self.recipe), self.roles.digests, describe(self.endpoint)]
        return hash_of([*told, __version__])

    def given(self, kind: str, checkpoint: Checkpoint) -> ModelStage:
        return self.once(ServedModel(kind, None, None, self.asking, checkpoint, self.endpoint))

    def score(self, stage: ModelStage, attack: Attack | None = None) -> JudgeStage:
        recipe = self.recipe
        asked = self.benchmarks_of(attack or recipe.attack)
        answers = AskServerStage(
            stage,
            asked,
            recipe.max_new_tokens,
            self.endpoint.at_once,
            self.engine,
            self.endpoint,
            recipe.system,
        )
        return JudgeStage(answers, None, self.judge, self.roles.scorer, self.roles.facts)

    def benchmarks_of(self, attack: Attack) -> dict[str, list[Row]]:
        found = super().benchmarks_of(attack)
        return {name: rows for name, rows in found.items() if name != "prefill"}

    @property
    def engine(self) -> str:
        return "a server"

    def provenance(self) -> dict[str, Any]:
        return super().provenance() | {"decoding": dict(GREEDY) | self.endpoint.more}


def plan_evaluation(
    recipe: str, model: str, settings: Sequence[str] = (), server: Any = None
) -> Plan:
    """Plan the evaluation of a model by the recipe of a name: of one here, a stack, or behind a server.

    With a `server` the model is a name there, and settings that begin with OF_SERVER are its own.
    """
    if server is None and stacks.is_stack(model):
        model = str(stacks.merge_stack(model))
    of_server = [text for text in settings if server is not None and text.startswith(OF_SERVER)]
    others = [text for text in settings if text not in of_server]
    wanted = load_single(recipe, "evaluate", model, None, others)
    if server is None:
        return Plan.prepare(wanted, {"evaluate"})
    return plan_of(wanted, server, of_server)


def plan_of(recipe: Recipe, server: Any, settings: Sequence[str] = ()) -> ServedPlan:
    """Plan the evaluation of the recipe's model, which is a name that a server knows.

    `settings` change fields of the server, as "server.timeout=60".
    """
    fields = {"url": server} if isinstance(server, str) else dict(server)
    fields.setdefault("model", recipe.model.path)
    for setting in settings:
        name, equals, text = setting.removeprefix(OF_SERVER).partition("=")
        if not equals:
            raise ValueError(f"--set {setting!r}: give server.FIELD=VALUE")
        fields[name] = read_yaml(text, f"--set {setting!r}")
    return ServedPlan.of(recipe, validate(Endpoint, fields))
