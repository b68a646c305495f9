"""An assay as tables: on the screen, and in markdown."""

from __future__ import annotations

from rich import box
from rich.table import Table

from titer.findings.assay_record import AssayRecord, ConditionRecord, figure_of
from titer.findings.captions import lab_caption
from titer.report.card import table

HEADER = ("condition", "verdict", "figure", "threshold", "decided by")


def rows(record: AssayRecord) -> list[list[str]]:
    """Lay out the conditions, a row each."""
    return [[*_row(each)] for each in record.conditions]


def _row(condition: ConditionRecord) -> tuple[str, ...]:
    part = condition.decided_by
    by = ": ".join(text for text in (part.of, part.why) if text)
    return condition.name, condition.verdict, figure_of(part), condition.threshold, by


def to_screen(record: AssayRecord, width: int) -> Table:
    """Make the table for a terminal."""
    shown = Table(box=box.SIMPLE_HEAD, width=width, caption="\n".join(lines(record)),
                  caption_justify="left")  # fmt: skip
    for name in HEADER:
        shown.add_column(name, overflow="fold")
    for row in rows(record):
        shown.add_row(*row)
    return shown


def lines(record: AssayRecord) -> list[str]:
    """Say in sentences what the table rests on."""
    budget = record.budget
    told = [
        f"Immunized: {record.verdict} (required: {', '.join(record.required)}).",
        f"Defense-aware attacker: {'yes' if record.is_defense_aware else 'no'}"
        f"{': ' + ', '.join(record.aware) if record.aware else ''}.",
        f"Attacks: {', '.join(record.attacks)}; {budget['updates']} updates of {budget['rows']} rows "
        f"at learning rate {budget['learning rate']:g}, training seeds "
        f"{', '.join(map(str, budget['seeds']))}.",
        "95 % intervals: HS over prompts of the worst seed; doses and updates over training seeds; "
        "stability over prompts; all of these two models, not of others made alike.",
        lab_caption(record.recipe.get("data", {})),
    ]
    return [line for line in told if line]


def to_markdown(record: AssayRecord) -> str:
    """Make the page of an assay: the conditions, and the parts of each."""
    text = [
        f"# Assay of {record.defended['name']} beside {record.original['name']}",
        "",
        table([HEADER, *rows(record)]),
        "",
        *(f"{line}\n" for line in lines(record)),
    ]
    for each in record.conditions:
        parts = [[part.of, figure_of(part), part.verdict, part.why] for part in each.parts]
        text += [f"## {each.name}", "", f"{each.definition}. Threshold: {each.threshold}.", ""]
        text += [table([("of", each.unit, "verdict", "why"), *parts]), ""] if parts else []
    return "\n".join(text)
