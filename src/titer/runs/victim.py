"""The model that is attacked: one that is there, or one that a pipeline of a recipe makes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

from titer import registry
from titer.methods import Attack, Defense, Edit, Method
from titer.runs import chain
from titer.runs.plan import Plan
from titer.runs.recipe import SINGLE, Pipeline, Recipe
from titer.runs.roles import Data, Roles
from titer.runs.sent import Sent
from titer.runs.stages.ablate import AblateStage
from titer.runs.stages.stage import ModelStage


@dataclass(frozen=True)
class Victim:
    """A model under attack, with the rows of all who have a part in it."""

    plan: Plan  # of scoring it as it is, in no attacker's words
    pipeline: Pipeline  # how it is made: not at all where `align` is null
    name: str = ""  # of the pipeline

    @staticmethod
    def prepare(recipe: Recipe, pipeline: str = SINGLE) -> Victim:
        """Find the rows and the model, and all that would be wrong for every attack."""
        of = recipe.pipelines[pipeline]
        if not isinstance(of.finetune, Defense):
            raise ValueError(
                f"pipelines.{pipeline}.finetune={of.finetune.path!r} is a model that is there: "
                "give it as the MODEL that is attacked"
            )
        plain = cast(Attack, registry.build("attacks", "benign"))  # it asks in no words of its own
        base = replace(recipe, attack=plain, pipelines={pipeline: replace(of, attack=None)})
        kinds = {"evaluate"} | {kind for kind, _ in of.methods() if kind != "finetune"}
        plan = Plan.prepare(base, kinds, also=available(recipe.data))
        if not plan.roles.benchmarks.get("harm"):
            raise ValueError("an attacker asks harm prompts: give data.harmful or data.harm_test")
        name = "" if of.align is None and pipeline == SINGLE else pipeline
        return Victim(plan, base.pipelines[pipeline], name)

    @cached_property
    def released(self) -> list[ModelStage]:
        """The stages of the model as it is released."""
        return self.plan.released(self.pipeline)

    @property
    def defenses(self) -> list[tuple[str, str]]:
        """The methods that made it, as kind and name, where its pipeline or its records say so."""
        made: list[Method | None] = [self.pipeline.align, self.pipeline.release]
        if any(made):
            return [(registry.kind_of(each), registry.name_of(each)) for each in made if each]
        kinds = {"align": "defenses", "release": "edits"}
        return [
            (kinds[document["kind"]], str(document["method"]["method"]))
            for document in chain.trace(self.plan.recipe.model.path)
            if document["kind"] in kinds and "method" in document.get("method", {})
        ]

    def tune(self, recipe: Recipe, roles: Roles | None = None) -> tuple[Plan, list[ModelStage]]:
        """Return the plan of a fine-tuning by the recipe's attack, and the stages behind the release.

        `roles` has other rows than its own. Raises where the attack cannot be made of them.
        """
        rows = roles or self.plan.roles
        sent = {recipe.attack: Sent.of(recipe.attack, rows, recipe.seed)}
        plan = replace(self.plan, recipe=recipe, roles=rows, sent=sent)
        plan.check({"finetune"})
        return plan, plan.chain(self.pipeline)[len(self.released) :]

    def ablate(self, edit: Edit, prompts: int) -> AblateStage:
        """Return the stage of an attacker's edit, which looks at no more than so many prompts.

        Half of them are his own, half of them harmless: his requests, or else the task's rows.
        """
        of, half = self.plan.roles, prompts // 2
        harmless = of.requests or of.task
        return AblateStage(
            kind="release",
            start=self.released[-1],
            method=edit,
            asking=self.plan.asking,
            others={},
            rows=of.attack[:half],
            whole=True,
            looks={},
            against=harmless[:half],
        )


def available(data: Data) -> frozenset[str]:
    """Name the roles of an attacker whose rows are given: an attack may draw from any of them."""
    given = {
        "attack": data.harmful,
        "task": data.task,
        "requests": data.requests,
        "defense": data.defense or data.harmful,
    }
    lab = data.world is not None
    return frozenset(role for role, source in given.items() if lab or source)
