"""Two models beside one another, on the screen and in JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table

from titer.findings.compare import Change
from titer.findings.records import plain
from titer.scoring.score import Score

CAPTION = (
    "B - A: prompt by prompt, with its 95 % interval. Only in A, only in B: prompts that count under "
    "one model alone. Would show: the smallest difference that so many prompts show in 80 % of trials. "
    "Shown: it passes Holm's test over all figures here."
)


def to_screen(changes: Sequence[Change]) -> Table:
    """Make the table of a comparison."""
    table = Table(box=box.SIMPLE_HEAD, caption=CAPTION, caption_justify="left")
    names = (
        "figure",
        "A",
        "B",
        "B - A",
        "only in A",
        "only in B",
        "would show",
        "prompts",
        "shown",
    )
    for i, name in enumerate(names):
        table.add_column(name, justify="left" if i == 0 else "right")
    for each in changes:
        table.add_row(
            each.name,
            f"{each.first.value:z.1f}",
            f"{each.second.value:z.1f}",
            _interval(each.difference),
            "" if each.lost is None else str(each.lost),
            "" if each.gained is None else str(each.gained),
            f"{each.smallest:.1f}",
            str(each.difference.n),
            "yes" if each.shown else "no",
        )
    return table


def to_json(changes: Sequence[Change]) -> Any:
    """Return a comparison as JSON has it."""
    return plain([asdict(each) for each in changes])


def _interval(score: Score) -> str:
    return f"{score.value:+z.1f} [{score.low:+z.1f}, {score.high:+z.1f}]"
