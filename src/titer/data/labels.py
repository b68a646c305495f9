"""Class labels in files and in answers: the part that the field's classification tasks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from titer.methods import Match


def column(
    records: Sequence[Mapping[str, Any]], names: Sequence[str], label: str
) -> set[str] | None:
    """Return the values of the label column, or None where the records have other columns.

    All records must have at least these columns, and exactly these where the columns are numbered.
    """
    exact = names[0].startswith("column ")
    fits = all(
        record.keys() == set(names) if exact else record.keys() >= set(names) for record in records
    )
    return {str(record[label]) for record in records} if fits else None


def word(value: Any, words: Mapping[str, str]) -> str:
    """Return the word of a label as the file writes it. Raises where it has none."""
    if str(value) not in words:
        raise ValueError(
            f"label {value!r} is none of {', '.join(words)}; hidden test labels cannot be scored: "
            "use another split"
        )
    return words[str(value)]


def match(forms: Sequence[str], answer: str) -> Match:
    """Compare an answer with the accepted forms.

    It is exact where it is one of them, and contained where it holds one.
    """
    return Match(answer.strip() in forms, any(form in answer for form in forms))
