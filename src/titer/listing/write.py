"""The texts of docs/methods.md and docs/choose.md."""

from __future__ import annotations

from collections.abc import Sequence

from titer import registry
from titer.assumptions import WORDS, Trait, read_assumptions
from titer.listing.choose import Choosable, choose, traits
from titer.listing.show import ARXIV, Facts, describe_method, model_words, row_words
from titer.methods import Fidelity

SITUATIONS = (  # what a reader may be up to, and the words for it
    ("I align a model, and others fine-tune it", "before release"),
    ("The same, and I have no harmful rows", "before release, no harmful data"),
    ("I fine-tune for users", "while fine-tuning"),
    ("The same, at no more than plain cost", "while fine-tuning, one pass"),
    ("I have a fine-tuned adapter and what lies under it", "after fine-tuning, no other model"),
    ("I can edit weights, and neither train nor run a model", "weights alone"),
)


def pages() -> dict[str, str]:
    """Write the generated pages of docs/, by file name."""
    return {"methods.md": table(), "choose.md": guide()}


def guide() -> str:
    """Write the text of docs/choose.md: some situations, the words, and what every method asks for."""
    found = [choice for choice in choose([]) if choice.listing.source == "titer"]
    parts = [
        "# Which method fits?",
        "A method fits where you have what it asks for. Whether it helps is another question: "
        "[the answer](answer.md) says what each did in the lab, and what it cost.",
        _rows(
            ("you say", "fits", "`titer list --assume`"),
            [(said, _names(words), f'`"{words}"`') for said, words in SITUATIONS],
        ),
        "Where a setting stands behind a name, the method fits with that setting, and not as it "
        "is. `titer list --assume WORDS` answers any other situation, `--why` says of the rest "
        "why they do not fit, and `titer show NAME` says all of one method. Methods of other "
        "packages are chosen among too.",
        "## The words",
        "Put commas between them. Of several words for a stage (the first three) either will do; "
        "all others must hold. What is not said is no restriction.",
        _rows(("word", "means"), [(f"`{word}`", of.meaning) for word, of in WORDS.items()]),
        "## What every method asks for",
        "*Acts*: the stage of the survey of the field "
        "([2409.18169](https://arxiv.org/abs/2409.18169)), of which the release is the end of "
        "the alignment. *Rows* are the defender's, beside the user's. *Models* are others than "
        "the one that it works on and the one that its stage began with. *Leaves*: an adapter, "
        "where one was trained, or a whole model. *Passes* are those of an update, where plain "
        "fine-tuning has 1. *Or with*: a setting with which it asks for less.",
        _rows(
            ("method", "acts", "rows", "models", "works on", "leaves", "passes", "or with"),
            [_asks(choice) for choice in found],
        ),
        "## Several together",
        "A pipeline has one method at each stage at most, and methods of different stages go "
        f"together. {_holders(found)} `tests/test_pairs.py` runs every pair.",
        "Controls, which are there for others to beat, are in [the table of methods](methods.md) "
        "alone. This page is made from the sources by `python -m titer.listing docs`; do not "
        "edit it.",
    ]
    return "\n\n".join(parts) + "\n"


def _names(words: str) -> str:
    """Name the methods of titer's own that fit, with links to their papers."""
    return ", ".join(
        f"{_link(choice)}{f' ({choice.condition})' if choice.fields else ''}"
        for choice in choose(read_assumptions(words))
        if choice.fits and choice.listing.source == "titer"
    )


def _link(choice: Choosable) -> str:
    about = registry.load(choice.listing.kind, choice.listing.name).about
    return f"[{about.title}]({ARXIV}{about.paper})"


def _asks(choice: Choosable) -> tuple[str, ...]:
    """Return a method's row of the table of what all ask for."""
    facts = describe_method(f"{choice.listing.kind}/{choice.listing.name}")
    method = registry.build(facts.kind, facts.name)
    has = traits(method)
    theirs = {Trait.HARMFUL: "harmful", Trait.ALIGNMENT: "alignment"}
    rows = [word for trait, word in theirs.items() if trait in has]
    models = ["aligned"] if Trait.ALIGNED in has and "edit" in facts.acts else []
    models += [name for name in facts.models if name != "start"]
    return (
        f"{_link(choice)} `{facts.name}`",
        ", ".join(facts.acts),
        ", ".join(rows),
        ", ".join(models),
        model_words(facts),
        "a whole model" if Trait.WHOLE in has else "",
        facts.passes,
        Choosable(choice.listing, fields=tuple(method.about.lean.items())).condition,
    )


def _holders(found: list[Choosable]) -> str:
    """Name the methods that hold another one, with the field."""
    held = {
        choice.listing.name: list(
            registry.build(choice.listing.kind, choice.listing.name).held_methods
        )
        for choice in found
    }
    named = [f"`{name}` (its field `{fields[0]}`)" for name, fields in held.items() if fields]
    return (
        "Within one stage, these hold another method, whose needs they add to their own: "
        f"{', '.join(named)}."
    )


def _rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    return "\n".join(
        f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)
    )


def table() -> str:
    """Write the text of docs/methods.md: what titer itself brings, a table for each kind."""
    parts = [
        "# Methods",
        "Made from the sources by `python -m titer.listing docs`; do not edit it. "
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
        parts.append(_rows(columns, [[row[name] for name in columns] for row in rows]))
    return "\n\n".join(parts) + "\n"


def _cells(facts: Facts) -> dict[str, str]:
    """Return a row of a table of docs/methods.md, by column."""
    compared = facts.fidelity != Fidelity()
    cells = {
        "name": f"`{facts.name}`",
        "title": facts.title if facts.title != facts.name else "",
        "stage": ", ".join(facts.acts),
        "rows": "; ".join(row_words(facts)),
        "other models": ", ".join(facts.models),
        "passes": facts.passes,
        "paper": f"[{facts.paper}]({ARXIV}{facts.paper})" if facts.paper else "",
        "equation": facts.fidelity.equation if compared else "",
        "authors' code": facts.fidelity.code if compared else "",
        "real model": facts.fidelity.real_model if compared else "",
    }
    return {name: value.replace("|", "\\|") for name, value in cells.items()}
