"""Batched greedy answers.

Greedy means that the likeliest token comes next, whatever a checkpoint's own generation settings
say: those of many chat models ask for penalties on repetition, for sampling or for beams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from titer.attributes import swap
from titer.data.batches import by_length
from titer.data.rows import Answer, Row, split_thought
from titer.data.template import Template
from titer.training.memory import halve_answers, is_out_of_memory
from titer.training.ranks import ALONE, Ranks
from titer.training.settings import Watch, unwatched

# every setting of `generate` that changes what is answered; one that is left out would be filled in
# from the checkpoint's
GREEDY: Mapping[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "bad_words_ids": None,
    "sequence_bias": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": None,
    "stop_strings": None,
    "max_time": None,
}


class Engine(Protocol):
    """What generates answers: `complete` below, in batches, or another one (`engines.ENGINES`)."""

    def __call__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        config: GenerationConfig,
        batch: int = 128,
        say: Callable[[str], None] = lambda _: None,
        watch: Watch = unwatched,
        ranks: Ranks = ALONE,
    ) -> list[list[int]]:
        """Return the greedy tokens behind every prompt, in their order, up to an answer's end."""


def answer(
    model: PreTrainedModel,
    template: Template,
    rows: Sequence[Row],
    max_new_tokens: int,
    batch: int = 128,
    say: Callable[[str], None] = lambda _: None,
    watch: Watch = unwatched,
    ranks: Ranks = ALONE,
    engine: Engine | None = None,
) -> list[Answer]:
    """Return the greedy answer to every row's prompt, in the order of the rows.

    Prompts are completed by an engine, without one by `complete`. A thought is kept apart from the
    answer behind it.
    """
    config = greedy(model, template.ends, template.tokenizer.pad_token_id, max_new_tokens)
    prompts = [template.prompt_ids(row, max_new_tokens) for row in rows]
    answers = []
    completed = (engine or complete)(model, prompts, config, batch, say, watch, ranks)
    for row, tokens in zip(rows, completed, strict=True):
        ended = tokens[-1] in config.eos_token_id
        said = template.text(row, tokens[:-1] if ended else tokens)
        thought, text = split_thought(said)
        answers.append(Answer(text, ended, thought))
    return answers


def greedy(
    model: PreTrainedModel, ends: Iterable[int], pad: int, max_new_tokens: int
) -> GenerationConfig:
    """Make the settings of greedy answers, which end with one of `ends` or of the checkpoint's own
    tokens for it.
    """
    return GenerationConfig(
        **GREEDY,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted({*ends, *_ends(model)}),
        pad_token_id=pad,
    )


def complete(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    batch: int = 128,
    say: Callable[[str], None] = lambda _: None,
    watch: Watch = unwatched,
    ranks: Ranks = ALONE,
) -> list[list[int]]:
    """Return the greedy tokens behind every prompt, in their order. One that ends an answer is kept.

    Batches of prompts of like length are planned at the start, padded on the left. If a batch does
    not fit into memory, it and all that follow are halved, and `say` is told. `watch` is told of
    every token how many answers are done. In float32 the answers do not depend on the size of a
    batch.

    Ranks divide the batches among them, and each has all answers in the end. What `say` and `watch`
    are told is of this rank's.
    """
    plan = ranks.share(by_length([len(prompt) for prompt in prompts], batch))
    count = sum(map(len, plan))
    answers: dict[int, list[int]] = {}
    while plan:
        chosen = plan[0]
        try:
            counter = _Count(watch, len(answers), count)
            asked = [prompts[i] for i in chosen]
            generated = _generate(model, asked, config, counter, ranks.sharded)
        except RuntimeError as error:
            # where weights are sharded, the other ranks are in the midst of this batch
            if len(chosen) == 1 or ranks.sharded or not is_out_of_memory(error):
                raise
            size = halve_answers(len(chosen), say)
            plan = [
                each[start : start + size] for each in plan for start in range(0, len(each), size)
            ]
            continue
        for i, tokens in zip(chosen, generated, strict=True):
            ends = (at for at, token in enumerate(tokens, 1) if token in config.eos_token_id)
            answers[i] = tokens[: next(ends, len(tokens))]
        plan = plan[1:]
        watch(len(answers), count, {})
    answers = ranks.join(answers)
    return [answers[i] for i in range(len(prompts))]


class _Count(StoppingCriteria):
    """Counts the tokens of a batch's answers, and stops nothing."""

    def __init__(self, watch: Watch, done: int, of: int) -> None:
        self.watch, self.done, self.of, self.tokens = watch, done, of, 0

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.tokens += 1
        self.watch(self.done, self.of, {"token": self.tokens})
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    count: StoppingCriteria,
    sharded: bool,
) -> list[list[int]]:
    """Generate the tokens that follow each prompt, with pads behind their end.

    With shards, a rank whose answers have ended makes passes for as long as any other does.
    """
    pad, length = cast(int, config.pad_token_id), max(len(prompt) for prompt in prompts)
    # (B, T)
    ids = torch.tensor([[pad] * (length - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    # else the model's own settings would fill what is left unset
    with torch.no_grad(), swap(model, "generation_config", config):
        out: Tensor = cast(Any, model).generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([count]),
            synced_gpus=sharded,
        )
    return cast(list[list[int]], out[:, length:].tolist())


def _ends(model: PreTrainedModel) -> list[int]:
    """Return the tokens that end an answer by the checkpoint's generation settings."""
    value: Any = cast(Any, model).generation_config.eos_token_id
    values = value if isinstance(value, list | tuple) else [value]
    return [token for token in values if isinstance(token, int) and not isinstance(token, bool)]
