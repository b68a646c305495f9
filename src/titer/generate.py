"""Batched greedy answers and the log-probabilities of given ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from titer.data import IGNORED, Encoded, Template, collate


@dataclass(frozen=True)
class Answer:
    text: str
    ended: bool  # whether the model ended it, rather than the length limit


def answer(model: PreTrainedModel, template: Template, prompts: Sequence[str], max_new_tokens: int, batch: int = 128) -> list[Answer]:
    """The greedy answer to every prompt, in their order: batches of like length, padded on the left."""
    tokenizer = template.tokenizer
    ends = {tokenizer.eos_token_id, *_listed(model.generation_config.eos_token_id)}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=sorted(ends), pad_token_id=tokenizer.pad_token_id
    )
    encoded = [template.prompt_ids(prompt) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    answers: dict[int, Answer] = {}
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        length = max(len(encoded[i]) for i in chosen)
        ids = torch.tensor([[tokenizer.pad_token_id] * (length - len(encoded[i])) + encoded[i] for i in chosen])  # (B, T)
        mask = torch.tensor([[0] * (length - len(encoded[i])) + [1] * len(encoded[i]) for i in chosen])
        with torch.no_grad():
            out: Tensor = cast(Any, model).generate(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config
            )
        for i, tokens in zip(chosen, out[:, length:].tolist(), strict=True):
            end = next((at for at, token in enumerate(tokens) if token in ends), None)
            answers[i] = Answer(str(tokenizer.decode(tokens[:end], skip_special_tokens=True)).strip(), end is not None)
    return [answers[i] for i in range(len(prompts))]


def log_probabilities(model: PreTrainedModel, rows: Sequence[Encoded], batch: int = 128) -> Tensor:
    """log p(answer | prompt) of every row, summed over its answer tokens: (len(rows),), float64, in nats."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    result = torch.empty(len(rows), dtype=torch.float64)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        part = collate([rows[i] for i in chosen], 0, model.device)
        with torch.no_grad():
            logits = model(input_ids=part.ids, attention_mask=part.mask, use_cache=False).logits[:, :-1].float()  # (B, T-1, V)
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), part.labels[:, 1:], ignore_index=IGNORED, reduction="none")
        result[chosen] = -loss.double().sum(1).cpu()
    return result


def _listed(value: int | list[int] | None) -> list[int]:
    return [] if value is None else value if isinstance(value, list) else [value]
