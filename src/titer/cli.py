"""The command line. Exit codes: 0 done, 2 bad input or usage."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.console import Console

app = typer.Typer(help="How well does a language model's safety alignment survive fine-tuning?", no_args_is_help=True, add_completion=False)


@app.command("run")
def run_recipe(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or YAML file.")] = "lab",
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="PATH.TO.FIELD=VALUE", help="Change a field. Repeatable.")] = None,
    seed: Annotated[int | None, typer.Option(help="Training seed.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run [default: runs/<recipe>-<hash>].")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Run a recipe's pipelines and compare them. An interrupted run goes on where it was."""
    from titer import pipeline, progress, report, results
    from titer import recipe as recipes

    console = _console(sys.stderr)
    plan = recipes.load(recipe, settings or [], seed)
    run = pipeline.Run.prepare(plan, out or Path("runs") / f"{Path(recipe).stem}-{recipes.digest(plan)[:8]}")
    with pipeline.occupied(run), progress.shown(console) as watch:
        found = run.stages(watch)
        documents = results.write(run, found)
    report.write(documents, run.folder)
    if as_json:
        json.dump(documents, sys.stdout, indent=2)
        print()
    else:
        _console(sys.stdout).print(results.screen(run, found))
        console.print(f"Everything is in {run.folder}")


@app.command("report")
def make_report(folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """Make a run's HTML page again, from its JSON files."""
    from titer import report

    print(report.write(report.read(folder), folder))


@app.command("list")
def list_methods(
    kind: Annotated[str | None, typer.Argument(help="defenses, edits, attacks, judges or recipes; all if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the methods and recipes."""
    from titer import registry

    entries = [entry for each in registry.listed_kinds(kind) for entry in registry.listing(each)]
    if as_json:
        print(json.dumps([vars(entry) for entry in entries], indent=2))
        return
    for entry in entries:
        print(f"{entry.kind:10}{entry.name:16}{entry.summary}")


def _console(stream: TextIO) -> Console:
    """A console as wide as the terminal, or wide enough for the table where there is none."""
    return Console(file=stream, width=None if stream.isatty() else 160)


def main() -> None:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    try:
        app()
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
