"""Errors that name what was given and the nearest name that exists.

What a library raises on a person's input is caught where the input enters, by `reading`: it becomes
one line that names the input and the cause. What is raised elsewhere is a fault of titer's own, and
stays a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

TOLD = 200  # characters of what a library says
# of these the message alone says little: a bare key, or a sentence about a type
NAMED = (LookupError, TypeError, AttributeError, AssertionError, RecursionError, MemoryError)


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


@contextmanager
def reading(what: str, mend: str = "") -> Iterator[None]:
    """Turn whatever a library raises inside into a ValueError of one line.

    `what` names the input, with its place where that is known; `mend` says what would do. Only
    calls of libraries on a person's input belong inside: whatever they may raise, the input is the
    cause.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{what} cannot be read ({cause(error)}){f': {mend}' if mend else ''}"
        ) from error


def cause(error: BaseException) -> str:
    """Return what an error says, on one line."""
    said = " ".join(str(error).split())[:TOLD]
    if isinstance(error, NAMED) or not said:
        return f"{type(error).__name__}: {said}" if said else type(error).__name__
    return said
