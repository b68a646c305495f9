"""What a run shows while it computes: the stage, the update, and the loss terms by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from titer.runs.pipeline import Report
from titer.runs.sweep import Cell


@contextmanager
def shown(console: Console) -> Iterator[Report]:
    """A report that draws one line per stage on `console`."""
    columns = (
        TextColumn("{task.description:24}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[terms]}"),
    )
    with Progress(*columns, console=console) as bars:
        line: TaskID | None = None

        def report(stage: str, update: int, of: int, terms: Mapping[str, float]) -> None:
            nonlocal line
            if line is None:
                line = bars.add_task(stage, total=of or 1, terms="")
            if of:
                bars.update(
                    line,
                    completed=update,
                    terms=" ".join(f"{name} {value:.3g}" for name, value in terms.items()),
                )
            else:  # computed; what follows is scoring
                bars.update(line, completed=bars.tasks[line].total)
                bars.stop_task(line)
                line = None

        yield report


@contextmanager
def counted(console: Console, cells: int) -> Iterator[Callable[[Cell, str], None]]:
    """A report on a sweep: a bar of the cells that are done, and a line for each that failed."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[now]}"),
    )
    with Progress(*columns, console=console) as bars:
        line = bars.add_task("cells", total=cells, now="")

        def report(cell: Cell, status: str) -> None:
            what = f"{' '.join(cell.settings)} seed {cell.seed}"
            bars.update(line, advance=status in ("done", "missing"), now=what)
            if status in ("failed", "missing"):
                bars.console.print(f"{status}: {what}")

        yield report
