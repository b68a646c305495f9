"""A judging that is interrupted goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from titer import paths
from titer.methods import Judge


@contextmanager
def keep_judged(judge: Judge, folder: Path) -> Iterator[Judge]:
    """Lend the judge that keeps in a folder what a server said of answers, until all are judged.

    After an exception it stays there, for the next judging in the same folder.
    """
    yield judge.keep_in(folder)
    (folder / paths.JOURNAL).unlink(missing_ok=True)
