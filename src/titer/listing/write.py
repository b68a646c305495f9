"""The text of docs/methods.md."""

from __future__ import annotations

from titer import registry
from titer.listing.show import ARXIV, Facts, describe_method, row_words
from titer.methods import Fidelity


def table() -> str:
    """Write the text of docs/methods.md: what titer itself brings, a table for each kind."""
    parts = [
        "# Methods",
        "Made from the sources by `python -m titer.listing docs/methods.md`; do not edit it. "
        "`titer show` says more of a method: its fields too, with their meaning.",
        "*Equation*: the test that computes its equation independently. "
        "*Authors' code*: the commit it was compared with, the precision and the day. "
        "*Real model*: a published result that was met on a real model. `never` means not yet.",
    ]
    for kind in registry.KINDS:
        found = [describe_method(f"{kind}/{name}") for name in registry.builtin(kind)]
        rows = [_cells(facts) for facts in found]
        columns = [name for name in rows[0] if any(row[name] for row in rows)]
        parts.append(f"## {kind.capitalize()}")
        parts.append(
            "\n".join(
                [
                    f"| {' | '.join(columns)} |",
                    f"|{'---|' * len(columns)}",
                    *(f"| {' | '.join(row[name] for name in columns)} |" for row in rows),
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def _cells(facts: Facts) -> dict[str, str]:
    """Return a row of a table of docs/methods.md, by column."""
    compared = facts.fidelity != Fidelity()
    cells = {
        "name": f"`{facts.name}`",
        "title": facts.title if facts.title != facts.name else "",
        "stage": ", ".join(facts.stages),
        "rows": "; ".join(row_words(facts)),
        "other models": ", ".join(facts.models),
        "passes": facts.passes,
        "paper": f"[{facts.paper}]({ARXIV}{facts.paper})" if facts.paper else "",
        "equation": facts.fidelity.equation if compared else "",
        "authors' code": facts.fidelity.code if compared else "",
        "real model": facts.fidelity.real_model if compared else "",
    }
    return {name: value.replace("|", "\\|") for name, value in cells.items()}
