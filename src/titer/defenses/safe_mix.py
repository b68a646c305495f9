"""Safe mix (arXiv 2309.07875): fine-tune on the user's rows and on safety rows among them.

    w <- w - eta grad u(w),    u over a batch of which a `share` are safety rows

The safety rows are

* given (source="given"): the defender's alignment rows, as SafeInstr adds them to the user's, and VLGuard;
* self-generated (source="self", arXiv 2603.10243): the prompts of `count` alignment rows, with what the model
  that the stage begins with answers to them. Its own refusals and answers keep its manner, which rows of
  another's teach it to leave. It answers greedily, once, before the first update, in at most `length` tokens;
  one that does not end is learned as far as it goes.

A share of less than a row in a batch adds up: after any number of updates, the safety rows are that share of
all rows, to the nearest one. u is the mean over the answer tokens of both. share=0 is SFT.

With given rows it is Lisa's null, for its turns to beat. As many alignment rows are seen as by Lisa (arXiv
2405.18641) with K1 / (K1 + K2) = share, in the same order, and as many of the user's; but every update has
both, there are no turns, and nothing holds the weights near any place. What the alignment rows do by being
trained on, this does too.

Departures:
1. SafeInstr trains in epochs over the union of the rows, a stage that is the longer for it. Here the stage
   has as many updates as SFT, and the safety rows take the place of some of the user's.
2. There is a loss on the answers alone; SafeInstr's code has one on prompts too.
3. GR-SAP has the model write the prompts too, lets a judge drop harmful answers, and revises others. Here the
   prompts are those of the alignment rows, and every answer is kept: where the model that the stage begins
   with does not refuse, it is taught not to.
4. Some code adds a second loss, f + lambda a, of two batches an update. Here it is one batch.

Rows chosen by the gap of their perplexity between an aligned and a misaligned model (arXiv 2508.06249) are no
source here: a stage has the model that it begins with, and no misaligned one. One could only be made by an
attack within the stage, whose length and rate would then decide which rows are chosen.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from titer.data.batches import Encoded
from titer.methods import About, Answers, Defense, Fidelity, Needs, Refusals
from titer.scoring.generate import complete, greedy
from titer.training.losses import pad_of
from titer.training.step import Step
from titer.training.vector import Vec
from titer.weights.checkpoints import learned_positions


@dataclass
class OwnAnswers:
    """Prompts of alignment rows, with the answers of the model that the stage began with."""

    ids: list[list[int]]  # tokens of a prompt and its answer
    answers: list[int]  # where in them the answer begins

    @cached_property
    def rows(self) -> list[Encoded]:
        """The same as rows."""
        return [
            Encoded(tuple(ids), answer) for ids, answer in zip(self.ids, self.answers, strict=True)
        ]


@dataclass(frozen=True)
class SafeMix(Defense):
    """Plain fine-tuning with safety rows mixed in (Bianchi et al., arXiv 2309.07875), and Lisa's null."""

    share: float = 0.1  # of the rows of the stage that are safety rows: K1 / (K1 + K2) of Lisa
    source: Literal["given", "self"] = "given"  # whose answers the safety rows have
    count: int = 500  # prompts that the model answers itself; all, where there are no more
    length: int = 128  # tokens of such an answer, at most
    about: ClassVar[About] = About(
        title="safe mix",
        paper="2309.07875",
        stage="finetune",
        passes="1",
        fidelity=Fidelity(equation="tests/test_safe_mix.py"),
    )
    needs = Needs(streams={"rows": Answers, "alignment": Refusals})
    State: ClassVar[type | None] = OwnAnswers

    def __post_init__(self) -> None:
        if not 0.0 <= self.share < 1.0:
            raise ValueError(
                f"share={self.share}: must be at least 0 and below 1, where no row is the user's"
            )
        for name in ("count", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")

    def prepare(self, step: Step) -> OwnAnswers | None:
        return None if self.source == "given" else self._answer(step)

    def gradient(self, step: Step, state: OwnAnswers | None) -> Vec:
        if state is not None:  # at every update, so that a resumed run has them too
            step.streams["alignment"].rows = state.rows
        g_u = step.grad(step.mix("rows", "alignment", self.share))
        step.log(f=g_u.loss)
        return g_u

    def _answer(self, step: Step) -> OwnAnswers:
        stream = step.streams["alignment"]
        given = stream.take(min(self.count, len(stream.rows)))
        prompts = [list(row.ids[: row.answer]) for row in given]
        ends = {row.ids[-1] for row in given}  # a row ends as an answer does
        length, most = self.length, learned_positions(step.model)
        if most is not None:
            length = min(length, most - max(map(len, prompts)))
        config = greedy(step.model, ends, pad_of(step.model), length)
        with step.computing():
            said = complete(step.model, prompts, config)
        own = [[*prompt, *answer] for prompt, answer in zip(prompts, said, strict=True)]
        return OwnAnswers(own, [len(prompt) for prompt in prompts])
