"""The engines that generate answers, by the names that a recipe gives them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

from titer.scoring import continuous, generate

ENGINES: Mapping[str, generate.Engine] = {
    "transformers": generate.complete,
    "continuous": continuous.complete,
}
HOW = {"transformers": "in batches", "continuous": "continuous batching"}


def describe_engine(name: str) -> str:
    """Name an engine with its version, for a record."""
    return f"transformers {version('transformers')}, {HOW[name]}"
