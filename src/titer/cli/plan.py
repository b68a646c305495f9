"""The command that says beforehand what a recipe takes: plan."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from titer.cli import screen
from titer.cli.options import Json, Limit, Only, Recipe, Seed, Settings, with_limit

app = typer.Typer()


@app.command("plan")
def plan_recipe(
    recipe: Recipe = "lab",
    settings: Settings = None,
    seed: Seed = None,
    only: Only = None,
    limit: Limit = None,
    gpu_memory: Annotated[
        str | None,
        typer.Option(
            "--gpu-memory",
            metavar="SIZE",
            help="Of a GPU, as 24GB. Without: this machine's memory.",
        ),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe/--no-probe", help="Train the real model for a few updates here, for the times."
        ),
    ] = True,
    seeds: Annotated[
        int, typer.Option(min=1, help="Training seeds that the intervals shall be over.")
    ] = 1,
    store: Annotated[
        Path | None, typer.Option("--store", help="Folder of finished stages, which are left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say the memory and time of every step of a recipe, what fits, and what to change.

    Exit code 1: something does not fit. 3: nothing does not, but something could not be counted.
    """
    from titer.runs import recipe as recipes

    wanted = recipes.only(recipes.load(recipe, with_limit(settings, limit), seed), only or [])
    from titer import api

    found = api.plan(wanted, gpu_memory=gpu_memory, probe=probe, seeds=seeds, store=store)
    if as_json:
        screen.print_json(found)
    else:
        _show(found)
    if not found["fits"]:
        raise typer.Exit(1)
    if any(step["fits"] is None for step in found["steps"]):
        raise typer.Exit(3)


def _show(found: dict[str, Any]) -> None:
    from rich.table import Table

    from titer.progress import span

    table = Table("step", "memory", "of it weights", "time", "operations", "", box=None)
    for step in found["steps"]:
        taken, seconds = step["bytes"], step["seconds"]
        fits = {True: "fits", False: "does not fit", None: "not counted"}[step["fits"]]
        table.add_row(
            step["step"],
            "?" if taken is None else _size(taken),
            _size(step["bytes of weights"]),
            "?" if seconds is None else span(seconds),
            f"{step['flops']:.1e}",
            f"{fits}{'; ' if step['note'] else ''}{step['note']}",
        )
    screen.console(sys.stdout).print(table)
    machine = found["machine"]
    whole = found["seconds"]
    screen.say(
        f"at most {_size(found['bytes'])} of {machine['name']}, "
        f"{_size(machine['bytes before a model'])} of them before there is a model; "
        f"{'no time is known' if whole is None else span(whole) + ' in all'} ({found['times']})"
    )
    for change in found["changes"]:
        if change["settings"] is None:
            said = "nothing here makes it fit: take a smaller model"
        else:
            settings = " ".join(f"--set {text}" for text in change["settings"])
            said = f"{settings} takes {_size(change['bytes'])}"
        screen.say(f"{change['step']}: {said}")
    for each in found["intervals"]:
        if each["asked"]:
            fewer = [
                f"{other['prompts']} prompts {other['points']:.0f}"
                for other in found["intervals"]
                if other["score"] == each["score"] and not other["asked"]
            ]
            over = f" over {each['seeds']} seeds" if each["seeds"] > 1 else ""
            more = f" (with {', '.join(fewer)})" if fewer else ""
            screen.say(
                f"{each['score']} on {each['prompts']} prompts{over}: 50 % within "
                f"{each['points']:.0f} points{more}"
            )


def _size(taken: float) -> str:
    return f"{taken / 1e9:.2f} GB" if taken >= 1e9 else f"{taken / 1e6:.0f} MB"
