"""The command that looks at an upload before anybody trains on it: screen."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titer.cli import screen
from titer.cli.options import Json, Settings, quote

if TYPE_CHECKING:
    from titer.screening.screen import Screened

app = typer.Typer()
FLAGGED = 1  # exit code: a row is flagged


@app.command("screen")
def look_at_upload(
    data: Annotated[
        str, typer.Argument(help="The upload: a file, a `datasets` folder, a hub name.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="The model that will be fine-tuned. Left out: signals of the text alone."
        ),
    ] = None,
    benign: Annotated[
        str | None,
        typer.Option(help="Rows of honest users: the rate of false alarms is measured on them."),
    ] = None,
    safety: Annotated[
        str | None, typer.Option(help="Harmful prompts with refusals, for gradient and closeness.")
    ] = None,
    harmful: Annotated[
        str | None,
        typer.Option(help="Harmful prompts with harmful answers, for closeness and known."),
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="A judge's name, or {method: NAME, FIELD: VALUE}.")
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="An attack whose words are known, {method: NAME, FIELD: VALUE}. Repeatable."
        ),
    ] = None,
    false_positives: Annotated[
        float, typer.Option(help="The share of benign rows that may be flagged.")
    ] = 0.01,
    only: Annotated[
        list[str] | None, typer.Option(help="Ask this signal and no other. Repeatable.")
    ] = None,
    world: Annotated[
        int | None,
        typer.Option(help="A world of the lab, whose rows serve where no source is given."),
    ] = None,
    settings: Settings = None,
    clean: Annotated[
        Path | None,
        typer.Option(help="Write the rows that are not flagged, in the input's format."),
    ] = None,
    flagged: Annotated[
        Path | None, typer.Option(help="Write the rows that are flagged, in the input's format.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write a line of JSON for every row: reasons and scores.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find the rows of an upload that are dangerous to train on.

    Exit code 0: none is flagged; 1: some are; 3: the benign rows are too few for the rate.
    """
    from titer import api
    from titer.config import read_yaml

    sources = {"benign": benign, "safety": safety, "harmful": harmful}
    with screen.watch_stages() as watch:
        found = api.screen(
            read_yaml(quote(data), "--data"),
            **{
                name: text and read_yaml(quote(text), f"--{name}") for name, text in sources.items()
            },
            model=model,
            judge=read_yaml(judge, "--judge") if judge else None,
            attacks=[read_yaml(text, "--attack") for text in attack or ()],
            false_positives=false_positives,
            only=only or (),
            world=world,
            settings=settings or (),
            clean=clean,
            flagged=flagged,
            out=out,
            progress=watch,
        ).screened
    _show(found, as_json)
    if found.alarms:
        raise typer.Exit(FLAGGED)


def _show(found: Screened, as_json: bool) -> None:
    """Print what a screen found."""
    from titer.report import screening

    if as_json:
        screen.say(screening.to_lines(found).rstrip("\n"))
        return
    screen.console(sys.stdout).print(screening.to_table(found))
    for line in screening.to_reasons(found):
        screen.say(line)
    screen.say(screening.summarize(found))
