"""A page's figures and tables as files: SVG, PDF and PNG; CSV, Markdown and LaTeX.

They are made from the objects that the page is made from. A table's CSV has a column for each part
of a score; its Markdown and its LaTeX (for the package booktabs) have the text that a reader sees.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from titer.report.contents import Contents
from titer.report.figures import Drawing
from titer.report.sheets import Column, Entry, Link, ScoreEntry, Sheet, Sign
from titer.report.tables import cell, write_markdown
from titer.scoring.score import Score

DPI = 300  # of a PNG
LONGEST = 80  # characters of a file's name, before its suffix
PARTS: Mapping[str, Callable[[Score], object]] = {  # of a score, a column each
    "": lambda score: score.value,
    " low": lambda score: _known(score.low),
    " high": lambda score: _known(score.high),
    " prompts": lambda score: score.n,
    " unscored": lambda score: score.unscored,
}
STRUCK = " struck out"


def write_parts(contents: Contents, to: Path) -> list[Path]:
    """Write every figure and table into a folder that is not there yet, or is empty; return the files.

    They appear together or, after an error, not at all. Raises FileExistsError.
    """
    with write_together(to) as draft:
        names = FileNames()
        for drawing in contents.drawings:
            _save(drawing, draft, names.take(f"figure {drawing.name}"))
        for sheet in contents.sheets:
            stem = names.take(f"table {sheet.name}")
            for suffix, write in WRITERS.items():
                (draft / f"{stem}{suffix}").write_text(write(sheet), encoding="utf-8")
    return sorted(to.iterdir())


@contextmanager
def write_together(to: Path) -> Iterator[Path]:
    """Give a folder to write into, which takes the place of `to` in the end, or after an error is gone.

    Raises FileExistsError where `to` is there already and is not an empty folder.
    """
    if to.exists() and not to.is_dir():
        raise FileExistsError(f"{to} is a file: give a folder that is not there yet")
    if to.is_dir() and any(to.iterdir()):
        raise FileExistsError(f"{to} is not empty: give another folder, or remove it")
    to.parent.mkdir(parents=True, exist_ok=True)
    draft = to.parent / f".{to.name}.{os.getpid()}"
    draft.mkdir()
    try:
        yield draft
        draft.replace(to)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def to_csv(sheet: Sheet) -> str:
    """Write a table with a column for each part of a score."""
    header: list[str] = []
    columns: list[list[object]] = []
    for i, column in enumerate(sheet.columns):
        entries = [row[i] for row in sheet.rows]
        if not any(isinstance(entry, ScoreEntry) for entry in entries):
            header.append(column.title)
            columns.append([text_of(entry) for entry in entries])
            continue
        scores = [entry.score if isinstance(entry, ScoreEntry) else None for entry in entries]
        for name, part in PARTS.items():
            header.append(f"{column.title}{name}")
            columns.append([part(score) if score else "" for score in scores])
        if any(isinstance(entry, ScoreEntry) and entry.struck for entry in entries):
            header.append(f"{column.title}{STRUCK}")
            struck = [isinstance(entry, ScoreEntry) and entry.struck for entry in entries]
            columns.append(["yes" if each else "" for each in struck])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(zip(*columns, strict=True))
    return text.getvalue()


def to_markdown(sheet: Sheet) -> str:
    caption = f"\n{sheet.caption}\n" if sheet.caption else ""
    return f"{write_markdown(*_texts(sheet))}{caption}"


def to_latex(sheet: Sheet) -> str:
    """Write a table for LaTeX, with the rules of booktabs."""
    import pandas

    header, body = _texts(sheet)
    frame = pandas.DataFrame(body, columns=header, dtype=str)
    return str(
        frame.to_latex(
            index=False,
            escape=True,
            column_format="".join(map(_align, sheet.columns)),
            caption=_escape(sheet.caption) or None,
        )
    )


WRITERS: Mapping[str, Callable[[Sheet], str]] = {
    ".csv": to_csv,
    ".md": to_markdown,
    ".tex": to_latex,
}


def text_of(entry: Entry) -> str:
    """Write an entry as a reader sees it; its word stands for a sign."""
    if isinstance(entry, ScoreEntry):
        return cell(entry.score, entry.struck) or "not scored"
    if isinstance(entry, Sign):
        return entry.word
    return entry.text if isinstance(entry, Link) else entry


def _texts(sheet: Sheet) -> tuple[list[str], list[list[str]]]:
    header = [
        f"{column.title}{f' ({column.unit})' * bool(column.unit)}" for column in sheet.columns
    ]
    return header, [[text_of(entry) for entry in row] for row in sheet.rows]


def _save(drawing: Drawing, folder: Path, stem: str) -> None:
    """Save a figure in every format."""
    from titer.report.drawing import style

    (folder / f"{stem}.svg").write_text(f"{drawing.svg()}\n", encoding="utf-8")
    with style():
        figure = drawing.draw()
        figure.savefig(folder / f"{stem}.pdf", metadata={"CreationDate": None})
        figure.savefig(folder / f"{stem}.png", dpi=DPI)


class FileNames:
    """Names of files, each given once."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, words: str) -> str:
        """Return a name of letters, digits, `.`, `+`, `=` and dashes, with a number if it is taken."""
        name = re.sub(r"[^\w.+=]+", "-", words).strip("-.")[:LONGEST]
        free, i = name, 2
        while free.casefold() in self._taken:
            free, i = f"{name}-{i}", i + 1
        self._taken.add(free.casefold())
        return free


def _align(column: Column) -> str:
    wide = "p{0.4\\linewidth}"
    return {"number": "r", "long": wide, "note": wide}.get(column.role, "l")


def _known(value: float) -> object:
    return value if value == value else ""


def _escape(text: str) -> str:
    """Write what LaTeX would take for its own as text."""
    return re.sub(r"([&%$#_{}])", r"\\\1", text)
