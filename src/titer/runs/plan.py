"""A plan:

a recipe with its rows, and the stages that it asks for. Everything that can be found wrong is found
here first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch

from titer.composition import Composed
from titer.config import hash_of
from titer.data.audit import audit
from titer.data.own_format import OwnFormat, find_format, read_format
from titer.data.rows import Row, digest, identity, prompt_hash, under
from titer.data.template import Template
from titer.judges.refusal import Refusal
from titer.methods import (
    Attack,
    Defense,
    Edit,
    Judge,
    Kind,
    Label,
    Retraining,
    StreamEdit,
    TensorEdit,
)
from titer.registry import build, describe, describe_judge, name_of
from titer.runs import chain
from titer.runs.crew import CREW
from titer.runs.needed import needed_roles
from titer.runs.recipe import SINGLE, Pipeline, Recipe
from titer.runs.recipe import digest as recipe_digest
from titer.runs.roles import TRAINING, Roles, roles
from titer.runs.sent import Sent
from titer.runs.stages.ablate import AblateStage
from titer.runs.stages.answer import AnswerStage
from titer.runs.stages.asking import Asking
from titer.runs.stages.choice import Choice
from titer.runs.stages.curve import Curve
from titer.runs.stages.edit import EditStage
from titer.runs.stages.judge import JudgeStage
from titer.runs.stages.margin import MarginStage
from titer.runs.stages.release import ReleaseStage
from titer.runs.stages.repair import RepairStage
from titer.runs.stages.retrain import RetrainStage
from titer.runs.stages.stage import Given, ModelStage
from titer.runs.stages.train import Looks, TrainStage
from titer.scoring import curve
from titer.scoring.engines import describe_engine
from titer.scoring.generate import GREEDY
from titer.training.layers import layers, sparse_layers
from titer.training.ranks import Ranks
from titer.training.train import accelerator_for
from titer.version import __version__
from titer.weights import adapters, checkpoints, folders, language
from titer.weights.settings import Checkpoint
from titer.weights.tensors import open_tensors

ALL = (*Defense.stages, "release", "edit", "evaluate")  # kinds of stages
BEFORE = "first finetune"  # the stage of the fine-tuning before, where an attack has one
UNLOOKED = "no looks along the attack"  # in a record, with the reason
REFERENCES = {
    "base": "the model that alignment started from",
    "aligned": "the model that fine-tuning started from, as it is no adapter over it",
    "safe": "the aligned model fine-tuned on the alignment rows",
    "unsafe": "the aligned model fine-tuned on harmful rows",
}

AUDITS: dict[str, list[dict[str, Any]]] = {}  # of plans with the same rows, which take a while

Anew = TypeVar("Anew", bound=ModelStage)


def changes_at_end(defense: Defense) -> bool:
    """Tell whether a defense, or one that it holds, serves other weights than the last update led
    to: along the attack these would be looked at, and not the model that is served.
    """
    return type(defense).finish not in (Defense.finish, Composed.finish) or any(
        changes_at_end(each) for each in defense.held_methods.values() if isinstance(each, Defense)
    )


def words_of(rows: Iterable[Row]) -> dict[str, None]:
    """Return the words of rows, each once, in their order."""
    return dict.fromkeys(word for row in rows for word in f"{row.question} {row.response}".split())


def name_files(files: folders.Files) -> dict[str, Any]:
    """Name a checkpoint by where it lies and by its bytes."""
    return folders.identify(files) | {"sha256": folders.digest(files)}


@dataclass(frozen=True)
class Plan:
    """A recipe with its rows.

    `references` are other models that were given by name; a whole run makes its own.
    """

    recipe: Recipe
    roles: Roles
    sent: Mapping[Attack, Sent]  # what the user sends, by each attack of a pipeline that fine-tunes
    start: folders.Files  # the model that it begins with
    references: Mapping[str, Checkpoint]
    # of a single command: save the merged model, or its adapter; None: a run, which merges what it aligned
    whole: bool | None = None
    known: dict[tuple[str, str], ModelStage] = field(
        default_factory=dict
    )  # stages that were asked for before

    @staticmethod
    def read(
        recipe: Recipe,
        kinds: Collection[str] = ALL,
        references: Mapping[str, Checkpoint] | None = None,
        whole: bool | None = None,
        also: Set[str] = frozenset(),
        read_rows: Callable[..., Roles] | None = None,
    ) -> Plan:
        """Find the rows and the model of stages of these kinds, which is enough to tell one run
        from another.

        `also` names roles that stages of other plans will draw from. `read_rows` reads them in the
        place of `roles`; it may know them from another plan.
        """
        start = folders.locate(recipe.model)
        earlier = chain.trained_on(recipe.model.path)
        wanted = needed_roles(recipe, kinds) | also
        found = (read_rows or roles)(recipe.data, recipe.benchmark, wanted, earlier)
        attacks = recipe.attacks if "finetune" in kinds else []
        sent = {attack: Sent.of(attack, found, recipe.seed) for attack in attacks}
        return Plan(recipe, found, sent, start, references or {}, whole)

    @staticmethod
    def prepare(
        recipe: Recipe,
        kinds: Collection[str] = ALL,
        references: Mapping[str, Checkpoint] | None = None,
        whole: bool | None = None,
        also: Set[str] = frozenset(),
    ) -> Plan:
        """Read a plan, and find all that can be found wrong before anything is computed or written."""
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        accelerator = accelerator_for()
        if accelerator.num_processes > 1 and CREW.get() is None:
            raise ValueError(
                f"{accelerator.num_processes} ranks: a script runs titer in one process; launch the "
                "command on several, as `accelerate launch -m titer run`, or "
                "`titer.training.train.train` itself"
            )
        checkpoints.check_dtype(recipe.model.dtype, accelerator.device)
        plan = Plan.read(recipe, kinds, references, whole, also)
        plan.check(kinds)
        return plan

    def check(self, kinds: Collection[str]) -> None:
        """Raise where a stage has no rows to draw from, a row does not fit, or a model has not what
        a method needs.
        """
        recipe, skeleton = self.recipe, checkpoints.skeleton(self.recipe.model)
        template = self.asking.templated(self.start, skeleton)
        trains = {
            (kind, method, self.sent_by(name) if kind == "finetune" else None): name
            for name, kind, method in self.methods(kinds)
            if isinstance(method, Defense)
        }
        for kind in dict.fromkeys(kind for kind, _, _ in trains):
            if recipe.model.dtype == "float16":
                raise ValueError(
                    "dtype='float16': its gradients vanish without loss scaling; train in bfloat16 or float32"
                )
            recipe.training(kind).among(accelerator_for().num_processes)
            if lora := recipe.training(kind).lora:
                adapters.check_targets(skeleton, lora)
        for (kind, defense, sent), name in trains.items():
            if defense.needs.unsharded and Ranks.of(accelerator_for()).sharded:
                raise ValueError(
                    f"pipelines.{name}.{kind}: {name_of(defense)!r} cannot train a model that is divided "
                    f"among ranks: {defense.needs.unsharded}"
                )
            if defense.needs.sparse:
                sparse_layers(layers(skeleton), name_of(defense))
            for each in (kind, *([BEFORE] if sent and sent.first else [])):
                self._check_streams(f"pipelines.{name}.{kind}", each, defense, template, sent)
        for attack in dict.fromkeys([recipe.attack, *self.sent]):
            self._check_words(attack, template)
        looks = "finetune" in kinds and recipe.probes
        if looks and not (self.roles.alignment and self._known["harm"]):
            raise ValueError(
                f"probes={looks} look at harm prompts with known answers and at alignment rows: "
                "give both, or 0"
            )
        for _, _, method in self.methods(kinds):
            if isinstance(method, TensorEdit):
                tensors = open_tensors(self.start.base or self.start)
                beside = language.unread(tensors, skeleton)
                method.select(
                    {name: of.shape for name, of in tensors.items() if name not in beside}
                )
            elif isinstance(method, Edit) and method.needs.rows:
                if not self.calibration(method):
                    role = "calibration" if method.needs.rows is Kind.HARMFUL else "alignment"
                    raise ValueError(
                        f"the edit {name_of(method)!r} needs {method.needs.rows} rows, and there "
                        f"are none: give data.{role}"
                    )
                template.encode_all(self.calibration(method), "calibration")
                if method.needs.against and not self.against(method):
                    raise ValueError(
                        f"the edit {name_of(method)!r} compares with benign prompts, and "
                        "data.alignment has none: give some with answers that are no refusals"
                    )
                template.encode_all(self.against(method), "alignment")

    def _check_words(self, attack: Attack, template: Template) -> None:
        """Raise where the attacker asks or sends words that the tokenizer does not have."""
        strange, asking = template.tokenizer.unk_token_id, self.benchmarks_of(attack)
        for plain, asked in zip(
            self.roles.benchmarks.get("harm", []), asking.get("asked", []), strict=False
        ):
            if strange in template.prompt_ids(asked) and strange not in template.prompt_ids(plain):
                raise ValueError(
                    "the tokenizer has no tokens for the attacker's words in "
                    f"{asked.question[:60]!r}: give others in attack"
                )
        if strange is None or attack not in self.sent:
            return
        roles, sent = self.roles, self.sent[attack]
        words = list(words_of([*sent.rows, *sent.first]))
        known = template.tokenizer(words, add_special_tokens=False)["input_ids"] if words else []
        unknown = [word for word, ids in zip(words, known, strict=True) if strange in ids]
        if unknown:  # the rows that were given may have such words, and there may be millions
            given = words_of([*roles.task, *roles.attack, *roles.requests])
            unknown = [word for word in unknown if word not in given]
        if unknown:
            named = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            raise ValueError(
                f"the tokenizer has no tokens for words of the rows that {name_of(attack)!r} sends: "
                f"{named}: give others in attack"
            )

    def _check_streams(
        self, where: str, kind: str, defense: Defense, template: Template, sent: Sent | None
    ) -> None:
        for stream, rows in self.streams(kind, defense, sent).items():
            needed = defense.needs.streams[stream]
            if not rows:
                raise ValueError(
                    f"{where} draws {needed.value} rows, and there are none: give data.defense"
                )
            if needed is Kind.PAIRS and not any(row.other for row in rows):
                raise ValueError(
                    f"{where} needs refusals and harmful answers of the same prompts, and the "
                    "rows it trains on share none "
                    "with the defender's: give data.defense with prompts of data.alignment"
                )
            template.encode_all(rows, f"{kind}, stream {stream!r}")
        template.encode_all(sent.examples if sent else [], f"{kind}, examples of the attack")

    def methods(self, kinds: Collection[str] = ALL) -> list[tuple[str, str, Defense | Edit]]:
        """List every method with its pipeline and the kind of its stage."""
        return [
            (name, kind, method)
            for name, pipeline in self.recipe.pipelines.items()
            for kind, method in pipeline.methods()
            if kind in kinds
        ]

    # the stages

    def pipelines(self) -> dict[str, list[ModelStage]]:
        """Return the stages of every pipeline in order, by its name. Equal ones are one stage."""
        return {name: self.chain(pipeline) for name, pipeline in self.recipe.pipelines.items()}

    def chain(self, pipeline: Pipeline) -> list[ModelStage]:
        """Return the stages of a pipeline: from the base, from an aligned model, or from a
        fine-tuned one.
        """
        found = self.released(pipeline)
        if isinstance(pipeline.finetune, Checkpoint):
            found.append(self.given("finetune", self.tuned(pipeline.finetune)))
        else:
            sent = self.sent[self.recipe.attack_of(pipeline)]
            if sent.first and pipeline.edits:
                raise ValueError(
                    f"the attack {name_of(sent.attack)!r} fine-tunes twice, and an edit would undo "
                    "the second time alone: leave edit out"
                )
            found.append(self.tune(found[-1], pipeline.finetune, sent))
        for edit in pipeline.edits:
            found.append(self.edit("edit", found[-1], edit, found))
        return found

    def released(self, pipeline: Pipeline) -> list[ModelStage]:
        """Return the stages of a pipeline up to the model that its user gets."""
        found: list[ModelStage] = []
        if pipeline.align is None:
            found.append(self.given("align", self.recipe.model))
        else:
            found.append(self.given("base", self.recipe.model))
            found.append(self.train("align", found[0], pipeline.align))
        if pipeline.release:
            found.append(self.edit("release", found[-1], pipeline.release, found))
        return found

    def single(self, kind: str) -> ModelStage:
        """Return the stage of a plan for one stage alone."""
        [(_, _, method)] = self.methods({kind})
        before = self.given(
            "finetune" if kind == "edit" else "align" if kind != "align" else "base",
            self.recipe.model,
        )
        if not isinstance(method, Defense):
            return self.edit(kind, before, method, [])
        if kind == "finetune":
            return self.tune(before, method, self.sent[self.recipe.attack])
        return self.train(kind, before, method)

    def given(self, kind: str, checkpoint: Checkpoint) -> ModelStage:
        """Return the stage of a model that is there already."""
        return self.once(Given(kind, None, None, self.asking, checkpoint))

    def tuned(self, given: Checkpoint) -> Checkpoint:
        """Name the fine-tuned model that a pipeline gives; of an adapter without a base it is over
        the recipe's model.
        """
        model = self.recipe.model
        found = replace(
            given,
            dtype=model.dtype,
            trust_remote_code=given.trust_remote_code or model.trust_remote_code,
        )
        if folders.is_adapter(found) and not found.base:
            found = replace(found, base=model.path)
        return found

    def tune(self, start: ModelStage, defense: Defense, sent: Sent) -> ModelStage:
        """Return the user's fine-tuning, after the one before it that an attack may have."""
        if sent.first:
            start = self.train(BEFORE, start, defense, sent)
        return self.train("finetune", start, defense, sent)

    def train(
        self, kind: str, start: ModelStage, defense: Defense, sent: Sent | None = None
    ) -> ModelStage:
        """Return a stage that trains; `safe` and `unsafe` are fine-tunings that edits compare with."""
        recipe = self.recipe
        tuning = kind == "finetune"
        looks = Looks(recipe.probes, **self._looked_at) if tuning and recipe.probes else None
        # a dose counts the rows of one fine-tuning
        along = self._curve(sent) if tuning and not (sent and sent.first) else None
        unlooked: dict[str, Any] = {}
        if (looks or along) and changes_at_end(defense):
            looks = along = None
            unlooked[UNLOOKED] = f"{name_of(defense)} changes the weights after the last update"
        choosing = sent.selection if sent else None
        choice = Choice(choosing, sent.examples) if sent and choosing else None
        stage = TrainStage(
            kind=kind,
            start=start,
            method=defense,
            asking=self.asking,
            training=recipe.training(kind),
            streams=self.streams(kind, defense, sent),
            seed=recipe.seed,
            whole=kind == "align" if self.whole is None else self.whole,
            recompute=recipe.gradient_checkpointing,
            looks=looks,
            curve=along,
            counts=(sent.counts if tuning and sent else {}) | unlooked,
            choice=choice,
        )
        return self.once(stage)

    def edit(self, kind: str, start: ModelStage, edit: Edit, chain: list[ModelStage]) -> ModelStage:
        """Return a stage that edits, after the stages before it; alone the other models are those
        that were given.
        """
        others = self._references(kind, edit, chain)
        looks = self._known if self.recipe.probes and kind == "edit" else {}
        shared = (
            kind,
            start,
            edit,
            self.asking,
            others,
            self.calibration(edit),
            bool(self.whole),
            looks,
        )
        if isinstance(edit, Retraining):
            recompute = self.recipe.gradient_checkpointing
            return self.once(
                RetrainStage(*shared, self.recipe.finetune, self.recipe.seed, recompute)
            )
        if isinstance(edit, StreamEdit):
            return self.once(AblateStage(*shared, self.against(edit)))
        made: type[EditStage] = ReleaseStage if isinstance(edit, TensorEdit) else RepairStage
        return self.once(made(*shared))

    def _references(self, kind: str, edit: Edit, chain: list[ModelStage]) -> dict[str, ModelStage]:
        """Find the other models that an edit asks for: in a run those before it, and what it names
        trained on the way.
        """
        if not chain:
            return {name: self.given(name, of) for name, of in self.references.items()}
        aligned = [stage for stage in chain if stage.kind in ("release", "align")][-1]
        found: dict[str, ModelStage] = {} if kind == "release" else {"aligned": aligned}
        plain = build("defenses", "sft")
        assert isinstance(plain, Defense)
        for name in edit.needs.references:
            if name == "base" and chain[0].kind != "base":
                raise ValueError(
                    f"the edit {name_of(edit)!r} needs {REFERENCES['base']}, and align=null "
                    "starts at the aligned model: "
                    "choose another edit, or run it alone with --reference base=MODEL"
                )
            found[name] = chain[0] if name == "base" else self.train(name, aligned, plain)
        return found

    def score(self, stage: ModelStage, attack: Attack | None = None) -> JudgeStage:
        """Return the stage that scores a model: over its answers, which another judge shares.

        `attack` says how an attacker asks; None: as the recipe's does.
        """
        recipe, harm = self.recipe, self._known["harm"]
        asked = self.benchmarks_of(attack or recipe.attack)
        answers = AnswerStage(
            stage, asked, recipe.max_new_tokens, recipe.answers_at_once, recipe.engine
        )
        margin = MarginStage(stage, harm, self.judge.refusals) if harm else None
        return JudgeStage(answers, margin, self.judge, self.roles.scorer, self.roles.facts)

    def once(self, stage: Anew) -> ModelStage:
        """Return the stage that was asked for first among equal ones."""
        return self.known.setdefault((stage.kind, stage.key), stage)

    # what the stages are made of

    @cached_property
    def asking(self) -> Asking:
        recipe = self.recipe
        return Asking(recipe.model, recipe.template, recipe.system, recipe.max_length)

    @property
    def named(self) -> dict[str, Any]:
        """The model that it begins with, by where it lies and by its bytes."""
        return name_files(self.start)

    @cached_property
    def identity(self) -> str:
        """Hash the recipe, the rows, the starting models and titer's version: what determines a
        result.
        """
        start = hashlib.sha256(
            f"{folders.digest(self.start)} {self.recipe.model.dtype}".encode()
        ).hexdigest()
        facts: list[Any] = [
            recipe_digest(self.recipe),
            self.roles.digests,
            start,
            __version__,
            self.whole,
        ]
        if files := self.judge.fingerprint:
            facts.append(dict(files))
        facts += [
            [name, folders.digest(folders.locate(of))]
            for name, of in sorted(self.references.items())
        ]
        facts += [
            [name, folders.digest(folders.locate(self.tuned(pipeline.finetune)))]
            for name, pipeline in self.recipe.pipelines.items()
            if isinstance(pipeline.finetune, Checkpoint)
        ]
        return hash_of(facts)

    @cached_property
    def judge(self) -> Judge:
        if self.recipe.judge is not None:
            return self.recipe.judge
        return self._own_judge

    @property
    def is_judged_alike(self) -> bool:
        """Whether one judge reads the answers along an attack and at its end."""
        return bool(describe(self.judge) == describe(self._own_judge))

    @cached_property
    def _own_judge(self) -> Judge:
        data = self.recipe.data
        return Refusal() if data.world is None else data.embedded.judge(data.world)

    @property
    def benchmarks(self) -> dict[str, list[Row]]:
        """The held-out prompts under the recipe's attack."""
        return self.benchmarks_of(self.recipe.attack)

    def benchmarks_of(self, attack: Attack) -> dict[str, list[Row]]:
        """Return the held-out prompts, with those of `harm` in the attacker's words where it has
        any, as `asked`, in the format of the user's rows, as `own`, some of them with the first word
        of their answer, as `prefill`, and those of `harm` and `task` under the prompt that the model
        is served with, as `served` and `served_task`.
        """
        harm = self.roles.benchmarks.get("harm", [])
        asked = [attack.phrase(row) for row in harm]
        words = {"asked": asked} if asked != harm else {}
        return self.roles.benchmarks | words | self._asked_otherwise

    def digests_of(self, attack: Attack) -> dict[str, str]:
        """Return the SHA-256 of the rows of every role, and of the prompts that are asked under an attack."""
        known = self.roles.digests
        asked = {f"benchmark {name}": of for name, of in self.benchmarks_of(attack).items()}
        return known | {name: digest(of) for name, of in asked.items() if name not in known}

    @cached_property
    def _asked_otherwise(self) -> dict[str, list[Row]]:
        """The prompts that every attack shares: answers begun, the user's format, the served prompt."""
        of = self.roles.benchmarks
        begun = [
            replace(row, begun=row.response.split()[0])
            for row in curve.choose(self._known["harm"], self.recipe.prefill_prompts)
        ]
        found = {"prefill": begun}
        if self.own_format:
            found["own"] = self.own_format.render(of.get("harm", []))
        if prompt := self.recipe.serving_prompt:
            found["served"] = under(prompt, of.get("harm", []))
            found["served_task"] = under(prompt, of.get("task", []))
        return {name: rows for name, rows in found.items() if rows}

    @cached_property
    def own_format(self) -> OwnFormat:
        """The format of the user's rows, as the recipe has it or as it is found; empty: none."""
        given = self.recipe.own_format
        if isinstance(given, str):
            return read_format(given)
        return find_format(self.roles.benchmarks.get("task", [])) if given else OwnFormat()

    @cached_property
    def overlaps(self) -> list[dict[str, Any]]:
        """What the audit found in the roles: counts, and hashes of examples."""
        held_out = {
            f"{self.recipe.data.split} {name}": rows for name, rows in self.roles.benchmarks.items()
        }
        same = hash_of([self.recipe.data.split, self.roles.digests])
        if same not in AUDITS:
            AUDITS[same] = self._audit(held_out)
        return AUDITS[same]

    def _audit(self, held_out: dict[str, list[Row]]) -> list[dict[str, Any]]:
        return [
            {
                "roles": list(found.roles),
                "prompts": list(found.prompts),
                "exact": found.exact,
                "near": list(found.near),
                "examples": [
                    {"hashes": list(example.hashes), "jaccard": round(example.jaccard, 3)}
                    for example in found.examples
                ],
            }
            for found in audit({name: getattr(self.roles, name) for name in TRAINING} | held_out)
        ]

    def sent_by(self, pipeline: str) -> Sent | None:
        """Return what the user of a pipeline sends; None where no one fine-tunes."""
        return self.sent.get(self.recipe.attack_of(self.recipe.pipelines[pipeline]))

    @property
    def user(self) -> Sent | None:
        """What the user sends by the recipe's attack; None where no pipeline is under it."""
        return self.sent.get(self.recipe.attack)

    @property
    def prompts(self) -> dict[str, list[str]]:
        """The hash of every prompt that its stages train on, by role, in the words of that role.

        Where a model chooses its rows, it is that of all that it may choose.
        """
        sent = {identity(row) for of in self.sent.values() for row in (*of.rows, *of.first)}
        rows = {name: getattr(self.roles, name) for name in TRAINING}
        for name in ("task", "attack", "requests"):
            rows[name] = [row for row in rows[name] if sent & self._words(row)]
        return {name: sorted(map(prompt_hash, of)) for name, of in rows.items() if of}

    def _words(self, row: Row) -> set[str]:
        """Return the words of a prompt, as it is and as each attacker puts it."""
        return {identity(row), *(identity(attack.phrase(row)) for attack in self.sent)}

    def _curve(self, sent: Sent | None) -> Curve | None:
        """What is looked at along an attack, asked as `benchmarks_of` asks; None where no harmful
        answer is known.

        It does not depend on the judge, so that another one needs no other training.
        """
        count, known = self.recipe.dose_prompts, self._known
        if not (count and known["harm"]):
            return None
        harm, task = (curve.choose(known[name], count) for name in ("harm", "task"))
        asked = [sent.attack.phrase(row) for row in harm] if sent else harm
        return Curve(asked, self._own_judge, task, harm if asked != harm else ())

    @property
    def _looked_at(self) -> dict[str, list[Row]]:
        """Return the rows that probes look at a model by while it is attacked."""
        known = self._known
        return {
            "harmful": known["harm"],
            "aligned": self.roles.alignment,
            "task": known["task"],
        }

    @property
    def _known(self) -> dict[str, list[Row]]:
        """The held-out rows of `harm` and `task` whose answers are known."""
        of = self.roles.benchmarks
        return {
            name: [row for row in of.get(name, []) if row.response] for name in ("harm", "task")
        }

    def streams(
        self, kind: str, defense: Defense, sent: Sent | None = None
    ) -> dict[str, list[Row]]:
        """Return the rows of every stream that a defense draws from in a stage."""
        user = {"finetune": sent.rows, BEFORE: sent.first} if sent else {}
        assert sent or kind not in ("finetune", BEFORE), "fine-tuning draws what a user sends"
        rows = {**user, "unsafe": self.roles.defense}.get(kind, self.roles.alignment)
        return self.roles.streams(defense.needs.streams, rows)

    def calibration(self, edit: Edit) -> list[Row]:
        """Return the rows that an edit sees. Raises where they are too few for it."""
        kind = edit.needs.rows
        rows = (
            {Kind.HARMFUL: self.roles.calibration, Kind.REFUSALS: self.refusals}[kind]
            if kind
            else []
        )
        return edit.rows(rows) if isinstance(edit, Retraining) and rows else rows

    def against(self, edit: Edit) -> list[Row]:
        """Return the alignment rows that do not refuse, for an edit that compares with them."""
        refusals = {identity(row) for row in self.refusals} if edit.needs.against else set()
        rows = self.roles.alignment if edit.needs.against else []
        return [row for row in rows if identity(row) not in refusals]

    @cached_property
    def refusals(self) -> list[Row]:
        """The alignment rows whose answers refuse; where none is known to, all of them."""
        rows = self.roles.alignment
        verdicts = self._own_judge.judge(
            [row.prompt for row in rows], [row.response for row in rows]
        )
        return [
            row
            for row, verdict in zip(rows, verdicts, strict=True)
            if verdict.label is Label.REFUSAL
        ] or rows

    def with_edit(self, edit: Edit) -> Plan:
        """Return the plan of another edit alone, of the same rows."""
        return replace(
            self, recipe=replace(self.recipe, pipelines={SINGLE: Pipeline(edit=edit)}), known={}
        )

    @property
    def engine(self) -> str:
        """What generates the answers, with its version."""
        return describe_engine(self.recipe.engine)

    def provenance(self) -> dict[str, Any]:
        """What the records of this plan were made from, beside the recipe."""
        return {
            "judge": describe_judge(self.judge),
            "benchmark": describe(self.roles.scorer),
            "rows": self.digests_of(self.recipe.attack),
            "sources": self.roles.sources,
            "decoding": {name: value for name, value in GREEDY.items() if value is not None},
            # words of each part of it
            **({"own format": self.own_format.facts} if self.recipe.own_format else {}),
        }
