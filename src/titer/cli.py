"""The command line. Exit codes: 0 done, 2 bad input or usage."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console

app = typer.Typer(help="How well does a language model's safety alignment survive fine-tuning?", no_args_is_help=True, add_completion=False)

Model = Annotated[str, typer.Argument(help="A checkpoint directory, a hub id, a PEFT adapter, or `lab`.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH.TO.FIELD=VALUE", help="Change a field of the recipe. Repeatable.")
]
Rows = Annotated[list[str] | None, typer.Option("--data", metavar="ROLE=SOURCE", help="A file, folder or hub id for a role. Repeatable.")]
RecipeName = Annotated[str, typer.Option("--recipe", help="Where all other settings come from.")]
Seed = Annotated[int | None, typer.Option(help="Training seed.")]
Out = Annotated[Path, typer.Option(help="Folder to write.")]
Whole = Annotated[bool, typer.Option("--whole", help="Write the merged model rather than the adapter.")]
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]


@app.command("run")
def run_recipe(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or YAML file.")] = "lab",
    settings: Settings = None,
    seed: Seed = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run [default: runs/<recipe>-<hash>].")] = None,
    as_json: Json = False,
) -> None:
    """Run a recipe's pipelines and compare them. An interrupted run goes on where it was."""
    from titer import pipeline, progress, report, results, stages
    from titer import recipe as recipes

    console = _console(sys.stderr)
    plan = recipes.load(recipe, settings or [], seed)
    setting = stages.Setting.prepare(plan)
    run = pipeline.Run(setting, out or Path("runs") / f"{Path(recipe).stem}-{recipes.digest(plan)[:8]}")
    with pipeline.occupied(run.folder, setting), progress.shown(console) as watch:
        found = run.stages(watch)
        documents = results.write(run, found)
    report.write(documents, run.folder)
    if as_json:
        _print_json(documents)
    else:
        _console(sys.stdout).print(results.screen(run, found))
    _print_flags(console, next(iter(documents.values())))
    if not as_json:
        console.print(f"Everything is in {run.folder}")


@app.command("align")
def align(
    model: Model,
    out: Out,
    method: Annotated[str, typer.Option(help="A defense.")] = "sft",
    data: Rows = None,
    settings: Settings = None,
    recipe: RecipeName = "checkpoint",
    seed: Seed = None,
    whole: Whole = False,
    as_json: Json = False,
) -> None:
    """Align a model: --data alignment=..., and for a defense that simulates attacks --data harmful=... or defense=..."""
    _stage("align", model, method, data, settings, recipe, seed, out, whole, as_json)


@app.command("finetune")
def finetune(
    model: Model,
    out: Out,
    method: Annotated[str, typer.Option(help="A defense, or plain `sft`.")] = "sft",
    data: Rows = None,
    settings: Settings = None,
    recipe: RecipeName = "checkpoint",
    seed: Seed = None,
    whole: Whole = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a model on user data under attack: --data task=... and harmful=..., the attack by --set attack.p=0.1"""
    _stage("finetune", model, method, data, settings, recipe, seed, out, whole, as_json)


@app.command("edit")
def edit(
    model: Model,
    out: Out,
    method: Annotated[str, typer.Option(help="An edit.")] = "antidote",
    data: Rows = None,
    settings: Settings = None,
    recipe: RecipeName = "checkpoint",
    whole: Whole = False,
    as_json: Json = False,
) -> None:
    """Edit the adapter of a fine-tuned model: --data calibration=... (or the pool harmful=...)"""
    _stage("edit", model, method, data, settings, recipe, None, out, whole, as_json)


@app.command("evaluate")
def evaluate(
    model: Model,
    out: Out,
    judge: Annotated[str | None, typer.Option(help="What judges harm.")] = None,
    data: Rows = None,
    settings: Settings = None,
    recipe: RecipeName = "checkpoint",
    as_json: Json = False,
) -> None:
    """Score a model: any of --data harm_test=..., test=..., lookalike=..., harmful=... (the held-out share of the pool)"""
    _stage("evaluate", model, None, data, [*([f"judge={judge}"] if judge else []), *(settings or [])], recipe, None, out, False, as_json)


def _stage(
    kind: str,
    model: str,
    method: str | None,
    data: list[str] | None,
    settings: list[str] | None,
    recipe: str,
    seed: int | None,
    out: Path,
    whole: bool,
    as_json: bool,
) -> None:
    from titer import alone, pipeline, progress, results, stages
    from titer import recipe as recipes

    console = _console(sys.stderr)
    plan = recipes.stage(recipe, kind, model, method, [*(f"data.{source}" for source in data or []), *(settings or [])], seed)
    setting = stages.Setting.prepare(plan, {kind})
    with pipeline.occupied(out, setting, f"{kind} {'whole' if whole else ''}"), progress.shown(console) as watch:
        document = alone.stage(setting, kind, getattr(plan.pipelines["alone"], kind, None), out, whole, watch)
    if as_json:
        _print_json(document)
    else:
        _console(sys.stdout).print(results.summary(document))
    _print_flags(console, document)
    if not as_json:
        console.print(f"Everything is in {out}")


@app.command("report")
def make_report(folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """Make a run's HTML page again, from its JSON files."""
    from titer import report

    print(report.write(report.read(folder), folder))


@app.command("list")
def list_methods(
    kind: Annotated[
        str | None, typer.Argument(help="defenses, edits, attacks, judges, benchmarks, recipes or hub; all if left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the methods, the recipes, and what is known of repositories of the hub."""
    from titer import registry

    entries = [entry for each in registry.listed_kinds(kind) for entry in registry.listing(each)]
    if as_json:
        _print_json([vars(entry) for entry in entries])
        return
    width = max(len(entry.name) for entry in entries) + 2
    for entry in entries:
        print(f"{entry.kind:12}{entry.name:{width}}{entry.summary}")


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2)
    print()


def _print_flags(console: Console, document: Mapping[str, Any]) -> None:
    """A line for each red flag of a document, whole and as it is."""
    from titer import flags

    for flag in flags.recorded(document.get("flags", [])):
        console.print(str(flag), soft_wrap=True, markup=False, highlight=False)


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
