"""Printing: the one place that writes to terminals, and makes text safe for them."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from titer import paths
from titer.printable import printable
from titer.progress import Silent

if TYPE_CHECKING:
    from titer.progress import Progress

QUIET = "--quiet"


class _Screen(Console):
    """A console that shows text as it is: without markup, and nothing in it steers the terminal."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def is_quiet() -> bool:
    """Tell whether only results and red flags are wanted."""
    return QUIET in sys.argv[1:]


def console(stream: TextIO) -> Console:
    """Open a console as wide as the terminal, or wide enough for a table where there is none."""
    width = None if stream.isatty() else 160
    return _Screen(file=stream, width=width, markup=False, highlight=False, emoji=False)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a text on a line of its own, whole whatever the width."""
    print(printable(text), file=stream or sys.stdout)


def print_json(value: Any) -> None:
    """Print a value as indented JSON, which writes out whatever could steer a terminal."""
    say(json.dumps(value, indent=2))


def print_error(kind: str, error: BaseException) -> None:
    """Print an error as one line."""
    say(f"{kind}: {' '.join(str(error).split()) or type(error).__name__}", sys.stderr)


def print_flags(document: Mapping[str, Any]) -> None:
    """Print a line for each kind of red flag of a document."""
    from titer.findings import flags

    for line in flags.lines(flags.from_documents(document.get("flags", []))):
        say(line, sys.stderr)


def print_stage(document: Mapping[str, Any], out: Path, as_json: bool) -> None:
    """Print what a stage came to, its red flags, and where it was written."""
    from titer.report import tables

    if as_json:
        print_json(document)
    else:
        console(sys.stdout).print(tables.summary(document))
    print_flags(document)
    if not as_json:
        say(f"Everything is in {out}", sys.stderr)


class _Notes(logging.Handler):
    """Prints what titer notes: how files were read, what of them was not used.

    Until the work begins they are held back: an error in the input stands alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held: list[str] | None = []

    def emit(self, record: logging.LogRecord) -> None:
        if self.held is None:
            say(record.getMessage(), sys.stderr)
        else:
            self.held.append(record.getMessage())

    def print_held(self) -> None:
        """Print what was held back, and all that follows at once."""
        for note in self.held or []:
            say(note, sys.stderr)
        self.held = None


def take_notes() -> None:
    """Collect from now on what titer notes while it works."""
    log = logging.getLogger("titer")
    log.handlers[:] = [_Notes()]
    log.propagate = False
    log.setLevel(logging.WARNING if is_quiet() else logging.INFO)


def show_notes() -> None:
    """Print what was noted, and from now on what is."""
    for handler in logging.getLogger("titer").handlers:
        if isinstance(handler, _Notes):
            handler.print_held()


@contextmanager
def watch_stages(tracker: str | None = None, out: Path = Path()) -> Iterator[Progress]:
    """Show how far a run is, and tell a tracker, where one is named, into a folder beside `out`."""
    with _show_stages() as shown:
        if tracker is None:
            yield shown
            return
        from titer.integrations.trackers import Tracked

        place = out.absolute()
        tracked = Tracked(tracker, place.with_name(f"{place.name}-{paths.TRACKED}"), shown)
        try:
            yield tracked
        finally:
            tracked.close()


@contextmanager
def _show_stages() -> Iterator[Progress]:
    """Show how far a run is, and what was noted before it began."""
    from titer.report.progress import Bar, Lines

    if is_quiet():
        yield Silent()
    elif sys.stderr.isatty():
        bar = Bar(console(sys.stderr), show_notes)
        try:
            yield bar
        finally:
            bar.stop()
    else:
        yield Lines(lambda text: say(text, sys.stderr), show_notes)
    show_notes()
