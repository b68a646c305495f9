"""The command line: a file here for each group of commands.

Exit codes: 0 done or passed, 1 something is missing or flagged, or a gate failed, 2 bad input or
usage, 3 not enough evidence.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from titer.cli import (
    assay,
    attack,
    gate,
    harness,
    judge,
    lists,
    new,
    plan,
    push,
    run,
    screen,
    stages,
    store,
    uploads,
)
from titer.errors import EvidenceError
from titer.version import __version__

app = typer.Typer(
    help="How well does a language model's safety alignment survive fine-tuning?",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
DEBUG = "--debug"
GROUPS = (run, plan, stages, attack, assay, gate, uploads, harness, push, lists, new)
for group in GROUPS:
    app.add_typer(group.app)
app.add_typer(store.app, name="store")
app.add_typer(judge.app, name="judge")


def _print_version(wanted: bool) -> None:
    if wanted:
        screen.say(f"titer {__version__}")
        raise typer.Exit


@app.callback()
def take_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option(DEBUG, help="Show where an error was raised. At any place.")
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            screen.QUIET, help="Print results, warnings and red flags alone. At any place."
        ),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def main() -> None:
    """Run the command line.

    Bad input is one line on stderr and exit code 2, too little evidence is exit code 3. With
    `--debug`, at any place, the traceback stands before the line.
    """
    arguments = [word for word in sys.argv[1:] if word not in (DEBUG, screen.QUIET)]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its tables are no help to a person
    screen.take_notes()
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from titer.runs import crew

            crew.run(lambda: app(arguments), next(iter(arguments), ""))
        else:
            app(arguments)
    except (ValueError, OSError) as error:
        if DEBUG in sys.argv[1:]:
            traceback.print_exception(error)
        undecided = isinstance(error, EvidenceError)
        screen.print_error("undecided" if undecided else "error", error)
        sys.exit(3 if undecided else 2)
