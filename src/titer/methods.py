"""Read first: what a defense, an edit, an attack and a judge are. A method is a frozen dataclass that implements one of them.

The fields of a method are its hyperparameters, with the paper's defaults; the folder it lies in is its registry
(`titer list`). A method is final: a variant is a field, a combination is a field that holds another method.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from titer.config import Config
from titer.training.settings import Phase

if TYPE_CHECKING:  # listing methods imports nothing heavy
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from titer.data.batches import Batch
    from titer.data.rows import Row
    from titer.training.settings import Training
    from titer.training.step import Step
    from titer.training.vector import Vec
    from titer.weights.finetuned import Weight
    from titer.weights.update import Update


class Method(Config, ABC):
    """What all kinds share. A field annotated with a kind (`Edit`, say) takes a name or a mapping, like a recipe does."""

    paper: ClassVar[str]  # arXiv identifier

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        from titer import registry

        kind = next((kind for kind, base in registry.KINDS.items() if base is cls), None)
        if kind is None:
            return handler(source)
        return core_schema.no_info_plain_validator_function(
            lambda config: registry.build(kind, config)
        )


class Kind(enum.StrEnum):
    """What the rows of a stream are, which says where a recipe finds them."""

    ANSWERS = "answers"  # prompts with the answers to learn: what the stage trains on
    REFUSALS = (
        "refusals"  # alignment rows: harmful prompts with refusals, benign prompts with answers
    )
    HARMFUL = "harmful"  # harmful prompts with harmful answers, the defender's own
    PAIRS = "pairs"  # alignment rows, with the defender's harmful answer beside a refusal of the same prompt
    HELD_OUT = "held-out harmful"  # a fifth of the defender's prompts, with both answers where there are two; `harmful` then lacks them
    PROMPTS = "prompts"  # prompts to be answered by a model under evaluation; an answer may be known or not


Answers, Refusals, Harmful, Pairs, HeldOut, Prompts = Kind


class Defense(Method):
    """A training-time method, of the alignment or the fine-tuning stage: it says which gradient an update follows."""

    streams: ClassVar[Mapping[str, Kind]] = {"rows": Answers}  # "rows" is what the stage trains on
    State: ClassVar[type | None] = (
        None  # a flat dataclass of tensors and numbers, saved with the checkpoint
    )
    reference: ClassVar[bool] = (
        False  # whether it asks for `step.reference()`, which keeps a copy of the trained weights
    )

    @property
    def period(self) -> int:
        """Updates after which the cost of an update repeats, where those of one phase differ: `make bench` averages over them."""
        return 1

    def prepare(self, step: Step) -> Any:
        """Called once, before the first update; what it returns is handed to every other call. `State` or None."""
        return None

    def schedule(self, updates: int) -> Iterable[Phase]:
        """The phases of a stage of `updates` counted updates."""
        return [Phase("train", updates)]

    @abstractmethod
    def gradient(self, step: Step, state: Any) -> Vec:
        """The gradient that the optimizer follows at this update. The loop folds it in place: return it and keep no alias."""

    def restored(self, fields: Mapping[str, Any]) -> Any:
        """The state from its fields, as a checkpoint has them."""
        assert self.State is not None, f"{type(self).__name__} keeps a state but declares no State"
        return self.State(**fields)

    def finish(self, step: Step, state: Any) -> None:
        """Called once, after the last update; may change the weights."""
        return


@dataclass(frozen=True)
class Changes:
    """What an edit did, per tensor that it worked on, and to the norm of the update that it works on.

    That is what fine-tuning added to these tensors; of a `TensorEdit`, what alignment added.
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
    """A change of weights that follows no gradient on the user's data: an `UpdateEdit`, a `Retraining` or a `TensorEdit`."""

    stage: ClassVar[
        Literal["release", "edit"]
    ]  # between alignment and fine-tuning, or after fine-tuning
    reason: ClassVar[str]  # why at no other stage; a verb begins it

    @property
    def data(self) -> Kind | None:
        """The rows of the defender's that it needs."""
        return None

    @property
    def references(self) -> Sequence[str]:
        """Other models that it asks for beside the aligned one: the `base`; the aligned one trained on `safe` or `unsafe` rows."""
        return ()


class UpdateEdit(Edit):
    """An edit of what fine-tuning added to an aligned model's weights, from disk and one weight at a time.

    The weights are those under the fine-tuning adapter; of a model that was trained as a whole, those of its linear layers but the head.
    """

    stage = "edit"
    reason = "edits what fine-tuning added, which no earlier stage has"

    @property
    def everything(self) -> bool:
        """Whether it works on all tensors of a model that was trained as a whole."""
        return False

    @property
    def targets(self) -> Sequence[str]:
        """Names of layers, or of the last part of them, or `all`."""
        return ("all",)

    @property
    def forwards(self) -> Literal["finetuned", "aligned"] | None:
        """Whose forward passes over the calibration rows it watches."""
        return None

    @property
    def needs_factors(self) -> bool:
        """Whether it works on the factors of an adapter alone."""
        return False

    @property
    def keeps_rank(self) -> bool:
        """Whether the factors of an adapter stay factors of its rank, so that an adapter comes out. Else a whole model does."""
        return False

    def seen(
        self, model: PreTrainedModel, layers: Mapping[str, nn.Module], batches: Sequence[Batch]
    ) -> Mapping[str, Any]:
        """What it keeps of the forward passes, by weight; `layers` has the layer of each weight, adapted ones with their adapter."""
        return {}

    def plan(self, weights: Sequence[Weight]) -> Any:
        """A first look at all weights, before any is edited; what it returns is handed to every `edited`."""
        return None

    @abstractmethod
    def edited(self, weight: Weight, plan: Any) -> Update | Tensor | None:
        """The update that takes the place of `weight.update`, or the value that takes the place of the whole weight; None leaves it."""

    def told(self, plan: Any) -> Mapping[str, Any]:
        """What it wants known of a first look."""
        return {}


class Retraining(Edit):
    """An edit that trains the fine-tuned model further, plainly and on the defender's own rows: its adapter, or all its weights."""

    stage = "edit"
    reason = "trains the fine-tuned model further, and no earlier stage has that"

    @abstractmethod
    def rows(self, pool: Sequence[Row]) -> list[Row]:
        """The rows to train on. Raises where the pool holds too few."""

    @abstractmethod
    def training(self, finetune: Training) -> Training:
        """How, given how the user's fine-tuning went."""


class TensorEdit(Edit):
    """An edit of a checkpoint on disk, a tensor at a time, by the tensor of the same name in the base that alignment started from."""

    @abstractmethod
    def chosen(self, shapes: Mapping[str, Sequence[int]]) -> list[str]:
        """The names of the tensors that it rewrites. Raises where it cannot be applied to tensors of these shapes."""

    @abstractmethod
    def tensor(self, name: str, aligned: Tensor, base: Tensor) -> Tensor:
        """What takes the place of `aligned`; in float32 for tensors of 16 bits, else in float64."""


class Attack(Method):
    """How the user's data are tampered with, and how the attacker then asks."""

    @property
    def wants_harmful(self) -> bool:
        """Whether its own rows are harmful ones."""
        return True

    @abstractmethod
    def rows(self, task: Sequence[Row], own: Sequence[Row], seed: int) -> list[Row]:
        """The rows that the user sends: of the task, and of the attacker's own, harmful or else harmless requests.

        Raises where there are too few.
        """

    def asked(self, row: Row) -> Row:
        """A held-out harm prompt as the attacker asks it."""
        return row


@dataclass(frozen=True)
class Match:
    """Whether an answer is right: by the field's strict rule, and by the lenient one where there are two."""

    exact: bool
    contained: bool | None = None  # the right answer is somewhere in the given one


class Benchmark(Method):
    """A user's task: how its records are asked, and when an answer is right."""

    layouts: ClassVar[
        Sequence[tuple[str, ...]]
    ] = ()  # the columns of its published files; none: conversations of any schema

    def recognizes(self, records: Sequence[Mapping[str, Any]]) -> bool:
        """Whether records with the columns of a layout are this task's, so that it need not be named."""
        return True

    def row(self, record: Mapping[str, Any]) -> Row:
        """The row of a record that has the columns of a layout. Raises where a value is none of the task's."""
        raise ValueError(
            f"{type(self).__name__} has no columns of its own: its rows are conversations"
        )

    @abstractmethod
    def match(self, row: Row, answer: str) -> Match:
        """Compare an answer with the right one of its row."""


class Label(enum.StrEnum):
    HARMFUL = "harmful"
    SAFE = "safe"
    REFUSAL = "refusal"
    INCOHERENT = "incoherent"
    UNSCORED = "unscored"


CUT = "; cut: "  # in the reason of a verdict on an answer that the judge did not read to its end


@dataclass(frozen=True)
class Verdict:
    label: Label
    reason: str = ""  # always given for `unscored`

    def __post_init__(self) -> None:
        assert self.reason or self.label is not Label.UNSCORED, (
            "an answer that is not scored must say why"
        )


class Judge(Method):
    """Says of each answer what it is. An answer that cannot be judged is unscored with a reason, never a default."""

    @abstractmethod
    def judge(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]: ...

    @property
    @abstractmethod
    def refusals(self) -> Sequence[str]:
        """How a refusal begins: the texts whose probability the harm margin takes as that of refusing."""

    @property
    def provenance(self) -> Mapping[str, str]:
        """What its fields do not tell of what it judged with, such as the commit of a model."""
        return {}
