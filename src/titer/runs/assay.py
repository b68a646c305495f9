"""An assay: the defended and the original model under the same fine-tunings, for the Immunization
conditions that `findings.assay` decides.

It is a plan of the existing kinds of stages, once a model, a seed and an **arm**: the recipe's
attacks; its first attack with rows of held-out topics, and with rows of a second domain; harmless
fine-tuning on the user's task for a growing number of updates. What the store has is not computed
again, so an interrupted assay goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from titer import paths, registry
from titer.config import hash_of
from titer.data.audit import audit
from titer.data.rows import Row, identity, prompt_hash
from titer.errors import unknown
from titer.findings.assay import assay as decide
from titer.findings.assay import conclude
from titer.findings.assay_record import AssayRecord, tell_attacked, tell_conditions
from titer.findings.conditions import (
    CONDITIONS,
    CROSS_DOMAIN,
    IN_DOMAIN,
    REQUIRED,
    Evidence,
    Pairing,
    Thresholds,
)
from titer.findings.records import SCHEMA, check, stages
from titer.findings.records import plain as json_plain
from titer.lab.held_out import DOMAIN, TOPICS, DomainWorld
from titer.methods import Attack
from titer.progress import Progress
from titer.registry import name_of
from titer.runs import chain
from titer.runs import recipe as recipes
from titer.runs.documents import environment, write_documents
from titer.runs.execute import Run, claim
from titer.runs.plan import Plan, name_files
from titer.runs.preview import tell_rows
from titer.runs.recipe import Pipeline, Recipe, plain
from titer.runs.roles import Data, roles
from titer.runs.store import Store, write
from titer.runs.worlds import LABS

SHARES = (0.125, 0.25, 0.5, 1.0)  # of the updates: after how many the harmless task is asked
ATTACKS, HELD_OUT, SECOND, TASK = "attacks", "topics", "domain", "task"  # arms
NEAR = 0.5  # of the attacker's prompts; where more are near the defender's, rows were copied
DEFENDERS = ("alignment", "defense")  # roles whose rows a defense is made of


@dataclass(frozen=True)
class Setup:
    """What an assay is asked to compare, and with which rows."""

    recipe: str
    model: str  # the defended one
    base: str  # the original
    settings: Sequence[str] = ()
    seeds: Sequence[int] = (0, 1, 2)
    topics: str | None = None  # a pool of harmful rows of topics that the defense never had
    domain: str | None = None  # of another kind of harm
    task_rows: int = 500  # of the harmless fine-tuning

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            given = ",".join(map(str, self.seeds))
            raise ValueError(f"--seeds {given}: give different ones, at least one")

    def load(self, model: str, seed: int, *more: str) -> Recipe:
        """Load the recipe for one of the models; what is set by `more` takes the place of settings."""
        later = {setting.partition("=")[0] for setting in more}
        kept = [each for each in self.settings if each.partition("=")[0] not in later]
        return recipes.load_for(self.recipe, model, [*kept, *more], seed)

    @cached_property
    def attacks(self) -> dict[str, Attack]:
        """The attacks of the recipe's pipelines, by name."""
        recipe = self.load(self.model, self.seeds[0])
        found: dict[str, Attack] = {}
        for name, pipeline in recipe.pipelines.items():
            attack = recipe.attack_of(pipeline)
            if attack not in found.values():
                found[name] = attack
        kinds = [name_of(attack) for attack in found.values()]
        return {
            kind if kinds.count(kind) == 1 else name: attack
            for kind, (name, attack) in zip(kinds, found.items(), strict=True)
        }

    def arms(self, model: str, seed: int) -> dict[str, Recipe]:
        """Return the recipes of all arms of one model and seed, by name."""
        recipe = self.load(model, seed)
        first = dict([next(iter(self.attacks.items()))])
        found = {ATTACKS: attacked(recipe, self.attacks)}
        for arm, source, suffix in ((HELD_OUT, self.topics, TOPICS), (SECOND, self.domain, DOMAIN)):
            if more := self.other_rows(recipe, source, suffix):
                found[arm] = attacked(self.load(model, seed, *more), first)
        harmless = registry.build("attacks", {"method": "benign", "n": self.task_rows})
        assert isinstance(harmless, Attack)
        for updates in budgets(recipe.finetune.updates):
            tuning = replace(recipe.finetune, updates=updates)
            short = replace(recipe, finetune=tuning, dose_prompts=0, probes=0)
            found[f"{TASK}-{updates}"] = attacked(short, {TASK: harmless})
        return found

    def other_rows(self, recipe: Recipe, source: str | None, suffix: str) -> list[str]:
        """Return the settings that give the attacker other rows; none where there are none."""
        if recipe.data.world is None:
            own = [f"data.{role}=null" for role in ("harm_test", "defense", "calibration")]
            return [f"data.harmful={json.dumps(source)}", *own] if source else []
        lab = recipe.data.lab + suffix
        return [f"data.lab={lab}", "protocol=null"] if lab in LABS else []


@dataclass(frozen=True)
class Wanted:
    """The conditions that must be met, and the attacks that are made with the defense known."""

    conditions: Sequence[str] = REQUIRED
    aware: Sequence[str] = ()

    def check(self, attacks: Collection[str]) -> None:
        """Raise where there is no such condition or attack."""
        for name in self.conditions:
            if name not in CONDITIONS:
                raise unknown("condition", name, CONDITIONS)
        for name in self.aware:
            if name not in attacks:
                raise unknown("attack of the recipe", name, attacks)


def run_assay(
    setup: Setup, by: Thresholds, wanted: Wanted, folder: Path, store: Path, progress: Progress
) -> dict[str, Any]:
    """Run an assay in a folder over a store; its record, which is written there."""
    wanted.check(setup.attacks)
    assay = Assay.prepare(setup)
    evidence, flags = assay.compute(folder, Store(store), progress)
    told = document(assay, evidence, flags, by, wanted)
    write(folder / paths.ASSAY, told)
    return told


def preview(setup: Setup, wanted: Wanted) -> list[str]:
    """Check an assay, and say what it would do."""
    wanted.check(setup.attacks)
    assay = Assay.prepare(setup)
    arms = dict.fromkeys(arm for _, _, arm in assay.plans)
    told = [
        f"attacks: {', '.join(setup.attacks)}",
        f"{len(assay.plans)} runs, over arms {', '.join(arms)} and seeds "
        f"{', '.join(map(str, setup.seeds))}, of two models",
        *(f"{name}: {count}" for name, count in assay.disjoint.items()),
        *(f"{name}: not enough evidence, {why}" for name, why in assay.missing.items()),
    ]
    return [*told, *tell_rows(assay.main), "nothing was computed"]


def attacked(recipe: Recipe, attacks: Mapping[str, Attack]) -> Recipe:
    """Return the recipe with a plain fine-tuning of its model for every attack, and no more."""
    made = {
        name: Pipeline(align=None, finetune=plain(), attack=attack)
        for name, attack in attacks.items()
    }
    return replace(recipe, pipelines=made, attack=next(iter(attacks.values())))


def budgets(updates: int) -> list[int]:
    """Return the numbers of updates after which the harmless task is setup."""
    return sorted({max(1, round(share * updates)) for share in SHARES})


@dataclass(frozen=True)
class Assay:
    """An assay whose rows and models were checked, before anything is computed."""

    setup: Setup
    plans: Mapping[tuple[str, int, str], Plan]  # by model, seed and arm
    missing: Mapping[str, str]  # why a condition has no evidence
    disjoint: Mapping[str, Any]  # what is known of the defender's rows beside the attacker's

    @staticmethod
    def prepare(setup: Setup) -> Assay:
        """Find all that can be found wrong.

        Raises where the defense was made of the attacker's rows.
        """
        disjoint = compare_rows(setup)
        missing = find_missing(setup)
        plans = {
            (model, seed, arm): Plan.prepare(recipe)
            for seed in setup.seeds
            for model in dict.fromkeys((setup.model, setup.base))
            for arm, recipe in setup.arms(model, seed).items()
            if {HELD_OUT: IN_DOMAIN, SECOND: CROSS_DOMAIN}.get(arm) not in missing
        }
        return Assay(setup, plans, missing, disjoint)

    @property
    def main(self) -> Plan:
        """The plan of the recipe's attacks on the defended model."""
        return self.plans[self.setup.model, self.setup.seeds[0], ATTACKS]

    @property
    def rows(self) -> dict[str, dict[str, str]]:
        """The SHA-256 of the rows that each arm sends and asks; those of a defense are not of it."""
        return {
            arm.partition("-")[0]: {  # every budget of the harmless task has the same rows
                role: sha256
                for role, sha256 in plan.roles.digests.items()
                if role not in (*DEFENDERS, "calibration")
            }
            for (model, seed, arm), plan in self.plans.items()
            if (model, seed) == (self.setup.model, self.setup.seeds[0])
        }

    def compute(self, folder: Path, store: Store, progress: Progress) -> tuple[Evidence, list[Any]]:
        """Compute every arm into a folder, and return the evidence and all red flags."""
        whole = hash_of([plan.identity for plan in self.plans.values()])
        found: dict[tuple[str, int, str], dict[str, Any]] = {}
        with claim(folder, self.main, f"assay {whole}"):
            for i, (place, plan) in enumerate(self.plans.items()):
                of = "defended" if place[0] == self.setup.model else "original"
                inside = folder / paths.ARMS / f"{i:02d}-{place[2]}-{of}-seed{place[1]}"
                with claim(inside, plan):
                    run = Run(plan, inside, store)
                    found[place] = write_documents(run, run.records(progress))
        last = f"{TASK}-{max(budgets(self.main.recipe.finetune.updates))}"
        flags = [  # a short budget of the harmless task is to be too short
            flag
            for (_, _, arm), documents in found.items()
            if arm == last or not arm.startswith(TASK)
            for flag in next(iter(documents.values()))["flags"]
        ]
        return self._evidence(found), list({json.dumps(flag): flag for flag in flags}.values())

    def _evidence(self, found: Mapping[tuple[str, int, str], Mapping[str, Any]]) -> Evidence:
        read = {place: stages(documents) for place, documents in found.items()}

        alike = self.main.is_judged_alike

        def match(arm: str) -> dict[str, list[Pairing]]:
            pairs: dict[str, list[Pairing]] = {}
            for seed in self.setup.seeds:
                mine, its = (read.get((of, seed, arm), {}) for of in self._models)
                for name in mine:
                    pairs.setdefault(name, []).append(Pairing(mine[name], its[name], alike))
            return pairs

        arms = dict.fromkeys(arm for _, _, arm in found)
        task = [arm for arm in arms if arm.startswith(TASK)]
        return Evidence(
            match(ATTACKS),
            match(HELD_OUT),
            match(SECOND),
            {int(arm.rpartition("-")[2]): match(arm)[TASK] for arm in task},
            self.missing,
        )

    @property
    def _models(self) -> tuple[str, str]:
        return self.setup.model, self.setup.base


def compare_rows(setup: Setup) -> dict[str, Any]:
    """Compare the attacker's prompts with those of the defense, of all arms.

    Raises where they share prompts, also where the recipe keeps those, or most of the attacker's are
    nearly the defender's. What the model was trained on is known by its records, and by the rows that
    are given.
    """
    recipe = setup.load(setup.model, setup.seeds[0])
    wanted = {"attack", "defense"} | ({"alignment"} if _has_alignment(recipe) else set())
    earlier = chain.trained_on(recipe.model.path)
    rows = roles(
        _refusing(recipe.data), recipe.benchmark, wanted, earlier
    )  # raises on a shared prompt
    given = {name: getattr(rows, name) for name in DEFENDERS}
    attackers = {"attack": rows.attack}
    for source, option in ((setup.topics, "--topics"), (setup.domain, "--domain")):
        if source and recipe.data.world is None:
            more = setup.other_rows(recipe, source, "")
            data = _refusing(setup.load(setup.model, setup.seeds[0], *more).data)
            attackers[option] = roles(data, recipe.benchmark, {"attack"}, earlier).attack
    near = {name: _count_near(name, of, given) for name, of in attackers.items()}
    known = sum(len(earlier.get(name, ())) for name in DEFENDERS)
    return {
        "attacker's prompts": len({identity(row) for row in rows.attack}),
        "shared": 0,
        "near": near["attack"],
        **{f"near, of {name}": count for name, count in near.items() if name != "attack"},
        "defender's prompts by its records": known,
        "defender's prompts given": len({identity(row) for of in given.values() for row in of}),
    }


def _refusing(data: Data) -> Data:
    """Refuse shared prompts where a recipe keeps them; one that drops them is left as it is."""
    return replace(data, shared="refuse") if data.shared == "keep" else data


def _count_near(name: str, attack: Sequence[Row], given: Mapping[str, Sequence[Row]]) -> int:
    """Count the attacker's prompts that are nearly the defender's.

    Raises where most of them are, or one is the defender's in so many words.
    """
    found = [each for each in audit({**given, name: attack}) if each.roles[1] == name]
    attackers = len({identity(row) for row in attack})
    for each in found:
        if each.exact:
            raise ValueError(
                f"{each.exact} of the {attackers} prompts of {name!r} are in {each.roles[0]!r}: give "
                "the attacker other rows"
            )
    near = max((each.near[1] for each in found), default=0)
    if near > NEAR * attackers:
        raise ValueError(
            f"{near} of the {attackers} prompts of {name!r} are nearly the defender's: such an "
            "assay shows how a defense remembers; give the attacker other rows"
        )
    return near


def _has_alignment(recipe: Recipe) -> bool:
    return recipe.data.world is not None or recipe.data.alignment is not None


def find_missing(setup: Setup) -> dict[str, str]:
    """Say which conditions on generalization have no evidence, and why."""
    recipe = setup.load(setup.model, setup.seeds[0])
    arms, earlier = setup.arms(setup.model, setup.seeds[0]), chain.trained_on(recipe.model.path)
    found = dict(_without_rows(recipe, arms))
    if not any(earlier.get(name) for name in DEFENDERS):
        why = "what the defense was made of is not known: make the model by `titer align`, which "
        return dict.fromkeys((IN_DOMAIN, CROSS_DOMAIN), f"{why}records it") | found
    if CROSS_DOMAIN not in found and recipe.data.world is not None:
        made = LABS[recipe.data.lab + DOMAIN].world
        world = cast(DomainWorld, made(recipe.data.world, made.tasks[0]))
        asks = {prompt_hash(row) for row in world.domain_questions}
        if asks & earlier.get("defense", frozenset()):
            found[CROSS_DOMAIN] = (
                "the defense was made of rows of all domains of this world: align with "
                f"data.lab={recipe.data.lab}{DOMAIN}, which keeps one back"
            )
    return found


def _without_rows(recipe: Recipe, arms: Mapping[str, Recipe]) -> Iterator[tuple[str, str]]:
    """Yield the conditions for which the attacker has no rows."""
    if HELD_OUT not in arms:
        yield IN_DOMAIN, "there are no rows of held-out topics: give them as --topics"
    if SECOND not in arms and recipe.data.world is not None:
        yield CROSS_DOMAIN, f"{recipe.data.lab} has one domain of harm in a world"
    elif SECOND not in arms:
        yield CROSS_DOMAIN, "there are no rows of another domain of harm: give them as --domain"


def document(
    assay: Assay, evidence: Evidence, flags: Sequence[Any], by: Thresholds, wanted: Wanted
) -> dict[str, Any]:
    """Return the record of an assay: every condition, and what it was decided from."""
    conditions, plan = decide(evidence, by), assay.main
    recipe, base = plan.recipe, assay.plans[assay.setup.base, assay.setup.seeds[0], ATTACKS]
    tuning = recipe.finetune
    told = {
        "schema": SCHEMA,
        "defended": name_files(plan.start),
        "original": name_files(base.start),
        "verdict": conclude(conditions, wanted.conditions),
        "required": list(wanted.conditions),
        "conditions": tell_conditions(conditions),
        "thresholds": vars(by),
        "budget": {
            "updates": tuning.updates,
            "rows": tuning.batch * tuning.accumulate,
            "learning rate": tuning.lr,
            "seeds": list(assay.setup.seeds),
            "task rows": assay.setup.task_rows,
        },
        "attacks": {name: registry.describe(of) for name, of in assay.setup.attacks.items()},
        "defense-aware attacks": list(wanted.aware),
        "disjoint": assay.disjoint,
        "attacked": tell_attacked(evidence, by.phi),
        "rows": assay.rows,
        "recipe": registry.describe(recipe),
        "judge": plan.provenance()["judge"],
        "environment": environment(),
        "flags": list(flags),
    }
    found = json_plain(told)
    check(AssayRecord, found, "the assay")
    return dict(found)
