"""The probes of the attacks of a run: how the models looked while they were attacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from titer.findings.records import Record, last


def attacks(
    found: Mapping[str, Sequence[Record]], fact: str = "probes"
) -> dict[str, list[Mapping[str, Any]]]:
    """Return the looks at every attacked model once, under the first pipeline that has it.

    They are a fact of its fine-tuning; models without it are left out.
    """
    told: dict[str, tuple[str, list[Mapping[str, Any]]]] = {}
    for name, stages in found.items():
        tuned = last(("finetune",), stages)
        if tuned and tuned.fact(fact):
            told.setdefault(tuned.folder, (name, tuned.fact(fact)))
    return dict(told.values())
