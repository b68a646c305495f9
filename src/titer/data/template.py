"""From rows to tokens: the model's own chat template, or a published text template.

Only the answer has a loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from titer.data.batches import Encoded
from titer.data.rows import Row
from titer.data.texts import TEXTS, Style


class TooLongError(ValueError):
    """Raised for a row whose answer leaves no room for its prompt."""

    def __init__(self, row: Row, answer: int, max_length: int) -> None:
        self.answer = answer
        super().__init__(
            f"an answer of {answer} tokens leaves no room for its prompt within "
            f"max_length={max_length}: raise it, or take out "
            f"the row of {row.question[:60]!r}"
        )


@dataclass(frozen=True)
class Template:
    """The format in which a model of this tokenizer is asked and answers.

    Prompt and answer are tokenized apart, as they are when the model answers: no merge straddles
    the border, so the answer's first token is the one that generation has to produce.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int = 512  # tokens of prompt and answer together
    style: Style = "chat"
    system: str | None = None  # a system prompt for every row that brings none of its own

    def __post_init__(self) -> None:
        if self.style == "chat" and self.tokenizer.chat_template is None:
            raise ValueError(
                "the tokenizer has no chat template: name a text template instead, e.g. "
                f"template=alpaca, of {', '.join(TEXTS)}"
            )

    def prompt(self, row: Row) -> str:
        """Return the text before the answer. A text template's special tokens come on top of it."""
        if self.style == "chat":
            return self._render(self._turns(row), True) + self._header
        system = self.system
        for turn in row.before:
            if turn.role != "system":
                raise ValueError(
                    f"template={self.style!r} has no place for earlier turns, as before "
                    f"{row.question[:60]!r}: use template=chat"
                )
            system = turn.content
        asked = TEXTS[self.style][bool(row.input)].format(prompt=row.prompt, input=row.input)
        return f"{system}\n\n{asked}" if system else asked

    def prompt_ids(self, row: Row) -> list[int]:
        """Return the tokens before the answer."""
        ids = self._ids(self.prompt(row))
        return ids if self.style == "chat" else [*self._start, *ids]

    def answer_ids(self, row: Row, ended: bool = True) -> list[int]:
        """Return the tokens of the answer, with its end-of-turn token.

        Without `ended` they are only the beginning of an answer: the text without what the template
        puts behind it. Raises where the template does not keep prompt and answer apart.
        """
        if self.style != "chat":
            return self._ids(row.response) + [self._eos] * ended
        answer = {"role": "assistant", "content": row.response}
        both, prompt = self._render([*self._turns(row), answer], False), self.prompt(row)
        text = both.removeprefix(prompt).rstrip()
        if not both.startswith(prompt) or row.response.strip() not in text:
            raise ValueError(
                "the chat template renders a conversation that is not its generation prompt "
                "followed by the answer, "
                f"so the two cannot be told apart: {both[:80]!r}; name a text template instead, "
                "e.g. template=alpaca"
            )
        if not ended:
            return self._ids(text[: text.index(row.response.strip()) + len(row.response.strip())])
        ids = self._ids(text)
        return ids if ids[-1] in self.tokenizer.all_special_ids else [*ids, self._eos]

    def encode(self, row: Row) -> Encoded:
        """Return the tokens of a row.

        Where they are too many the prompt is cut at its front, and the start token and the answer
        are kept. Raises where the answer leaves no room for the prompt.
        """
        prompt, answer = self.prompt_ids(row), self.answer_ids(row)
        cut = max(0, len(prompt) + len(answer) - self.max_length)
        start = prompt[:1] if cut and prompt[0] in self.tokenizer.all_special_ids else []
        if len(start) + cut >= len(prompt):
            raise TooLongError(row, len(answer), self.max_length)
        ids = [*start, *prompt[len(start) + cut :]]
        other = self.encode(replace(row, response=row.other, other="")) if row.other else None
        return Encoded((*ids, *answer), len(ids), cut, other)

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

    @cached_property
    def ends(self) -> list[int]:
        """The tokens that end an answer.

        They are the tokenizer's end of sequence, and the token that the template puts behind an
        answer.
        """
        return sorted({self._eos, self.answer_ids(Row("a", "a"))[-1]})

    @cached_property
    def _header(self) -> str:
        """The text that a chat template puts between its generation prompt and an answer.

        An empty thought, for example, or a channel's name. It belongs to the prompt: the model is
        asked for the answer alone, in training and in generation.
        """
        turns, probe = self._turns(Row("How are you?")), "answer-probe"
        both, prompt = (
            self._render([*turns, {"role": "assistant", "content": probe}], False),
            self._render(turns, True),
        )
        header = both.removeprefix(prompt).partition(probe)[0] if both.startswith(prompt) else ""
        # a space alone is the answer's, and in its first token
        return header if header.strip() else ""

    def _turns(self, row: Row) -> list[dict[str, str]]:
        own = any(turn.role == "system" for turn in row.before)
        system = [{"role": "system", "content": self.system}] if self.system and not own else []
        earlier = [{"role": turn.role, "content": turn.content} for turn in row.before]
        return [*system, *earlier, {"role": "user", "content": row.question}]

    def _render(self, turns: Sequence[dict[str, str]], generating: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(turns),
                    tokenize=False,
                    add_generation_prompt=generating,
                    enable_thinking=False,
                )
            )
        except TemplateError as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise ValueError(
                f"the chat template refuses a conversation of the turns {roles}: {error}"
            ) from None

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
