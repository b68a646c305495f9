"""The commands that say what there is: list, show."""

from __future__ import annotations

from typing import Annotated

import typer

from titer.assumptions import WORDS, read_assumptions
from titer.cli import screen
from titer.cli.options import Json

app = typer.Typer()
EPILOG = "\b\nWords of --assume, with commas between them:\n" + "\n".join(
    f"  {word:19}{of.meaning}" for word, of in WORDS.items()
)


@app.command("list", epilog=EPILOG)
def list_methods(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="defenses, edits, attacks, judges, benchmarks, recipes or hub; all if left out."
        ),
    ] = None,
    assume: Annotated[
        str | None,
        typer.Option(
            metavar="WORDS",
            help="List the defenses and edits that fit what you have, as 'no harmful data, adapter only'. "
            "The words stand below.",
        ),
    ] = None,
    why: Annotated[
        bool, typer.Option("--why", help="With --assume: list the others too, and why not.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the methods, the recipes, and what is known of repositories of the hub."""
    if why and assume is None:
        raise ValueError("--why says why a method does not fit what you have: give --assume too")
    words = read_assumptions(assume) if assume is not None else []
    from titer import listing

    if words and as_json:
        screen.print_json(listing.choice_documents(words, kind))
    elif words:
        screen.say("\n".join(listing.choice_lines(words, kind, why)))
    elif as_json:
        screen.print_json([vars(entry) for entry in listing.entries(kind)])
    else:
        screen.say("\n".join(listing.lines(kind)))


@app.command("show")
def show_method(
    method: Annotated[str, typer.Argument(help="A method, or KIND/METHOD as edits/scale.")],
    as_json: Json = False,
) -> None:
    """Show a method: its needs, what it was compared with, and its fields with their meaning."""
    from titer import listing

    facts = listing.describe_method(method)
    if as_json:
        screen.print_json(listing.document(facts))
    else:
        screen.say(listing.page(facts))
