"""Class labels in files and in answers: what the classification tasks of the field share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from titer.methods import Match


def column(
    records: Sequence[Mapping[str, Any]], names: Sequence[str], label: str
) -> set[str] | None:
    """The values of the label column, where all records have exactly these columns or, if they are named ones, at least these."""
    exact = names[0].startswith("column ")
    fits = all(
        record.keys() == set(names) if exact else record.keys() >= set(names) for record in records
    )
    return {str(record[label]) for record in records} if fits else None


def word(value: Any, words: Mapping[str, str]) -> str:
    """The word of a label as the file writes it. Raises where it has none."""
    if str(value) not in words:
        raise ValueError(
            f"label {value!r} is none of {', '.join(words)}; hidden test labels cannot be scored: use another split"
        )
    return words[str(value)]


def match(forms: Sequence[str], answer: str) -> Match:
    """Exact: the answer is one of the accepted forms. Contained: it holds one of them."""
    return Match(answer.strip() in forms, any(form in answer for form in forms))
