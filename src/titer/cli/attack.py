"""The command that sets a ladder of attacks at a model: attack."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from titer.cli import screen
from titer.cli.options import (
    Json,
    Limit,
    Out,
    RecipeName,
    Rows,
    Seed,
    Settings,
    StoreFolder,
    merge_data,
    with_limit,
)

app = typer.Typer()


@app.command("attack")
def attack(
    out: Out,
    model: Annotated[
        str | None,
        typer.Argument(
            help="The aligned model: a checkpoint directory, a hub id, a PEFT adapter, a GGUF file. "
            "May be left out with --pipeline."
        ),
    ] = None,
    ladder: Annotated[str, typer.Option(help="A version, as v1, or a YAML file.")] = "v1",
    rungs: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="These rungs alone; the record has the rest as missing."),
    ] = None,
    aware: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="The rows that the defense optimised against (data.defense)."
        ),
    ] = None,
    pipeline: Annotated[
        str | None,
        typer.Option(help="Attack the model that this pipeline of the recipe makes."),
    ] = None,
    data: Rows = None,
    settings: Settings = None,
    recipe: RecipeName = "checkpoint",
    seed: Seed = None,
    limit: Limit = None,
    store: StoreFolder = None,
    as_json: Json = False,
) -> None:
    """Set a ladder of attacks at an aligned model: harm by what the attack costs, the cost to break.

    Rows come from --data harmful=... and task=... Started again it goes on.
    Exit code 1: a rung that was asked for is missing.
    """
    from titer import api
    from titer.report import tables
    from titer.runs import ladder as ladders

    wanted = [name.strip() for name in rungs.split(",")] if rungs is not None else []
    ladders.load(ladder).check(wanted)  # a wrong name is told of without torch
    with screen.watch_stages() as watch:
        found = api.attack(
            model,
            ladder=ladder,
            rungs=wanted,
            aware=aware,
            pipeline=pipeline,
            recipe=recipe,
            settings=with_limit(merge_data(data, settings), limit),
            seed=seed,
            out=out,
            store=store,
            progress=watch,
        )
    record = found.record
    if as_json:
        screen.print_json(record.model_dump(by_alias=True, mode="json"))
    else:
        console = screen.console(sys.stdout)
        console.print(tables.of_ladder(record, console.width))
        for line in tables.lines_of_ladder(record):
            screen.say(line)
    screen.print_flags({"flags": record.flags})
    if not as_json:
        screen.say(f"Everything is in {Path(out)}", sys.stderr)
    if any(not wanted or rung.name in wanted for rung in record.missing):
        raise typer.Exit(1)
