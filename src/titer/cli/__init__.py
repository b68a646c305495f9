"""The command line: a file here for each group of commands.

Exit codes: 0 done or passed, 1 something is missing or flagged, or a gate failed, 2 bad input or
usage, 3 not enough evidence.
"""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from collections.abc import Callable
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
    if os.environ.get("WORLD_SIZE", "") in ("", "1"):
        _run(lambda: app(arguments))
    else:
        _run_as_rank(arguments)


def _run(command: Callable[[], object]) -> None:
    try:
        command()
    except (ValueError, OSError) as error:
        if DEBUG in sys.argv[1:]:
            traceback.print_exception(error)
        undecided = isinstance(error, EvidenceError)
        screen.print_error("undecided" if undecided else "error", error)
        sys.exit(3 if undecided else 2)


def _run_as_rank(arguments: list[str]) -> None:
    """Run the command as one of several ranks, and end the process with its exit code.

    Where weights are sharded threads of torch may outlast their process group. A rank that ended as
    other processes do would now and then be aborted by them, with all its results written.
    """
    from titer.runs import crew

    code: str | int | None = None
    try:
        _run(lambda: crew.run(lambda: app(arguments), next(iter(arguments), "")))
    except SystemExit as end:
        code = end.code
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1 if code else 0)
