"""Methods that hold another method: what both need, and what is passed on to the held one.

    Composed(Defense)            adds to the gradient that another defense follows
    Matched(UpdateEdit)          is measured against another edit of the update
    MatchedTensors(TensorEdit)   is measured against another edit before release
    MatchedStream(StreamEdit)    is measured against another edit of what is written

A method that holds another is one of these, and implements what it does itself. A `Composed` states
in `own` what it asks for itself. A combination without a meaning is refused in `__post_init__`;
that of a `Composed` first calls its base's, which refuses streams that contradict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from titer.methods import (
    Answers,
    Defense,
    Kind,
    Method,
    Needs,
    Pairs,
    Refusals,
    StreamEdit,
    TensorEdit,
    UpdateEdit,
)
from titer.phase import Phase

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from titer.data.batches import Batch
    from titer.training.step import Step

# kinds of the rows that a stage trains on: each serves who asks for one before it
SPECIFIC = (Answers, Refusals, Pairs)


class Composed(Defense):
    """A defense that holds another one.

    All but the gradient is that of the held one, where it is not overridden. Its needs are those of
    both.
    """

    own: ClassVar[Needs] = Needs(streams={"rows": Answers})  # what it asks for itself

    def __post_init__(self) -> None:
        merge_streams(self, self.held)  # raises where the two cannot be had together

    @property
    def held(self) -> Defense:
        held: Defense = find_held(self, Defense)
        return held

    @property
    def needs(self) -> Needs:
        theirs = self.held.needs
        references = tuple(dict.fromkeys([*self.own.references, *theirs.references]))
        sparse = self.own.sparse or theirs.sparse
        return Needs(
            merge_streams(self, self.held),
            references=references,
            sparse=sparse,
            unsharded=self.own.unsharded or theirs.unsharded,
            micro_batch=self.own.micro_batch or theirs.micro_batch,
        )

    @property
    def partial(self) -> bool:
        return self.held.partial

    @property
    def period(self) -> int:
        return self.held.period

    def prepare(self, step: Step) -> Any:
        return self.held.prepare(step)

    def schedule(self, updates: int) -> Iterable[Phase]:
        return self.held.schedule(updates)

    def restore(self, fields: Mapping[str, Any]) -> Any:
        return self.held.restore(fields)

    def finish(self, step: Step, state: Any) -> None:
        self.held.finish(step, state)


class Matched(UpdateEdit):
    """An edit of the update that holds another one. It asks for what that one asks for."""

    watching: ClassVar[bool] = True  # False: it takes no look at rows, as the held one may do

    @property
    def held(self) -> UpdateEdit:
        held: UpdateEdit = find_held(self, UpdateEdit)
        return held

    @property
    def needs(self) -> Needs:
        needs = self.held.needs
        return needs if self.watching else replace(needs, rows=None, watches=None)

    @property
    def keeps_rank(self) -> bool:
        return self.held.keeps_rank

    def observe(
        self, model: PreTrainedModel, layers: Mapping[str, nn.Module], batches: Sequence[Batch]
    ) -> Mapping[str, Any]:
        return self.held.observe(model, layers, batches) if self.watching else {}


class MatchedTensors(TensorEdit):
    """An edit before release that holds another one, and rewrites the same tensors."""

    @property
    def held(self) -> TensorEdit:
        held: TensorEdit = find_held(self, TensorEdit)
        return held

    @property
    def needs(self) -> Needs:
        return self.held.needs

    def select(self, shapes: Mapping[str, Sequence[int]]) -> list[str]:
        return self.held.select(shapes)


class MatchedStream(StreamEdit):
    """An edit of what is written that holds another one. It looks at the same rows."""

    @property
    def held(self) -> StreamEdit:
        held: StreamEdit = find_held(self, StreamEdit)
        return held

    @property
    def needs(self) -> Needs:
        return self.held.needs


def find_held(method: Method, kind: type) -> Any:
    """Find the one method among the fields of another. Raises where it is none of the kind."""
    [(name, held)] = method.held_methods.items()
    if not isinstance(held, kind):
        raise ValueError(
            f"{name}={type(held).__name__}: {type(method).__name__} takes a method of the kind "
            f"{kind.__name__}"
        )
    return held


def merge_streams(method: Composed, held: Defense) -> dict[str, Kind]:
    """Put together the streams of a composed method and of the one that it holds.

    Of what the stage trains on the more specific kind is taken. Raises where they mean different
    rows by one name.
    """
    merged = dict(method.own.streams)
    for name, theirs in held.needs.streams.items():
        ours = merged.setdefault(name, theirs)
        if name == "rows" and {ours, theirs} <= set(SPECIFIC):
            merged[name] = max(ours, theirs, key=SPECIFIC.index)
        elif ours is not theirs:
            raise ValueError(
                f"{type(method).__name__} draws {ours.value} rows from its stream {name!r}, and "
                f"{type(held).__name__}, which it holds, {theirs.value} rows: "
                "they cannot be combined; hold another method"
            )
    return merged


COMPOSITIONS: tuple[type[Method], ...] = (Composed, Matched, MatchedTensors, MatchedStream)
