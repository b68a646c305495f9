"""Errors that name what was given and the nearest name that exists."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EvidenceError(ValueError):
    """Raised where there is not enough evidence for what was asked: exit code 3."""


def unknown(what: str, given: str, known: Iterable[str]) -> ValueError:
    """Return the error for a name that is none of `known`, with the nearest one."""
    names = sorted(known)
    return ValueError(
        f"unknown {what} {given!r}: {nearest(given, names)}There is {', '.join(names) or 'none'}"
    )


def nearest(given: str, names: Iterable[str]) -> str:
    """Return a question after the name most like the given one, or an empty text."""
    near = difflib.get_close_matches(given, list(names), 1, 0.5)
    return f"did you mean {near[0]!r}? " if near else ""
