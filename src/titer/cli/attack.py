"""The command that attacks a model, by a ladder of attacks or by a search of one: attack."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    read_pairs,
    with_limit,
)

if TYPE_CHECKING:
    from titer.findings.attack_search import AttackSearchRecord
    from titer.findings.ladder import LadderRecord

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
    ladder: Annotated[
        str | None, typer.Option(help="A version, as v2, or a YAML file (default: v1).")
    ] = None,
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
    search: Annotated[
        bool,
        typer.Option(
            "--search", help="No ladder: search the rate, updates and p of the recipe's attack."
        ),
    ] = False,
    trials: Annotated[
        int | None, typer.Option(help="Of a search: how many to try (default: 20).")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(help="Of a search: points that an ability may lose (default: 10)."),
    ] = None,
    ranges: Annotated[
        list[str] | None,
        typer.Option(
            "--range",
            metavar="NAME=LOW,HIGH",
            help="Of a search: of lr, updates or p. Repeatable.",
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

    Rows come from --data harmful=... and task=... Started again it goes on. With --search an attack
    is tuned on validation prompts, and what it comes to is told of test prompts.
    Exit code 1: a rung that was asked for is missing; 3: a search came to no result.
    """
    shared: dict[str, Any] = {
        "pipeline": pipeline,
        "recipe": recipe,
        "settings": with_limit(merge_data(data, settings), limit),
        "seed": seed,
        "out": out,
        "store": store,
    }
    of_ladder = {"--ladder": ladder, "--rungs": rungs, "--aware": aware}
    of_search = {"--trials": trials, "--margin": margin, "--range": ranges}
    for option, value in (of_ladder if search else of_search).items():
        if value is not None:
            kind = "a ladder" if search else "a search"
            mend = "leave it or --search out" if search else "give --search"
            raise ValueError(f"{option} is of {kind}: {mend}")
    if search:
        asked = {"trials": trials, "margin": margin, "ranges": read_ranges(ranges)}
        code = search_attack(
            model, shared | {name: of for name, of in asked.items() if of is not None}, as_json
        )
    else:
        wanted = [name.strip() for name in rungs.split(",")] if rungs is not None else []
        code = climb(model, ladder or "v1", wanted, shared | {"aware": aware}, as_json)
    if not as_json:
        screen.say(f"Everything is in {Path(out)}", sys.stderr)
    if code:
        raise typer.Exit(code)


def climb(
    model: str | None, ladder: str, wanted: list[str], options: dict[str, Any], as_json: bool
) -> int:
    """Set a ladder at a model, and print what it found; the exit code."""
    from titer import api
    from titer.report import tables
    from titer.runs import ladder as ladders

    ladders.load(ladder).check(wanted)  # a wrong name is told of without torch
    with screen.watch_stages() as watch:
        found = api.attack(model, ladder=ladder, rungs=wanted, **options, progress=watch)
    show(found.record, tables.of_ladder, tables.lines_of_ladder, as_json)
    return int(any(not wanted or rung.name in wanted for rung in found.record.missing))


def search_attack(model: str | None, options: dict[str, Any], as_json: bool) -> int:
    """Search an attack on a model, and print what it found; the exit code."""
    from titer import api
    from titer.findings.attack_search import tell
    from titer.report import tables

    with screen.watch_stages() as watch:
        found = api.search_attack(model, **options, progress=watch)
    show(found.record, tables.of_attack_search, tell, as_json)
    return 0 if found.record.test else 3


def show(record: LadderRecord | AttackSearchRecord, table: Any, lines: Any, as_json: bool) -> None:
    """Print a record as JSON, or its table and its sentences, and its red flags."""
    if as_json:
        screen.print_json(record.model_dump(by_alias=True, mode="json"))
    else:
        console = screen.console(sys.stdout)
        console.print(table(record, console.width))
        for line in lines(record):
            screen.say(line)
    screen.print_flags({"flags": record.flags})


def read_ranges(texts: list[str] | None) -> dict[str, tuple[float, float]]:
    """Read the ranges of settings as lr=1e-5,1e-3."""
    found: dict[str, tuple[float, float]] = {}
    for name, text in read_pairs("--range", texts).items():
        try:
            low, high = map(float, text.split(","))
        except ValueError:
            raise ValueError(
                f"--range {name}={text}: give the lowest and the highest value, as lr=1e-5,1e-3"
            ) from None
        found[name] = (low, high)
    return found
