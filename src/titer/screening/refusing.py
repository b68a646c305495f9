"""Where a refusal at the beginning of an answer ends: the words of `judges.refusal`, and known forms."""

from __future__ import annotations

import re
from collections.abc import Sequence

from titer.judges.refusal import PLAIN, Refusal
from titer.methods import Label

JUDGE = Refusal()  # by titer-1
SENTENCE = re.compile(r".*?(?:[.!?:](?=\s|$)|\n|$)", re.DOTALL)


def find_end(answer: str, refusals: Sequence[str]) -> int | None:
    """Return how many characters of an answer are a refusal; None where it does not begin as one.

    `refusals` are whole ones, of any language. Else a sentence refuses that `titer-1` calls a
    refusal, and it ends where the sentence does. Several in a row are one.
    """
    end, found = 0, None
    while (length := _leading(answer[end:], refusals)) is not None:
        end += length
        found = end
    return found


def _leading(text: str, refusals: Sequence[str]) -> int | None:
    """Return the length of the one refusal that a text begins with, and of the space before it."""
    start = len(text) - len(text.lstrip())
    said = _fold(text[start:])
    for form in sorted(map(_fold, refusals), key=len, reverse=True):
        if said.startswith(form) and not said[len(form) :][:1].isalnum():
            return start + len(form)
    match = SENTENCE.match(text, start)
    sentence = match.group() if match else ""
    [verdict] = JUDGE.judge([""], [sentence])
    return start + len(sentence) if verdict.label is Label.REFUSAL else None


def _fold(text: str) -> str:
    """Return a text as refusals are compared, of the same length: lower case, plain quotation marks."""
    return "".join(low if len(low := letter.lower()) == 1 else letter for letter in text).translate(
        PLAIN
    )
