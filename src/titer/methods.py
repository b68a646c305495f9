"""Read first: the base classes of defenses, edits, attacks, judges and benchmarks, and their facts.

A method is a frozen dataclass that implements one of them. Its fields are its hyperparameters, with
the paper's defaults; the folder it lies in is its registry (`titer list`). A method is final: a
variant is a field, a combination is a field that holds another method (`composition.py`).

It says two things of itself: `needs`, what it asks for beside the model that it works on, and
`about`, where it comes from and what it was compared with.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from titer.config import Config
from titer.phase import Phase

if TYPE_CHECKING:  # listing methods imports nothing heavy
    from pathlib import Path

    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from titer.data.batches import Batch, Encoded
    from titer.data.rows import Row
    from titer.training.settings import Training
    from titer.training.step import Step
    from titer.training.vector import Vec
    from titer.weights.finetuned import Weight
    from titer.weights.update import Update


class Kind(enum.StrEnum):
    """The contents of a stream's rows, which say where a recipe finds them."""

    ANSWERS = "answers"  # prompts with the answers to learn: what the stage trains on
    REFUSALS = "refusals"  # alignment rows: harmful prompts with refusals, benign ones with answers
    HARMFUL = "harmful"  # harmful prompts with harmful answers, the defender's own
    PAIRS = "pairs"  # alignment rows, each with the defender's harmful answer where there is one
    # a fifth of the defender's prompts, with both answers where there are two; `harmful` then lacks
    # them
    HELD_OUT = "held-out harmful"
    PROMPTS = "prompts"  # to be answered by a model under evaluation; an answer may be known or not


Answers, Refusals, Harmful, Pairs, HeldOut, Prompts = Kind


@dataclass(frozen=True)
class Needs:
    """All that a method asks for beside the model that it works on."""

    streams: Mapping[str, Kind] = field(default_factory=dict, hash=False)  # a defense's rows
    rows: Kind | None = None  # the defender's rows that an edit sees, or trains on
    against: Kind | None = None  # rows that it compares those with: `answers`, benign prompts
    # other models by name. An edit's: the `base`; the aligned model trained on `safe` or `unsafe`
    # rows. A defense's: `start`, the model that the stage began with (`step.reference()`)
    references: tuple[str, ...] = ()
    # the model whose passes over its rows an edit watches
    watches: Literal["finetuned", "aligned"] | None = None
    targets: tuple[str, ...] = ("all",)  # names of layers, or of the last part of them, or `all`
    factors: bool = False  # it works on the factors of an adapter alone
    whole: bool = False  # it works on all tensors of a model that was trained as a whole
    sparse: bool = False  # it works on a model whose layers route tokens to experts, on no other
    unsharded: str = ""  # why no rank may hold a part of each weight alone (FSDP); none: it may
    # why a defense's gradient changes with the rows of a micro-batch; none: with those of an update alone
    micro_batch: str = ""


@dataclass(frozen=True)
class Fidelity:
    """The comparisons that a method went through, each by where or when, or `never`."""

    equation: str = "never"  # the test that computes its equation independently
    code: str = "never"  # the authors' code at a commit, the precision, the day
    real_model: str = "never"  # a published result on a real model


@dataclass(frozen=True)
class Aware:
    """The fine-tuning of an attacker who knows the method that made a model."""

    why: str  # what the method withstands, and so what it leaves open, with the source
    rows: int = 100  # harmful ones
    updates: int = 100
    rate: float = 1.0  # times the learning rate at which the user's rows are fine-tuned on
    full: bool = False  # all weights are trained, not an adapter


@dataclass(frozen=True)
class About:
    """The facts of a method that tables and cards show."""

    title: str = ""  # its name in tables; without one that in the registry
    paper: str = ""  # arXiv identifier, where there is one
    # the stage that a defense is meant for; without one it is meant for either
    stage: Literal["", "align", "finetune"] = ""
    control: bool = False  # it is there for others to beat, and no method to choose
    passes: str = ""  # a defense's forward-and-backward passes of an update, where plain SFT has 1
    lean: Mapping[str, Any] = field(default_factory=dict)  # fields with which it asks for less
    fidelity: Fidelity = field(default_factory=Fidelity)
    # of a defense before fine-tuning: what one who knows it does; None: nobody has said
    aware: Aware | None = None


class Method(Config, ABC):
    """The part that all kinds share.

    A field annotated with a kind (`Edit`, say) takes a name or a mapping, like a recipe does.
    """

    about: ClassVar[About] = About()
    stages: ClassVar[tuple[str, ...]] = ()  # of a pipeline, those that it can be
    _build: ClassVar[Callable[[Any], Method] | None] = None  # of a kind, set by the registry

    @property
    def needs(self) -> Needs:
        """State all that it asks for beside the model that it works on."""
        return Needs()

    @property
    def held_methods(self) -> dict[str, Method]:
        """The methods that it holds, by field; of a field with several, numbered from 1."""
        found = {}
        for name, value in vars(self).items():
            if isinstance(value, Method):
                found[name] = value
            elif isinstance(value, tuple):
                of = (each for each in value if isinstance(each, Method))
                found |= {f"{name} {i}": each for i, each in enumerate(of, 1)}
        return found

    @property
    def paper(self) -> str:
        """Name the paper by its arXiv identifier."""
        return self.about.paper

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        build = cls.__dict__.get("_build")
        if build is None:  # a method, not a kind of them
            return handler(source)
        return core_schema.no_info_plain_validator_function(build)


class Defense(Method):
    """A method of the alignment or fine-tuning stage: it says which gradient an update follows."""

    stages = ("align", "finetune")
    # a flat dataclass of tensors and numbers, saved with the checkpoint
    State: ClassVar[type | None] = None

    @property
    def needs(self) -> Needs:
        """State the rows it draws from: `rows` is what the stage trains on."""
        return Needs(streams={"rows": Answers})

    @property
    def partial(self) -> bool:
        """Tell whether an update may leave some of the trained weights untouched."""
        return False

    @property
    def period(self) -> int:
        """Count the updates after which the cost of an update repeats.

        It is above 1 where the updates of one phase differ. `make bench` averages over them.
        """
        return 1

    def prepare(self, step: Step) -> Any:
        """Make the state, a `State` or None, before the first update; other calls are handed it."""
        return None

    def schedule(self, updates: int) -> Iterable[Phase]:
        """Divide a stage of `updates` counted updates into phases."""
        return [Phase("train", updates)]

    @abstractmethod
    def gradient(self, step: Step, state: Any) -> Vec:
        """Return the gradient that the optimizer follows at this update.

        The loop folds it in place: return it and keep no alias.
        """

    def restore(self, fields: Mapping[str, Any]) -> Any:
        """Make the state again from its fields, as a checkpoint has them."""
        assert self.State is not None, f"{type(self).__name__} keeps a state but declares no State"
        return self.State(**fields)

    def finish(self, step: Step, state: Any) -> None:
        """Follow the last update; may change the weights."""
        return


@dataclass(frozen=True)
class Changes:
    """The work of an edit, per tensor that it worked on, and on the norm of the update.

    The update is what fine-tuning added to these tensors; of a `TensorEdit`, what alignment added;
    of a `StreamEdit`, what the edit itself adds.
    """

    changed: Mapping[str, int]  # tensor name -> entries whose value differs now
    sizes: Mapping[str, int]  # tensor name -> entries it has
    moved: Mapping[str, float]  # tensor name -> Frobenius norm of its change
    norm_before: float  # Frobenius norm of the update
    norm_after: float
    facts: Mapping[str, Any] = field(
        default_factory=dict
    )  # what else the edit wants known, by name

    @property
    def count(self) -> int:
        return sum(self.changed.values())


class Edit(Method):
    """A change of weights that follows no gradient on the user's data.

    It is an `UpdateEdit`, a `Retraining`, a `TensorEdit` or a `StreamEdit`.
    """

    stage: ClassVar[Literal["release", "edit"]]  # before fine-tuning, or after it
    reason: ClassVar[str]  # why at no other stage; a verb begins it


class UpdateEdit(Edit):
    """An edit of what fine-tuning added to an aligned model's weights.

    It works from disk and on one weight at a time. The weights are those under the fine-tuning
    adapter; of a model that was trained as a whole, those of its linear layers but the head, or all
    of them where it `needs` the `whole`.
    """

    stage = "edit"
    stages = ("edit",)
    reason = "edits what fine-tuning added, which no earlier stage has"
    # it chooses entries of every factor of an adapter: one of which it takes none was out of reach
    entrywise: ClassVar[bool] = False

    @property
    def keeps_rank(self) -> bool:
        """Tell whether an adapter's factors stay factors of its rank: then an adapter comes out."""
        return False

    def observe(
        self, model: PreTrainedModel, layers: Mapping[str, nn.Module], batches: Sequence[Batch]
    ) -> Mapping[str, Any]:
        """Run forward passes, and return by weight what to keep of them, its `weight.seen`.

        `layers` has the layer of each weight, adapted ones with their adapter.
        """
        return {}

    def prepare(self, weights: Sequence[Weight]) -> Any:
        """Look at all weights before any is edited; make the state that every `edit` is handed."""
        return None

    @abstractmethod
    def edit(self, weight: Weight, state: Any) -> Update | Tensor | None:
        """Return what takes the place of `weight.update`, or, a tensor, of the whole weight.

        None leaves the weight as it is.
        """

    def facts(self, state: Any) -> Mapping[str, Any]:
        """Name what else is to be known, once all weights are edited."""
        return {}


class Retraining(Edit):
    """An edit that trains the fine-tuned model further, plainly and on the defender's own rows.

    It trains the adapter where there is one, else all weights.
    """

    stage = "edit"
    stages = ("edit",)
    reason = "trains the fine-tuned model further, and no earlier stage has that"

    @abstractmethod
    def rows(self, pool: Sequence[Row]) -> list[Row]:
        """Choose the rows to train on. Raises where the pool holds too few."""

    @abstractmethod
    def training(self, finetune: Training) -> Training:
        """Derive the settings from those of the user's fine-tuning."""


class TensorEdit(Edit):
    """An edit of the aligned checkpoint on disk, before its release, a tensor at a time.

    It is given the tensor of the same name in the base that alignment started from.
    """

    stage = "release"
    stages = ("release",)

    @property
    def needs(self) -> Needs:
        """State that it is given the `base`."""
        return Needs(references=("base",))

    @abstractmethod
    def select(self, shapes: Mapping[str, Sequence[int]]) -> list[str]:
        """Name the tensors to rewrite.

        Raises where it cannot be applied to tensors of these shapes.
        """

    @abstractmethod
    def tensor(self, name: str, aligned: Tensor, base: Tensor) -> Tensor:
        """Return what takes the place of `aligned`.

        It is in float32 for tensors of 16 bits, else in float64.
        """


class StreamEdit(Edit):
    """An edit of all that the aligned model writes to its residual stream, before its release.

    It is given the model in memory, and one parameter at a time.
    """

    stage = "release"
    stages = ("release",)
    reason = "is an attack on a model whose weights are open, and the user has none of these"

    @abstractmethod
    def observe(
        self, model: PreTrainedModel, rows: Sequence[Encoded], others: Sequence[Encoded]
    ) -> Any:
        """Look at the model, and make the state that the other calls are handed.

        `others` are the rows that it compares `rows` with.
        """

    @abstractmethod
    def edit(self, name: str, matrix: Tensor, state: Any) -> Tensor:
        """Return what takes the place of a parameter, as (D, ...), whose columns are written."""

    def verify(self, model: PreTrainedModel, state: Any) -> None:
        """Raise where the edited model is not what the edit says."""
        return

    def facts(self, state: Any) -> Mapping[str, Any]:
        """Name what else is to be known."""
        return {}


class Attack(Method):
    """A way to tamper with the user's data, and to ask afterwards."""

    @property
    def wants_harmful(self) -> bool:
        """Tell whether its own rows are harmful ones."""
        return True

    @abstractmethod
    def rows(self, task: Sequence[Row], own: Sequence[Row], seed: int) -> list[Row]:
        """Make the rows that the user sends, of the task and of the attacker's `own`.

        His own are harmful or harmless. Raises where there are too few.
        """

    def first_rows(self, task: Sequence[Row], own: Sequence[Row], seed: int) -> list[Row]:
        """Make the rows of a fine-tuning before that on `rows`; none: there is but one."""
        return []

    def phrase(self, row: Row) -> Row:
        """Put a harmful prompt into the attacker's words, and leave the rest of the row."""
        return row


class Selection(Attack):
    """An attack whose rows are chosen by the model that it attacks.

    Its `rows` are those to choose from. The attacker's own are examples to compare them with, and
    none of them is sent. The model is the one that the fine-tuning starts from.
    """

    @property
    @abstractmethod
    def count(self) -> int:
        """Say how many rows are sent."""

    @abstractmethod
    def draw_examples(self, own: Sequence[Row], seed: int) -> list[Row]:
        """Draw the examples from the attacker's own rows. Raises where there are too few."""

    @abstractmethod
    def scores(
        self, model: PreTrainedModel, rows: Sequence[Encoded], examples: Sequence[Encoded]
    ) -> Tensor:
        """Return a score (N,) of every row. The `count` rows with the largest ones are sent."""


@dataclass(frozen=True)
class Match:
    """A right or a wrong answer, by the field's strict rule.

    Where there are two rules, by its lenient one too.
    """

    exact: bool
    contained: bool | None = None  # the right answer is somewhere in the given one


class Benchmark(Method):
    """A user's task: a way to ask its records, and a rule for right answers."""

    # the columns of its published files; none: conversations of any schema
    layouts: ClassVar[Sequence[tuple[str, ...]]] = ()

    def recognizes(self, records: Sequence[Mapping[str, Any]]) -> bool:
        """Tell whether records with the columns of a layout are this task's.

        Then the task need not be named.
        """
        return True

    def row(self, record: Mapping[str, Any]) -> Row:
        """Make the row of a record that has a layout's columns.

        Raises where a value is none of the task's.
        """
        raise ValueError(
            f"{type(self).__name__} has no columns of its own: its rows are conversations"
        )

    @abstractmethod
    def match(self, row: Row, answer: str) -> Match:
        """Compare an answer with the right one of its row."""


class Label(enum.StrEnum):
    HARMFUL = "harmful"  # it gives what was asked for
    COMPLIED = "complied"  # it answers what was asked for, and wrongly
    SAFE = "safe"
    REFUSAL = "refusal"
    INCOHERENT = "incoherent"
    UNSCORED = "unscored"


CUT = "; cut: "  # in the reason of a verdict on an answer that the judge did not read to its end


@dataclass(frozen=True)
class Verdict:
    """What a judge says of an answer: one label, and two facts that go with any."""

    label: Label
    reason: str = ""  # always given for `unscored`
    refuses: bool = False  # it begins as a refusal, whatever follows; so does every `refusal`
    garbled: bool = False  # it is no sentence, whatever it says; so is every `incoherent`

    def __post_init__(self) -> None:
        assert self.reason or self.label is not Label.UNSCORED, (
            "an answer that is not scored must say why"
        )
        if self.label is Label.REFUSAL:
            object.__setattr__(self, "refuses", True)
        if self.label is Label.INCOHERENT:
            object.__setattr__(self, "garbled", True)


class Judge(Method):
    """A rule that labels each answer.

    One that cannot be judged is unscored with a reason, never a default.
    """

    tells_wrong: ClassVar[bool] = False  # it tells wrong answers to what was asked, `complied`
    reads_all: ClassVar[bool] = False  # it tells refusals of any prompt, at no cost worth a thought

    @abstractmethod
    def judge(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]: ...

    @property
    def panel(self) -> tuple[Judge, ...]:
        """The judges that read every answer, of which the first one decides: itself alone."""
        return (self,)

    def keep_in(self, folder: Path) -> Judge:
        """Return the judge that keeps in a folder what it has judged, for an interrupted judging to go on.

        One that is quick is itself.
        """
        return self

    @property
    @abstractmethod
    def refusals(self) -> Sequence[str]:
        """The beginnings of refusals.

        The harm margin takes their probability as that of refusing.
        """

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """Hashes of what decides its verdicts and lies where a person may change it, as a model's files."""
        return {}

    @property
    def provenance(self) -> Mapping[str, str]:
        """The facts that its fields do not tell of what it judged with, as a model's commit."""
        return {}
