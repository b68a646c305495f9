"""Attributes of somebody else's object, set for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def swap(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Let an attribute have another value inside, and its own again behind, also after an error."""
    own = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, own)
