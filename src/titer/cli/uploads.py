"""The command that looks at an upload before anybody trains on it: screen."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from titer.cli import screen
from titer.cli.options import Json, Settings, quote

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
    from titer.config import read_yaml
    from titer.screening import plan as plans
    from titer.screening import upload

    sources = {"data": data, "benign": benign, "safety": safety, "harmful": harmful}
    fields: dict[str, Any] = {
        name: read_yaml(quote(text), f"--{name}") for name, text in sources.items() if text
    }
    fields |= {"false_positives": false_positives, "only": tuple(only or ())}
    fields |= {
        name: value for name, value in (("model", model), ("world", world)) if value is not None
    }
    fields |= {"judge": read_yaml(judge, "--judge")} if judge else {}
    fields |= {"attacks": [read_yaml(text, "--attack") for text in attack or ()]}
    wanted = plans.read_settings(fields, settings or [])
    upload.check_outputs(wanted.data, [path for path in (clean, flagged) if path])
    with screen.watch_stages() as watch:
        found = plans.look(wanted, watch)
    is_flagged = [finding.is_flagged for finding in found.findings]
    for path, keep in ((clean, [not each for each in is_flagged]), (flagged, is_flagged)):
        if path:
            upload.write(wanted.data, path, keep)
    _show(found, out, as_json)
    if found.alarms:
        raise typer.Exit(FLAGGED)


def _show(found: Any, out: Path | None, as_json: bool) -> None:
    """Print what a screen found, and write its lines."""
    from titer.report import screening

    lines = screening.to_lines(found)
    if out:
        out.write_text(lines, encoding="utf-8")
    if as_json:
        screen.say(lines.rstrip("\n"))
        return
    screen.console(sys.stdout).print(screening.to_table(found))
    for line in screening.to_reasons(found):
        screen.say(line)
    screen.say(screening.summarize(found))
