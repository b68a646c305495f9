"""The command line: a file here for each group of commands.

Exit codes: 0 done, 1 something is missing, 2 bad input or usage, 3 not enough evidence.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from titer.cli import lists, run, stages, store
from titer.errors import EvidenceError
from titer.version import __version__

app = typer.Typer(
    help="How well does a language model's safety alignment survive fine-tuning?",
    no_args_is_help=True,
    add_completion=False,
)
for group in (run.app, stages.app, lists.app):
    app.add_typer(group)
app.add_typer(store.app, name="store")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"titer {__version__}")
        raise typer.Exit


@app.callback()
def take_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def main() -> None:
    """Run the command line.

    Bad input is one line on stderr and exit code 2, too little evidence is exit code 3.
    """
    try:
        app()
    except EvidenceError as error:
        print(f"undecided: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(3)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
