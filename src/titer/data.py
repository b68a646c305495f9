"""Conversations to tokens with a loss mask, and the seeded streams that a stage draws its batches from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

IGNORED = -100  # a label that carries no loss


@dataclass(frozen=True)
class Row:
    """One turn: what the user says and what the model should answer."""

    prompt: str
    response: str


def read_jsonl(path: Path) -> list[Row]:
    """Rows of a JSON-lines file of objects with the texts `prompt` and `response`; other keys are passed over."""
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: a JSON text may hold U+2028
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error.msg})") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path}:{number}: not an object with 'prompt' and 'response'")
        for key in ("prompt", "response"):
            if not isinstance(record.get(key), str):
                raise ValueError(f"{path}:{number}: no text {key!r}; the keys found are {', '.join(map(repr, record)) or 'none'}")
        if not record["response"].strip():
            raise ValueError(f"{path}:{number}: the response is empty; a row without an answer trains nothing")
        rows.append(Row(record["prompt"], record["response"]))
    if not rows:
        raise ValueError(f"{path}: holds no rows")
    return rows


def digest(rows: Iterable[Row]) -> str:
    """SHA-256 over prompts and responses, in order."""
    hasher = hashlib.sha256()
    for row in rows:
        hasher.update(json.dumps([row.prompt, row.response]).encode())
    return hasher.hexdigest()


def identity(prompt: str) -> str:
    """What makes two prompts the same: their words, however they are spaced or capitalized."""
    return " ".join(prompt.lower().split())


def check_disjoint(roles: Mapping[str, Sequence[Row]], but: tuple[str, str] | None = None) -> None:
    """Raise where two roles share a prompt, unless they are the pair `but`."""
    prompts = {role: {identity(row.prompt): row.prompt for row in rows} for role, rows in roles.items()}
    for (a, first), (b, second) in combinations(prompts.items(), 2):
        if (a, b) == but:
            continue
        shared = [first[key] for key in first if key in second]
        if shared:
            example = shared[0] if len(shared[0]) <= 60 else shared[0][:60] + "..."
            raise ValueError(f"{a!r} and {b!r} share {len(shared)} prompts, e.g. {example!r}: take them out of one of the two")


@dataclass(frozen=True)
class Encoded:
    """A row as tokens; `ids[answer:]` carries the loss."""

    ids: tuple[int, ...]
    answer: int
    cut: int = 0  # prompt tokens dropped at the front to fit the length


@dataclass(frozen=True)
class Template:
    """The tokenizer's own chat template.

    Prompt and answer are tokenized apart, as they are when the model answers: no merge straddles the border, so the
    answer's first token is the one that generation has to produce.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int = 512  # tokens of prompt and answer together

    def prompt(self, prompt: str) -> str:
        return str(self.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True))

    def prompt_ids(self, prompt: str) -> list[int]:
        return self._ids(self.prompt(prompt))

    def answer_ids(self, row: Row, ended: bool = True) -> list[int]:
        """The answer with its end-of-turn token, or only its beginning: the text without what the template puts behind it."""
        turns = [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.response}]
        both, prompt = str(self.tokenizer.apply_chat_template(turns, tokenize=False)), self.prompt(row.prompt)
        text = both.removeprefix(prompt).rstrip()
        if text == both.rstrip() or row.response.strip() not in text:
            raise ValueError(
                "the chat template renders a conversation that is not its generation prompt followed by the answer, "
                f"so the two cannot be told apart: {both[:80]!r}"
            )
        if not ended:
            return self._ids(text[: text.index(row.response.strip()) + len(row.response.strip())])
        ids = self._ids(text)
        return ids if ids[-1] in self.tokenizer.all_special_ids else [*ids, self.tokenizer.eos_token_id]

    def encode(self, row: Row) -> Encoded:
        prompt, answer = self.prompt_ids(row.prompt), self.answer_ids(row)
        cut = max(0, len(prompt) + len(answer) - self.max_length)
        if cut >= len(prompt):
            raise ValueError(f"an answer of {len(answer)} tokens leaves no room for its prompt within max_length={self.max_length}")
        return Encoded((*prompt[cut:], *answer), len(prompt) - cut, cut)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class Part:
    """A micro-batch: `ids`, `mask`, `labels` are (B, T); pads on the right, `labels` ignored but on answer tokens."""

    ids: Tensor
    mask: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Batch:
    """The rows of one update from one stream: this rank's micro-batches, and the answer tokens of all ranks' together."""

    stream: str
    parts: tuple[Part, ...]
    tokens: int


def collate(rows: Sequence[Encoded], pad: int, device: torch.device | str = "cpu") -> Part:
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), pad)  # (B, T)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED)
    for i, row in enumerate(rows):
        end = len(row.ids)
        ids[i, :end] = torch.tensor(row.ids)
        mask[i, :end] = 1
        labels[i, row.answer : end] = ids[i, row.answer : end]
    return Part(ids.to(device), mask.to(device), labels.to(device))


@dataclass
class Stream:
    """Rows in an endless seeded order: every epoch is a permutation of all rows, and `position` says where it stands."""

    name: str
    rows: Sequence[Encoded]
    seed: int
    position: int = 0
    _order: tuple[int, list[int]] = field(default=(-1, []), repr=False)  # the epoch and its permutation

    def take(self, count: int) -> list[Encoded]:
        taken = []
        for place in range(self.position, self.position + count):
            epoch, index = divmod(place, len(self.rows))
            taken.append(self.rows[self._permutation(epoch)[index]])
        self.position += count
        return taken

    def _permutation(self, epoch: int) -> list[int]:
        if self._order[0] != epoch:
            seed = hashlib.sha256(f"{self.seed} {self.name} {epoch}".encode()).digest()[:8]
            generator = torch.Generator().manual_seed(int.from_bytes(seed, "big") >> 1)
            self._order = (epoch, torch.randperm(len(self.rows), generator=generator).tolist())
        return self._order[1]
