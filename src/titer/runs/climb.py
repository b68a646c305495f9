"""A ladder at a model: every rung is a plan of the stages that there are, over one store.

The model is one that is there, or one that a recipe's pipeline makes. A rung that cannot be planned
or computed is missing with the reason, and the others go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from titer import paths
from titer.errors import cause
from titer.findings import flags, rules
from titer.findings.dose import UNIT, dose_to_break
from titer.findings.ladder import (
    BAR,
    REACH,
    LadderRecord,
    RungCost,
    RungRecord,
    find_break,
    find_worst,
    word_for,
)
from titer.findings.records import SCHEMA, Record, check, plain
from titer.methods import Attack
from titer.progress import Progress
from titer.registry import describe
from titer.runs.documents import brief, environment
from titer.runs.execute import Executor, Run, with_inputs
from titer.runs.ladder import Ladder, Rung
from titer.runs.plan import Plan
from titer.runs.recipe import SINGLE, Recipe
from titer.runs.roles import Data
from titer.runs.stages.ablate import AblateStage
from titer.runs.stages.judge import JudgeStage
from titer.runs.stages.stage import ModelStage
from titer.runs.store import Store, write
from titer.runs.victim import Victim
from titer.scoring.curve import FACT
from titer.weights import checkpoints, language

NOT_ASKED = "not asked for (--rungs)"
DOSES = {"updates": "update", UNIT: UNIT}  # of a rung's record -> of a look


@dataclass(frozen=True)
class Ready:
    """A rung that can be computed: its stages."""

    rung: Rung
    plan: Plan
    made: Sequence[ModelStage]  # from the released model to the attacked one
    scoring: JudgeStage

    @property
    def attack(self) -> Attack:
        return self.plan.recipe.attack

    @property
    def figure(self) -> str:
        """The benchmark whose HS is the rung's harm."""
        if self.rung.begins:
            return "prefill"
        return "asked" if "asked" in self.scoring.answers.benchmarks else "harm"


@dataclass(frozen=True)
class Climb:
    """A ladder, and the plan of the model that it is set at."""

    ladder: Ladder
    victim: Victim
    wanted: Sequence[str] = field(default=())  # rungs; none named: all

    @staticmethod
    def prepare(
        ladder: Ladder, recipe: Recipe, pipeline: str = SINGLE, wanted: Sequence[str] = ()
    ) -> Climb:
        """Find the rows and the model, and all that would be wrong for every rung."""
        ladder.check(wanted)
        victim = Victim.prepare(recipe, pipeline)
        whole = ladder.for_model(victim.defenses)
        whole.check(wanted)
        return Climb(whole, victim, wanted)

    @property
    def plan(self) -> Plan:
        """The plan of scoring the model before any attack."""
        return self.victim.plan

    def ready(self, rung: Rung) -> Ready:
        """Return the stages of a rung. Raises where it cannot be computed."""
        data, roles = self.plan.recipe.data, self.plan.roles
        recipe = replace(self.plan.recipe, attack=self.attack(rung) or self.plan.recipe.attack)
        if rung.begins and not self.plan.benchmarks.get("prefill"):
            raise ValueError(
                "no answer can be begun: give harm prompts with answers, and prefill_prompts above 0"
            )
        if rung.access == "prompts":
            plan = replace(self.plan, recipe=recipe)
            plan.check({"evaluate"})  # the attacker's words
            return Ready(rung, plan, [], plan.score(self.victim.released[-1]))
        if self.victim.pipeline.edits and rung.access == "weights":
            raise ValueError(
                "who has the weights repairs nothing: this pipeline's edit is left out"
            )
        if rung.edit:
            edited = self.victim.ablate(rung.edit, rung.looks)
            return Ready(rung, self.plan, [edited], self.plan.score(edited))
        if rung.aware:
            roles = replace(roles, attack=rows_of_the_defense(data, roles.defense))
        recipe = replace(recipe, finetune=self.ladder.training(rung, recipe))
        plan, made = self.victim.tune(recipe, roles)
        return Ready(rung, plan, made, plan.score(made[-1]))

    def attack(self, rung: Rung) -> Attack | None:
        """Return a rung's attack, in words that the model knows."""
        data = self.plan.recipe.data
        return self.ladder.attack(rung, data.lab if data.world is not None else None)

    def run(self, folder: Path, store: Store, progress: Progress) -> dict[str, Any]:
        """Compute the rungs that are wanted, or take them from the store; write the record."""
        ready, why = self._plan_rungs(store)
        first = self.plan.score(self.victim.released[-1])
        order = [first, *(each.scoring for each in ready.values())]
        work = Executor(store, progress)
        work.expect(order)
        with store.needed(self.plan.identity, [stage.key for stage in with_inputs(order)]):
            shown = Run(self.plan, folder, store).show(
                "released", first, self.plan.recipe.attack, work
            )
            found: dict[str, tuple[Record, float]] = {}
            for name, each in ready.items():
                try:
                    found[name] = self._climb(each, folder, work)
                except (ValueError, torch.OutOfMemoryError) as error:
                    why[name] = cause(error)
        rungs = [
            self._record(rung, ready.get(rung.name), found.get(rung.name), shown, why)
            for rung in self.ladder.rungs
        ]
        return self._write(folder, shown, rungs)

    def _plan_rungs(self, store: Store) -> tuple[dict[str, Ready], dict[str, str]]:
        """Return the rungs that are to be shown, and why each other one is missing."""
        ready, why = dict[str, Ready](), dict[str, str]()
        for rung in self.ladder.rungs:
            try:
                each = self.ready(rung)
            except ValueError as error:
                why[rung.name] = cause(error)
                continue
            asked = not self.wanted or rung.name in self.wanted
            if asked or store.entry(each.scoring.key) is not None:
                ready[rung.name] = each
            else:
                why[rung.name] = NOT_ASKED
        return ready, why

    def _climb(self, each: Ready, folder: Path, work: Executor) -> tuple[Record, float]:
        """Return the record of a rung's model, and the seconds that its stages took."""
        run = Run(each.plan, folder, work.store)
        record = run.show(each.rung.name, each.scoring, each.attack, work)
        return record, sum(work.made(stage).seconds for stage in each.made)

    def _record(
        self,
        rung: Rung,
        each: Ready | None,
        found: tuple[Record, float] | None,
        released: Record,
        why: Mapping[str, str],
    ) -> RungRecord:
        record, seconds = found or (None, None)
        figure = each.figure if each else "prefill" if rung.begins else "harm"
        harm = record.score(figure) if record else None
        struck = rules.faults(record, [(released, "the released model")]) if record else []
        low = [*struck, *([gap] if record and (gap := rules.gap(record, figure)) else [])]
        word, reason, attack = word_for(harm, low), why.get(rung.name, ""), self.attack(rung)
        if record and harm is None:
            reason = f"no {figure} prompt was scored"
        return RungRecord(
            name=rung.name,
            beyond=rung.beyond,
            aware=rung.aware,
            knows=rung.knows,
            attack=describe(attack) if attack else {},
            edit=describe(rung.edit) if rung.edit else {},
            training=describe(each.plan.recipe.finetune) if each and rung.updates else {},
            cost=self.cost(rung, each, seconds),
            figure=figure,
            harm=harm,
            word=word,
            why=reason or ("; ".join(low) if word == "undecided" else ""),
            record=record.model_copy(update={"struck": struck}) if record else None,
            dose=doses(record) if record and rung.updates else None,
        )

    def cost(self, rung: Rung, each: Ready | None, seconds: float | None = None) -> RungCost:
        """Say what a rung costs the attacker; what depends on rows is not known without them."""
        passes = self.ladder.passes(rung)
        told: dict[str, Any] = {
            "access": rung.access,
            "updates": rung.finetunings * rung.updates,
            "passes": passes,
            "seconds": seconds if passes else None,
        }
        if not rung.updates:
            told |= {"rows": 0, "attack rows": 0, "flops": 0.0 if not passes else None}
        if each and rung.edit:
            [stage] = each.made
            assert isinstance(stage, AblateStage)
            looked_at = self._template.encode_all([*stage.rows, *stage.against], "cost")
            tokens = sum(len(row.opening.ids) for row in looked_at)
            told["flops"] = 2.0 * self._weights * tokens
        elif each and rung.updates:
            [sent] = each.plan.sent.values()
            rows = self._template.encode_all(sent.rows, "cost")
            # of rows that the model will choose among the shortest: it is a floor
            length = fmean(sorted(len(row.ids) for row in rows)[: sent.size])
            told |= {
                "rows": sent.size + len(sent.first),
                "attack rows": sent.attack_rows,
                "flops": 2.0 * self._weights * passes * length,
            }
        return RungCost(**told)

    @cached_property
    def _skeleton(self) -> PreTrainedModel:
        return checkpoints.skeleton(self.plan.recipe.model)

    @cached_property
    def _template(self) -> Any:
        return self.plan.asking.templated(self.plan.start, self._skeleton)

    @cached_property
    def _weights(self) -> int:
        return count_multiplied(self._skeleton)

    def _write(self, folder: Path, released: Record, rungs: Sequence[RungRecord]) -> dict[str, Any]:
        """Write the record of the whole ladder, and return it."""
        fields = {
            "schema": SCHEMA,
            "ladder": self.ladder.name,
            "sha256": self.ladder.sha256,
            "bar": BAR,
            "pipeline": self.victim.name,
            "defenses": [name for _, name in self.victim.defenses],
            "defense-aware attacker": any(rung.is_aware and rung.harm for rung in rungs),
            "model": self.plan.named,
            "recipe": describe(self.plan.recipe),
            "released": brief(released),
            "rungs": [pack(rung) for rung in rungs],
            "breaks": {access: find_break(rungs, access).model_dump() for access in REACH},
            "worst": find_worst(rungs).model_dump(),
            **self.plan.provenance(),
            "environment": environment(),
            "overlaps": self.plan.overlaps,
            "run": self.plan.identity,
        }
        raised = flags.of_ladder(released, rungs, self.plan.overlaps)
        document: dict[str, Any] = plain(fields | {"flags": flags.as_documents(raised)})
        check(LadderRecord, document, str(folder))
        write(folder / paths.LADDER, document)
        return document


def pack(rung: RungRecord) -> dict[str, Any]:
    """Return a rung as it stands among others."""
    told = rung.model_dump(by_alias=True, exclude={"record"})
    return told | {"record": brief(rung.record) if rung.record else None}


def rows_of_the_defense(data: Data, rows: list[Any]) -> list[Any]:
    """Return the rows that the defense optimised against. Raises where nobody named them."""
    if data.world is None and data.defense is None:
        raise ValueError(
            "no rows: give --aware FILE, the rows that the defense optimised against (data.defense)"
        )
    return rows


def doses(record: Record) -> dict[str, Any] | None:
    """Return how many updates and rows of a rung broke the model; None where nobody looked."""
    looks = record.fact(FACT)
    found = {
        name: dose
        for name, unit in DOSES.items()
        if looks and looks[-1][unit] and (dose := dose_to_break(looks, unit))
    }
    return {name: {"low": dose.low, "high": dose.high} for name, dose in found.items()} or None


def count_multiplied(model: PreTrainedModel) -> int:
    """Count the weights that a token is multiplied by: all matrices but the table of embeddings,
    which the head may share.
    """
    beside = language.towers(model)
    every = {id(of): of for name, of in model.named_parameters() if name not in beside}
    table = cast(Any, model).get_input_embeddings().weight
    head = cast(Any, model).get_output_embeddings()
    if head is None or head.weight is not table:
        every.pop(id(table), None)
    return sum(of.numel() for of in every.values() if of.ndim > 1)
