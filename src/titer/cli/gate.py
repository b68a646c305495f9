"""The commands that set two models beside one another: gate, compare."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from titer.cli import screen
from titer.cli.options import (
    Json,
    Limit,
    RecipeName,
    Rows,
    Settings,
    StoreFolder,
    merge_data,
    read_pairs,
    with_limit,
)

if TYPE_CHECKING:
    from titer.findings.gate_record import GateRecord

app = typer.Typer()
Place = Annotated[
    str | None,
    typer.Argument(
        help="The folder of `titer evaluate`, a run's <pipeline>.json (with :STAGE behind it), or a "
        "model, which is evaluated: here, or behind a server as NAME@URL."
    ),
]
Judge = Annotated[str | None, typer.Option(help="What judges harm, where models are evaluated.")]


@app.command("gate")
def gate(
    base: Place = None,
    candidate: Place = None,
    margin: Annotated[
        list[str] | None,
        typer.Option(
            "--margin",
            metavar="MEASURE=POINTS",
            help="By how much the candidate may be worse (default: 5). Repeatable.",
        ),
    ] = None,
    alpha: Annotated[
        float, typer.Option(help="At most so many candidates beyond a margin pass.")
    ] = 0.05,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="MEASURE", help="Leave a measure out. Repeatable."),
    ] = None,
    judge_error: Annotated[
        list[str] | None,
        typer.Option(
            "--judge-error",
            metavar="MEASURE=RIGHT/BAD,RIGHT/OTHERS",
            help="What the judge had right of labelled answers, as harm=88/95,190/200, or the file "
            "of `titer judge calibrate`. Repeatable.",
        ),
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(metavar="PLACE", help="Results or a model known to be bad: it must fail."),
    ] = None,
    topics: Annotated[
        str | None,
        typer.Option(metavar="FILE:COLUMN", help="Look at every topic of a file of prompts, too."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for gate.json, gate.md, junit.xml and evaluations.")
    ] = None,
    judge: Judge = None,
    data: Rows = None,
    settings: Settings = None,
    recipe: RecipeName = "checkpoint",
    limit: Limit = None,
    store: StoreFolder = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Show five gates on planted results.")
    ] = False,
    as_json: Json = False,
) -> None:
    """May CANDIDATE take the place of BASE? Each measure may be worse by less than its margin.

    Exit codes: 0 pass, 1 fail, 2 bad input, 3 undecided, with the number of prompts needed.
    """
    if demo:
        _show_demo(as_json)
        return
    if base is None or candidate is None:
        raise ValueError("give BASE and CANDIDATE: results or models; or --demo for a look")
    from titer import api

    given = [_read(place) for place in (base, candidate, control) if place is not None]
    _check_folder(given, out)
    pairs = read_pairs("--margin", margin)
    with screen.watch_stages() as watch:
        found = api.gate(
            *given[:2],
            margins={name: _number(f"--margin {name}", text) for name, text in pairs.items()},
            alpha=alpha,
            without=without or [],
            judge_errors=read_pairs("--judge-error", judge_error),
            control=given[2] if control else None,
            topics=topics,
            judge=_read_judge(judge),
            recipe=recipe,
            settings=with_limit(merge_data(data, settings), limit),
            out=out,
            store=store,
            progress=watch,
        )
    _print(found.record, as_json)
    raise typer.Exit(found.record.exit_code)


@app.command("compare")
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="As BASE of `titer gate`.")],
    second: Annotated[str, typer.Argument(metavar="B", help="As CANDIDATE of `titer gate`.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the evaluations of models.")] = None,
    judge: Judge = None,
    data: Rows = None,
    settings: Settings = None,
    recipe: RecipeName = "checkpoint",
    limit: Limit = None,
    store: StoreFolder = None,
    as_json: Json = False,
) -> None:
    """Set two models beside one another: every figure, on the same prompts, with the difference."""
    from titer.findings.compare import compare as compare_figures
    from titer.report import compare as shown
    from titer.runs.contender import Contender
    from titer.runs.desk import Desk, check_settings

    given = [_read(first), _read(second)]
    _check_folder(given, out)
    a, b = (Contender.read(each) for each in given)
    changed = with_limit(merge_data(data, settings), limit)
    changed += [f"judge={json.dumps(_read_judge(judge))}"] if judge else []
    check_settings([a, b], changed)
    with screen.watch_stages() as watch:
        desk = Desk(recipe, changed, out or Path(), store, watch)  # no folder: all are results
        changes = compare_figures(desk.open(a, "a"), desk.open(b, "b"))
    if as_json:
        screen.print_json(shown.to_json(changes))
    else:
        screen.console(sys.stdout).print(shown.to_screen(changes))


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{option} {text!r}: give a number") from None


def _read(place: str) -> Any:
    """Read {url: ..., model: ...} of a model behind a server; any other place is as it stands."""
    from titer.config import read_yaml

    return read_yaml(place, f"the model {place!r}") if place.startswith("{") else place


def _read_judge(judge: str | None) -> Any:
    from titer.config import read_yaml

    return read_yaml(judge, "--judge") if judge else None


def _check_folder(given: Sequence[Any], out: Path | None) -> None:
    """Raise where a model is to be evaluated and there is no folder for its answers."""
    from titer.runs.contender import Contender

    for place in map(Contender.read, given):
        if out is None and not place.is_measured:
            raise ValueError(
                f"{place.name!r} holds no results, and is evaluated as a model: say with --out FOLDER "
                "where its answers go, or give the folder of `titer evaluate`"
            )


def _print(record: GateRecord, as_json: bool) -> None:
    from titer.report import gate as shown

    if as_json:
        screen.print_json(record.fields)
        return
    screen.console(sys.stdout).print(shown.to_screen(record))
    for line in shown.sentences(record):
        screen.say(line)
    for note in record.notes:
        screen.say(f"note: {note}", sys.stderr)


def _show_demo(as_json: bool) -> None:
    """Decide on candidates of which it is known how bad they are."""
    from titer.findings import demo
    from titer.report import gate as shown

    found = demo.run()
    if as_json:
        screen.print_json({name: record.fields for name, record in found.items()})
        return
    console = screen.console(sys.stdout)
    console.print(shown.to_screen(next(iter(found.values()))))
    for name, record in found.items():
        screen.say(f"{name}: exit code {record.exit_code}")
        for line in shown.sentences(record):
            screen.say(f"    {line}")
