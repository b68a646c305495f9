"""Show what a run is doing: the stage, the update, and the loss terms by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

Report = Callable[
    [str, int, int, Mapping[str, float]], None
]  # as `titer.runs.stages.stage.Progress`


class Point(Protocol):
    """A cell of a sweep, as far as it is shown."""

    @property
    def settings(self) -> tuple[str, ...]: ...
    @property
    def seed(self) -> int: ...


@contextmanager
def show_stages(console: Console) -> Iterator[Report]:
    """Draw one line per stage on `console`."""
    columns = (
        TextColumn("{task.description:24}", markup=False),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[terms]}", markup=False),
    )
    bars = Progress(*columns, console=console)
    line: TaskID | None = None

    def report(stage: str, update: int, of: int, terms: Mapping[str, float]) -> None:
        nonlocal line
        bars.start()  # with the first report: what is wrong with the input is said without a bar
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

    try:
        yield report
    finally:
        if bars.live.is_started:
            bars.stop()


@contextmanager
def count_cells(console: Console, cells: int) -> Iterator[Callable[[Point, str], None]]:
    """Draw a bar of the cells of a sweep that are done, and a line for each that failed."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[now]}", markup=False),
    )
    with Progress(*columns, console=console) as bars:
        line = bars.add_task("cells", total=cells, now="")

        def report(cell: Point, status: str) -> None:
            what = f"{' '.join(cell.settings)} seed {cell.seed}"
            bars.update(line, advance=status in ("done", "missing"), now=what)
            if status in ("failed", "missing"):
                bars.console.print(f"{status}: {what}")

        yield report
