"""A card in markdown, with the metadata that Hugging Face reads from a model's page; and two cards
side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from titer.findings.card import ORIGINAL, differ, find_obstacles
from titer.findings.dose import UNIT
from titer.findings.records import quote
from titer.report.tables import write_markdown
from titer.scoring.score import read

OWN = "attacker's "  # of a unit's name, which goes where it is the original's


def to_markdown(card: Mapping[str, Any]) -> str:
    """Make the page of a card. Its first words say that it is no certificate."""
    top = f"---\n# {card['notice']}\n{yaml.safe_dump(metadata(card), sort_keys=False)}---"
    title = f"# How {card['model']['name']} withstands fine-tuning attacks"
    flags = "## Red flags\n\n" + list_flags(card["flags"])
    return "\n\n".join([top, f"*{card['notice']}*", title, sections(card), flags]) + "\n"


def sections(card: Mapping[str, Any]) -> str:
    """Write what a card tells, without its title and its red flags, to stand in another page too."""
    parts = [
        _facts(card),
        "## Immunization conditions\n\n" + _conditions(card["conditions"]),
        "## Controls\n\n" + _controls(card["controls"]),
        "## Ladder\n\n" + _ladder(card["ladder"]) if card.get("ladder") else "",
        "## Not tested\n\n" + _untested(card["not tested"]),
        "## Five answers of the worst case, redacted\n\n" + _samples(card["samples"]),
        "## What standards ask\n\n" + _standards(card["standards"]),
    ]
    return "\n\n".join(part for part in parts if part)


def metadata(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `model-index` of a card, as Hugging Face has it."""
    cost, worst = card["cost to break"], card["worst case"]
    # a bound is no value: a reader of metrics would rank by it
    times = None if cost.get("bound") else cost["times the original's"]["value"]
    found = [
        ("HS", worst["HS"]["value"], f"worst case, {worst['attack']} (harmful score, percent)"),
        ("times", times, f"cost to break ({_unit(cost)}, times the original's)"),
    ]
    metrics = [
        {"type": name, "value": round(value, 2), "name": what}
        for name, value, what in found
        if value is not None
    ]
    protocol = card["protocol"]
    dataset = protocol["world"] or "rows of the evaluator's own"
    result = {
        "task": {"type": "text-generation", "name": "harmful fine-tuning attack"},
        "dataset": {"type": "titer", "name": dataset},
        "metrics": metrics,
        "source": {"name": "titer tamper card: no certificate", "url": "card.json"},
    }
    return {"model-index": [{"name": card["model"]["name"], "results": [result]}]}


def difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Say what differs in two cards, and what keeps their figures from being compared."""
    obstacles = find_obstacles(first, second)
    told = [f"{place}: {mine} -> {its}" for place, mine, its in differ(first, second)]
    if ORIGINAL in obstacles:
        told.insert(
            0,
            "the costs to break and the conditions cannot be compared, since they are held against "
            "different originals",
        )
    if others := [place for place in obstacles if place != ORIGINAL]:
        names = ", ".join(others)
        told.insert(0, f"the figures cannot be compared, since these differ: {names}")
    return told or ["no difference"]


def _facts(card: Mapping[str, Any]) -> str:
    protocol, cost = card["protocol"], card["cost to break"]
    budget = protocol["budget"]
    told = {
        "model": f"{card['model']['name']}, sha256 `{card['model']['sha256']}`",
        "beside": f"{card['original']['name']}, sha256 `{card['original']['sha256']}`",
        "protocol": protocol["name"] or "none of a published name",
        "prompts": protocol["world"] or "the evaluator's own",
        "attacks": ", ".join(protocol["attacks"]),
        "budget": f"{budget['updates']} updates of {budget['rows']} rows at learning rate "
        f"{budget['learning rate']:g}, seeds {', '.join(map(str, budget['seeds']))}",
        "access": protocol["access"],
        "defense-aware attacker": "yes" if card["defense-aware attacker"] else "no",
        "cost to break": f"{_interval(cost)} times the original's "
        f"{_unit(cost).removeprefix(OWN)} ({cost['attack']})",
        "worst case": card["worst case"]["text"],
        "judge": f"{card['judge'].get('method')}, measured error: {card['judge']['measured error']}",
    }
    return "\n".join(f"* **{name}**: {text}" for name, text in told.items())


def _unit(cost: Mapping[str, Any]) -> str:
    return str(cost.get("unit", UNIT))  # older cards have none


def _interval(cost: Mapping[str, Any]) -> str:
    times = cost["times the original's"]
    if times["value"] is None:
        return f"not known ({cost['why']})" if cost["why"] else "not known"
    if cost.get("bound"):
        return f"{cost['bound']} {times['value']:.2f}"
    if times["low"] is None and times["high"] is None:
        return f"{times['value']:.2f}, without an interval,"
    low, high = (
        "no bound" if end is None else f"{end:.2f}" for end in (times["low"], times["high"])
    )
    return f"{times['value']:.2f} [{low}, {high}]"


def _conditions(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            of["name"],
            of["verdict"],
            of["threshold"],
            of["decided by"]["of"],
            of["decided by"]["why"],
        )
        for of in found
    ]
    return table([("condition", "verdict", "threshold", "decided by", "why"), *rows])


def _controls(found: Mapping[str, Any]) -> str:
    lines = [
        f"* **{name}**: {of['what']}; HS {quote(read(of['harm']))}" for name, of in found.items()
    ]
    return "\n".join(lines)


def _ladder(ladder: Mapping[str, Any]) -> str:
    rows = [
        (
            of["name"],
            str(of["cost"].get("passes", "")),
            quote(read(of["harm"])) if of.get("harm") else "missing",
            of["word"],
        )
        for of in ladder["rungs"]
    ]
    told = [of["text"] for of in ladder.get("breaks", {}).values() if of.get("text")]
    return "\n\n".join(
        [f"{ladder['ladder']}.", table([("rung", "passes", "harm", "shows"), *rows]), *told]
    )


def _untested(found: Mapping[str, Sequence[str]]) -> str:
    return "\n".join(f"* {kind}: {', '.join(names) or 'nothing'}" for kind, names in found.items())


def _samples(found: Sequence[Mapping[str, str]]) -> str:
    return "\n".join(f"* prompt `{of['prompt'][:16]}`: {of['verdict']}" for of in found)


def _standards(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (of["standard"], of["asks"], of["answer"], f"card.json, {of['at']}" if of["at"] else "")
        for of in found
    ]
    return table([("standard", "asks", "answer", "where"), *rows])


def list_flags(found: Sequence[Mapping[str, str]]) -> str:
    """Write red flags, each kind once."""
    if not found:
        return "None."
    lines = dict.fromkeys(
        f"* {of['name']} ({', '.join(filter(None, (of['pipeline'], of['stage'])))}): {of['text']}"
        for of in found
    )
    return "\n".join(lines)


def table(lines: Sequence[Sequence[str]]) -> str:
    """Write lines as a table in markdown, the first one as its header."""
    return write_markdown(lines[0], lines[1:]).rstrip("\n")
