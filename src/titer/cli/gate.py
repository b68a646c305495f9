"""The commands that set two models beside one another: gate, compare."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titer import paths
from titer.cli import screen
from titer.cli.desk import Desk, evaluation_settings
from titer.cli.options import (
    Json,
    Limit,
    RecipeName,
    Rows,
    Settings,
    StoreFolder,
    read_pairs,
)

if TYPE_CHECKING:
    from titer.findings.calibrations import CalibrationRecord
    from titer.findings.gate_record import GateRecord
    from titer.scoring.noninferiority import JudgeCounts

app = typer.Typer()
Place = Annotated[
    str | None,
    typer.Argument(
        help="The folder of `titer evaluate`, a run's <pipeline>.json (with :STAGE behind it), or a "
        "model, which is evaluated."
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
    from titer.findings import gate as rules
    from titer.findings.topics import read_topics
    from titer.scoring.noninferiority import JudgeCounts

    pairs, left_out = read_pairs("--margin", margin), without or []
    margins = {name: _number(f"--margin {name}", text) for name, text in pairs.items()}
    errors = read_pairs("--judge-error", judge_error)
    told = {name: _read_judge(text) for name, text in errors.items()}
    rules.Terms(margins, alpha)  # a bad number is told of before anything is evaluated
    changed = evaluation_settings((base, candidate, control), data, settings, judge, limit)
    of_prompts = read_topics(topics) if topics else {}
    with screen.watch_stages() as watch:
        desk = Desk(recipe, changed, out, store, watch)
        first, second = desk.open(base, "base"), desk.open(candidate, "candidate")
        judges = {
            name: of if isinstance(of, JudgeCounts) else of.count(name, first.how["judge"])
            for name, of in told.items()
        }
        terms = rules.Terms(rules.choose_margins(first, second, margins, left_out), alpha, judges)
        controls = desk.controls(base, first, control)
    record = rules.decide(first, second, terms, of_prompts, controls, left_out)
    if out is not None:
        _write(record, out)
    _print(record, as_json)
    raise typer.Exit(record.exit_code)


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

    changed = evaluation_settings((first, second), data, settings, judge, limit)
    with screen.watch_stages() as watch:
        desk = Desk(recipe, changed, out, store, watch)
        changes = compare_figures(desk.open(first, "a"), desk.open(second, "b"))
    if as_json:
        screen.print_json(shown.to_json(changes))
    else:
        screen.console(sys.stdout).print(shown.to_screen(changes))


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{option} {text!r}: give a number") from None


def _read_judge(text: str) -> JudgeCounts | CalibrationRecord:
    """Read RIGHT/BAD,RIGHT/OTHERS, or the file of a calibration."""
    from titer.findings.calibrations import CalibrationRecord
    from titer.findings.records import parse_document
    from titer.scoring.noninferiority import JudgeCounts

    if text.endswith(".json"):
        return parse_document(paths.expand(text), CalibrationRecord)
    found = re.fullmatch(r"(\d+)/(\d+),(\d+)/(\d+)", text.replace(" ", ""))
    if found is None:
        raise ValueError(
            f"--judge-error {text!r}: give RIGHT/BAD,RIGHT/OTHERS, as 88/95,190/200, "
            "or the file of `titer judge calibrate`"
        )
    caught, bad, cleared, fine = map(int, found.groups())
    return JudgeCounts(bad, caught, fine, cleared)


def _write(record: GateRecord, folder: Path) -> None:
    from titer.report import gate as shown

    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        paths.GATE: json.dumps(record.fields, indent=1) + "\n",
        paths.GATE_PAGE: shown.to_markdown(record),
        paths.JUNIT: shown.to_junit(record),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


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
