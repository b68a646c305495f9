"""The commands on a judge itself: calibrate, correct."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from titer.cli import screen
from titer.cli.options import Json, quote

app = typer.Typer(
    help="How often a judge is right, and figures corrected by it: calibrate, correct.",
    no_args_is_help=True,
)


@app.command("calibrate")
def calibrate_judge(
    judge: Annotated[
        str, typer.Argument(help="A judge's name, or {method: ..., FIELD: VALUE} as in a recipe.")
    ],
    labels: Annotated[
        list[str],
        typer.Option(
            "--labels",
            metavar="SOURCE",
            help="Labelled answers: a file with prompt, response and label, a hub id, "
            "pip:PACKAGE/FILE, or {path: ..., columns: {...}}. Repeatable.",
        ),
    ],
    means: Annotated[
        str, typer.Option(help="What a label of 1 says of an answer: harmful, or refused.")
    ] = "harmful",
    threshold: Annotated[
        float | None, typer.Option(help="The first grade that counts as a yes (default: 0.5).")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Change a field of the judge. Repeatable."
        ),
    ] = None,
    controls: Annotated[
        int, typer.Option(min=0, help="Controls of a kind to make and judge, at most.")
    ] = 50,
    prompts: Annotated[
        int, typer.Option(min=1, help="Prompts that two models are to be compared on.")
    ] = 500,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write, for `titer judge correct`. With it an interrupted served judge goes on."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure how often a judge is right, on answers that people have labelled and on controls.

    Prints percents with intervals, and no text. Exit code 2 where the judge is no better than chance.
    """
    from titer import api
    from titer.config import read_yaml
    from titer.report import calibration as tables

    given = [read_yaml(quote(text), f"--labels {text!r}") for text in labels]
    found = api.calibrate(
        read_yaml(judge, "the judge"),
        given,
        means=means,
        threshold=threshold,
        settings=settings or [],
        controls=controls,
        out=out,
    )
    if as_json:
        screen.print_json(found.model_dump(by_alias=True))
    for name, each in {"": found, **found.others}.items():
        screen.print_flags(each.model_dump())
        if as_json:
            continue
        if found.others:
            screen.say(f"{name or found.judge['method']}{'' if name else ', which decides'}")
        screen.console(sys.stdout).print(tables.of_calibration(each))
        screen.say("\n".join(tables.sentences(each, prompts)))
    if out and not as_json:
        screen.say(f"Written to {out}. Next: titer judge correct {out} FOLDER", sys.stderr)


@app.command("correct")
def correct_figures(
    calibration: Annotated[Path, typer.Argument(help="What `titer judge calibrate --out` wrote.")],
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run or evaluation.")],
    as_json: Json = False,
) -> None:
    """Correct the figures of a run or an evaluation by the errors of the judge that gave them."""
    from titer.findings import calibrations, records
    from titer.report import calibration as tables

    known = records.parse_document(calibration, calibrations.CalibrationRecord)
    found = calibrations.correct_all(folder, known)
    screen.print_flags(known.model_dump())
    if as_json:
        screen.print_json([each.model_dump() for each in found])
    else:
        screen.console(sys.stdout).print(tables.of_corrected(found))
