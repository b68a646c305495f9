"""Show how far a run is: the step and how many are left, the time, the loss terms by name.

On a terminal that is a bar, and a line for every step that is done. Elsewhere it is a line when a
step begins, one when it is done, and one a minute meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from titer.progress import span

EVERY = 60.0  # seconds between two lines on a step, where there is no terminal


class Point(Protocol):
    """A cell of a sweep, as far as it is shown."""

    @property
    def settings(self) -> tuple[str, ...]: ...
    @property
    def seed(self) -> int: ...


@dataclass
class Clock:
    """Where a run is, and how long the rest of it will take."""

    now: Callable[[], float] = time.monotonic
    left: list[str] = field(default_factory=list)  # parts of steps
    number: int = 0  # of the step
    step: str = ""
    began: float = 0.0
    part: float = 0.0  # when its part began
    took: dict[str, list[float]] = field(default_factory=dict)  # seconds, by the kind of step

    @property
    def name(self) -> str:
        return f"{self.number}/{self.number + len(self.ahead)} {self.step}"

    @property
    def ahead(self) -> list[str]:
        """The steps after this one."""
        groups = [step for step, _ in groupby([self.step, *self.left])]
        return groups[1:]

    def begin(self, step: str) -> bool:
        """Begin a step, or its next part; return whether it is a new one."""
        if step in self.left:
            self.left.remove(step)
        self.part = self.now()
        if step == self.step:
            return False
        self.number += 1
        self.step, self.began = step, self.now()
        return True

    def end(self) -> float | None:
        """End a part of the step; return the seconds of the whole step if it was the last."""
        if self.left[:1] == [self.step]:
            return None
        seconds = self.now() - self.began
        self.took.setdefault(_kind(self.step), []).append(seconds)
        return seconds

    def rest(self, done: int, of: int) -> float | None:
        """Return the seconds that are left of a part of a step, None where nothing of it is done."""
        return (self.now() - self.part) / done * (of - done) if done else None

    def after(self) -> float | None:
        """Return the seconds of the steps after this one, None where no such step was seen yet."""
        if any(_kind(step) not in self.took for step in self.ahead):
            return None
        known = (self.took[_kind(step)] for step in self.ahead)
        return sum(sum(seconds) / len(seconds) for seconds in known)


def _kind(step: str) -> str:
    """Return what alike steps are called: the last method of `align booster, finetune sft`."""
    return step.rpartition(", ")[2] if not step.startswith("scoring") else "scoring"


class Lines:
    """Tells it in lines, where there is no terminal."""

    def __init__(
        self,
        say: Callable[[str], None],
        before: Callable[[], None] = lambda: None,  # the first word
        clock: Clock | None = None,
    ) -> None:
        self.say, self.before, self.clock, self.told = say, before, clock or Clock(), 0.0

    def expect(self, steps: Sequence[str], stored: int) -> None:
        self.before()
        self.clock.left += steps
        self.say(_plan(steps, stored))

    def begin(self, step: str) -> None:
        if self.clock.begin(step):
            self.told = self.clock.now()
            self.say(f"{self.clock.name}: started")

    def advance(self, done: int, of: int, terms: Mapping[str, float]) -> None:
        if self.clock.now() - self.told < EVERY:
            return
        self.told = self.clock.now()
        rest = self.clock.rest(done, of)
        words = [f"{done} of {of}", _terms(terms), f"{span(rest)} left" if rest is not None else ""]
        self.say(f"{self.clock.name}: {', '.join(filter(None, words))}")

    def end(self) -> None:
        if told := _done(self.clock):
            self.say(told)


class Bar(Lines):
    """Tells it in a bar on a terminal, whatever its width."""

    def __init__(
        self,
        console: Console,
        before: Callable[[], None] = lambda: None,  # the first word
        clock: Clock | None = None,
    ) -> None:
        super().__init__(console.print, before, clock)
        self.bars = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(10),
            MofNCompleteColumn(),
            _Left(self.clock),
            TextColumn(
                "{task.fields[terms]}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            console=console,
            expand=True,
            transient=True,
        )
        self.line = self.bars.add_task("", total=None, visible=False, terms="")

    def begin(self, step: str) -> None:
        self.clock.begin(step)
        self.bars.start()  # with the first step: what is wrong with the input is said without a bar
        self.bars.tasks[0].total = None  # which `update` would leave as it is
        self.bars.update(
            self.line, description=self.clock.name, completed=0, terms="", visible=True
        )

    def advance(self, done: int, of: int, terms: Mapping[str, float]) -> None:
        self.bars.update(self.line, completed=done, total=of, terms=_terms(terms))

    def end(self) -> None:
        self.bars.update(self.line, visible=False)  # the next part or step shows it again
        super().end()

    def stop(self) -> None:
        if self.bars.live.is_started:
            self.bars.stop()


class _Left(ProgressColumn):
    """The time that is left of the step."""

    max_refresh = 0.5

    def __init__(self, clock: Clock) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self.clock = clock

    def render(self, task: Task) -> Text:
        rest = self.clock.rest(int(task.completed), int(task.total or 0))
        return Text(f"{span(rest)} left" if rest is not None else "")


def _plan(steps: Sequence[str], stored: int) -> str:
    count = len([step for step, _ in groupby(steps)])
    held = f"; {stored} results are in the store already" if stored else ""
    return f"{count} step{'s' * (count != 1)} to compute{held}"


def _done(clock: Clock) -> str:
    """Write that a step is done; empty where only a part of it is."""
    seconds, rest = clock.end(), clock.after()
    if seconds is None:
        return ""
    after = f"; about {span(rest)} left" if clock.left and rest is not None else ""
    return f"{clock.name}: done in {span(seconds)}{after}"


def _terms(terms: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.3g}" for name, value in terms.items())


@contextmanager
def count_cells(console: Console, cells: int) -> Iterator[Callable[[Point, str], None]]:
    """Draw a bar of the cells of a sweep that are done, and a line for each that failed."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(10),
        MofNCompleteColumn(),
        TextColumn(
            "{task.fields[now]}",
            markup=False,
            table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
        ),
    )
    plain = not console.is_terminal
    done = 0
    with Progress(*columns, console=console, expand=True, disable=plain) as bars:
        line = bars.add_task("cells", total=cells, now="")

        def report(cell: Point, status: str) -> None:
            nonlocal done
            what = f"{' '.join(cell.settings)} seed {cell.seed}"
            done += status in ("done", "missing")
            bars.update(line, completed=done, now=what)
            if plain or status in ("failed", "missing"):
                console.print(f"{done}/{cells} cells; {status}: {what}", soft_wrap=True)

        yield report
