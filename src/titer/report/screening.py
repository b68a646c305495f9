"""What a screen found, as lines of JSON and as a table."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from titer.screening.screen import UNREAD

if TYPE_CHECKING:
    from titer.screening.screen import Screened

SHOWN = 20  # flagged rows in words


def to_lines(found: Screened) -> str:
    """Write a line of JSON for every row, with its scores and reasons, and no word of it."""
    return "".join(json.dumps(finding.document()) + "\n" for finding in found.findings)


def to_table(found: Screened) -> Table:
    """Make the table of the rows that each signal flags."""
    table = Table(box=box.SIMPLE)
    for name in ("signal", "flagged", "alone", "above", ""):
        table.add_column(name, justify="right" if name in ("flagged", "alone", "above") else "left")
    alone = Counter(
        finding.reasons[0].signal for finding in found.alarms if len(finding.reasons) == 1
    )
    for name, threshold in found.thresholds.items():
        unscored = found.count_unscored(name)
        note = f"{unscored} rows it could not score" if unscored else ""
        table.add_row(name, str(found.count(name)), str(alone[name]), f"{threshold:.3g}", note)
    for name, why in found.not_asked.items():
        table.add_row(name, "", "", "", f"not asked: {why}")
    if found.unread:
        note = "could not be read, or not scored"
        table.add_row(UNREAD, str(found.unread), str(alone[UNREAD]), "", note)
    return table


def summarize(found: Screened) -> str:
    """Say how many rows are flagged, and how many harmless ones would be."""
    n, copies = len(found.findings), sum(finding.copy is not None for finding in found.findings)
    left_out = f" Copies among the benign rows, left out: {found.copies}." if found.copies else ""
    return (
        f"{len(found.alarms)} of {n} rows are flagged. Of {n} rows like the {found.benign} benign ones "
        f"{found.rate * n:.3g} would be in the mean, or fewer. Copies of earlier rows: {copies}."
        f"{left_out}"
    )


def to_reasons(found: Screened) -> list[str]:
    """Say of the first flagged rows where they stand and why."""
    told = [
        f"{finding.place}: "
        + "; ".join(f"{reason.signal} ({reason.text})" for reason in finding.reasons)
        for finding in found.alarms[:SHOWN]
    ]
    left = len(found.alarms) - len(told)
    return [*told, f"and {left} more: --out has all"] if left else told
