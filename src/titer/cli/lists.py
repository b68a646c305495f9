"""The commands that say what there is: list, show."""

from __future__ import annotations

from typing import Annotated

import typer

from titer.cli import screen
from titer.cli.options import Json

app = typer.Typer()


@app.command("list")
def list_methods(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="defenses, edits, attacks, judges, benchmarks, recipes or hub; all if left out."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the methods, the recipes, and what is known of repositories of the hub."""
    from titer import listing

    if as_json:
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
