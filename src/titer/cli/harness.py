"""The command that measures a model by tasks of lm-evaluation-harness: harness."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from titer.cli import screen
from titer.cli.options import Json, Model, Out, Settings

if TYPE_CHECKING:
    from rich.table import Table

    from titer.integrations.harness import Figure

app = typer.Typer()


@app.command("harness")
def harness(
    model: Model,
    task: Annotated[
        list[str],
        typer.Option(
            help="A task of lm-evaluation-harness, or a YAML file or folder of your own. Repeatable."
        ),
    ],
    out: Out,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", help="Ask at most N rows of each task: a quick look."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Requests that the model answers at once.")] = 8,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Measure what a model can do, by lm-evaluation-harness and its tasks.

    Needs pip install 'titer[lm-eval]'. The harness's own results are in OUT/harness.json.
    """
    from titer.integrations.harness import RESULTS, read_figures, run_harness

    results = run_harness(model, task, out, limit, settings or (), batch)
    if as_json:
        screen.print_json(results["results"])
        return
    screen.console(sys.stdout).print(_table(read_figures(results)))
    applied = results["titer"]["chat template applied"]
    said = "was applied" if applied else "was not applied: the model has none"
    screen.say(f"The chat template {said}.")
    screen.say(f"The harness's own results are in {out / RESULTS}", sys.stderr)


def _table(figures: Iterable[Figure]) -> Table:
    """Make the table of what the harness found, in its own units."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("task", "metric", "value", "stderr", "rows"):
        table.add_column(column)
    for each in figures:
        stderr = "" if each.stderr is None else f"{each.stderr:.4f}"
        rows = "" if each.n is None else str(each.n)
        table.add_row(each.task, each.metric, f"{each.value:.4f}", stderr, rows)
    return table
