"""From rows to tokens: the model's own chat template, or a published text template.

Only the answer has a loss. It is what the model must produce: the text that the template puts behind
its generation prompt, up to the first token that ends a turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from functools import cached_property
from typing import Self, cast

from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from titer.attributes import swap
from titer.data.batches import Encoded
from titer.data.rows import CLOSE, OPEN, Row, Turn
from titer.data.texts import TEXTS, Style
from titer.errors import cause

# what templates that write today's date are told: answers must not change from day to day
CLOCK = datetime(2024, 7, 26)


class TooLongError(ValueError):
    """Raised for a row that does not fit, though all that may be cut of its prompt is cut."""

    def __init__(self, row: Row, answer: int, max_length: int) -> None:
        self.answer = answer
        what = f"an answer of {answer} tokens" if answer else "the template"
        super().__init__(
            f"{what} leaves no room for its prompt within "
            f"max_length={max_length}: raise it, or take out "
            f"the row of {row.question[:60]!r}"
        )


@dataclass(frozen=True)
class Template:
    """The format in which a model of this tokenizer is asked and answers.

    The answer's tokens are those of the joint text where these begin with the prompt's. Where a
    merge straddles the border they are tokenized apart, as they are when the model answers.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int = 512  # tokens of prompt and answer together
    style: Style = "chat"
    system: str | None = None  # a system prompt for every row that brings none of its own
    positions: int | None = None  # that the model has learned; None: as many as are asked for

    def __post_init__(self) -> None:
        if self.style == "chat" and self.tokenizer.chat_template is None:
            raise ValueError(
                "the tokenizer has no chat template: name a text template instead, e.g. "
                f"template=alpaca, of {', '.join(TEXTS)}"
            )

    def prompt(self, row: Row) -> str:
        """Return the text before the answer, or before what is left of one that is begun.

        A text template's special tokens come on top of it.
        """
        if self.style == "chat":
            return self._generation_prompt(row) + self._header(row) + self._begun(row)
        system = self.system
        for turn in row.before:
            if turn.role != "system":
                raise ValueError(
                    f"template={self.style!r} has no place for earlier turns, as before "
                    f"{row.question[:60]!r}: use template=chat"
                )
            system = turn.content
        asked = TEXTS[self.style][bool(row.input)].format(prompt=row.prompt, input=row.input)
        return (f"{system}\n\n{asked}" if system else asked) + self._begun(row)

    def prompt_ids(self, row: Row, new: int = 0) -> list[int]:
        """Return the tokens before an answer of at most `new` tokens, cut to `max_length`.

        Raises where the template alone takes more.
        """
        room = min(self.max_length, (self.positions or self.max_length + new) - new)
        return self._fit(row, room, 0)[0]

    def answer_ids(self, row: Row, ended: bool = True) -> list[int]:
        """Return the tokens of the answer, with its end-of-turn token.

        Without `ended` they are only the beginning of an answer: the text without what the template
        puts behind it. Raises where the template does not keep prompt and answer apart.
        """
        begun = len(self._begun(row))  # what the model is given has no loss
        if self.style != "chat":
            return self._behind(row, row.response[begun:]) + [self._eos] * ended
        said, end = self._answer(row)
        said = said[begun:]
        if not ended:
            return self._behind(row, said)
        ids = self._behind(row, said + end)
        return ids if ids[-1] in self._special_ids else [*ids, self._eos]

    def encode(self, row: Row) -> Encoded:
        """Return the tokens of a row.

        Where they are too many its prompt is cut: the oldest turns, then the beginning of what it
        is about, then that of the question. Template and answer are kept. Raises where that is not
        enough.
        """
        answer = self.answer_ids(row)
        most = min(self.max_length, self.positions or self.max_length)
        prompt, cut = self._fit(row, most - len(answer), len(answer))
        other = self.encode(replace(row, response=row.other, other="")) if row.other else None
        return Encoded((*prompt, *answer), len(prompt), cut, other)

    def encode_all(self, rows: Sequence[Row], what: str) -> list[Encoded]:
        """Return the tokens of every row.

        Raises with the number of rows that do not fit, and the longest.
        """
        encoded: list[Encoded] = []
        over: list[TooLongError] = []
        for row in rows:
            try:
                encoded.append(self.encode(row))
            except TooLongError as error:
                over.append(error)
        if over:
            raise ValueError(
                f"{what}: {len(over)} of {len(rows)} rows do not fit: "
                f"{max(over, key=lambda error: error.answer)}"
            )
        return encoded

    def text(self, row: Row, answer: Sequence[int]) -> str:
        """Return the text of answer tokens, behind what the answer of the row was begun with."""
        ids = [*self._ids(row.begun), *answer] if row.begun else list(answer)
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    @cached_property
    def ends(self) -> list[int]:
        """The tokens that end an answer.

        They are the tokenizer's end of sequence, and the token that the template puts behind an
        answer.
        """
        return sorted({self._eos, self.answer_ids(Row("a", "a"))[-1]})

    def _header(self, row: Row) -> str:
        """Return the text between a chat template's generation prompt and an answer.

        An empty thought, for example, or a channel's name. It belongs to the prompt: the model is
        asked for the answer alone, in training and in generation. An answer that holds its thought
        has none before it.
        """
        return "" if CLOSE in row.response else self._empty_header

    @cached_property
    def _empty_header(self) -> str:
        row, probe = Row("How are you?"), "answer-probe"
        prompt = self._generation_prompt(row)
        if prompt.rstrip().endswith(OPEN):
            return f"\n{CLOSE}\n\n"
        both = self._render([*self._turns(row), _said(probe)], False)
        header = both.removeprefix(prompt).partition(probe)[0] if both.startswith(prompt) else ""
        # a space alone is the answer's, and in its first token
        return header if header.strip() else ""

    def _begun(self, row: Row) -> str:
        """Return the text that an answer is begun with, as the template would write it."""
        said = self._answer(row)[0] if row.begun and self.style == "chat" else row.begun
        return said[: said.index(row.begun) + len(row.begun)]

    def _generation_prompt(self, row: Row) -> str:
        if row not in self._rendered:  # asked for several times a row
            self._rendered.clear()
            turns = self._turns(row)
            self._rendered[row] = self._render(turns, True, thinking=CLOSE in row.response)
        return self._rendered[row]

    @cached_property
    def _rendered(self) -> dict[Row, str]:
        return {}

    def _answer(self, row: Row) -> tuple[str, str]:
        """Return the text of the answer, and what ends its turn."""
        said = row.response.strip()
        thinking = CLOSE in said
        asked = self._generation_prompt(row)
        both = self._render([*self._turns(row), _said(row.response)], False, thinking)
        prompt = asked + self._header(row)
        opened = asked.rstrip().endswith(OPEN)
        if opened and not both.startswith(asked):
            # what was said before comes back without its thought, as if none had been opened
            prompt = asked.rstrip().removesuffix(OPEN)
        if opened and thinking:
            said = said.partition(CLOSE)[2].strip()
        text = both.removeprefix(prompt)
        if not both.startswith(prompt) or said not in text:
            raise ValueError(
                "the chat template renders a conversation that is not its generation prompt "
                "followed by the answer, "
                f"so the two cannot be told apart: {both[:80]!r}; name a text template instead, "
                "e.g. template=alpaca"
            )
        start, end = text.index(said), text.index(said) + len(said)
        behind = text[end:]
        ends = [
            behind.index(token) + len(token) for token in self._special_tokens if token in behind
        ]
        begun = text[:end]
        if opened and thinking:
            thought = row.response.strip().removeprefix(OPEN).lstrip("\n").removesuffix(said)
            begun = thought + text[start:end]
        return begun, behind[: min(ends)] if ends else behind.rstrip()

    def _behind(self, row: Row, text: str) -> list[int]:
        """Return the tokens of a text behind the prompt of a row."""
        prompt = self.prompt(row)
        before, joint = self._ids(prompt), self._ids(prompt + text)
        if len(joint) > len(before) and joint[: len(before)] == before:
            return joint[len(before) :]
        return self._ids(text)

    def _prompt_ids(self, row: Row) -> list[int]:
        ids = self._ids(self.prompt(row))
        return ids if self.style == "chat" else [*self._start, *ids]

    def _fit(self, row: Row, room: int, answer: int) -> tuple[list[int], int]:
        """Return the tokens before an answer, at most `room`, and how many were cut for it.

        Raises where nothing that may be cut is left.
        """
        ids = self._prompt_ids(row)
        whole, shorter = len(ids), row
        while len(ids) > room:
            less = self._shorten(shorter, len(ids) - room)
            if less is None:
                raise TooLongError(row, answer, room + answer)
            shorter, ids = less, self._prompt_ids(less)
        return ids, whole - len(ids)

    def _shorten(self, row: Row, count: int) -> Row | None:
        """Drop the oldest exchange of a row, else so many tokens of its beginning."""
        earlier = [i for i, turn in enumerate(row.before) if turn.role != "system"]
        if earlier:
            users = [i for i in earlier[1:] if row.before[i].role == "user"]
            end = users[0] if users else len(row.before)
            return replace(row, before=(*row.before[: earlier[0]], *row.before[end:]))
        said = row.input or row.prompt
        ids = self._ids(said)[count:]
        if not ids and not row.input:
            return None
        # a cut through a character leaves the mark of a broken one
        text = str(self.tokenizer.decode(ids)).lstrip("\ufffd") if ids else ""
        shorter = replace(row, input=text) if row.input else replace(row, prompt=text)
        return shorter if len(text) < len(said) else None

    def _turns(self, row: Row) -> list[dict[str, str]]:
        own = any(turn.role == "system" for turn in row.before)
        system = [Turn("system", self.system)] if self.system and not own else []
        turns = [*system, *row.before, Turn("user", row.question)]
        return [{"role": turn.role, "content": turn.content} for turn in turns]

    def _render(
        self, turns: Sequence[dict[str, str]], generating: bool, thinking: bool = False
    ) -> str:
        try:
            # transformers hands templates no other clock
            with swap(chat_template_utils, "datetime", _Stopped):
                return str(
                    self.tokenizer.apply_chat_template(
                        list(turns),
                        tokenize=False,
                        add_generation_prompt=generating,
                        enable_thinking=thinking,
                    )
                )
        except Exception as error:  # a template is a program, and may fail in any way
            roles = ", ".join(turn["role"] for turn in turns)
            raise ValueError(
                f"the chat template refuses a conversation of the turns {roles}: {cause(error)}"
            ) from error

    @cached_property
    def _special_tokens(self) -> list[str]:
        added = self.tokenizer.added_tokens_decoder.values()
        marked = [token.content for token in added if token.special]
        return sorted({*marked, *self.tokenizer.all_special_tokens})

    @cached_property
    def _special_ids(self) -> set[int]:
        return {
            int(cast(int, self.tokenizer.convert_tokens_to_ids(token)))
            for token in self._special_tokens
        }

    @property
    def _eos(self) -> int:
        return int(self.tokenizer.eos_token_id)  # `checkpoints.load` has made sure of it

    @cached_property
    def _start(self) -> list[int]:
        """The tokens that the tokenizer puts before a text of its own, such as a start token."""
        whole, text = list(self.tokenizer("a")["input_ids"]), self._ids("a")
        return next((whole[:i] for i in range(len(whole)) if whole[i : i + len(text)] == text), [])

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _said(text: str) -> dict[str, str]:
    """Return an assistant's turn."""
    return {"role": "assistant", "content": text}


class _Stopped(datetime):
    """The clock that templates see: it stands at CLOCK."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return cls.combine(CLOCK, CLOCK.time(), tz)
