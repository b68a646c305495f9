"""The tables of a page, as they are shown in it and exported from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from titer.scoring.figures import NAMES
from titer.scoring.score import Score

# a name heads its row, and what is under it stands below it in the same cell; a long text stands
# below its row where the screen is narrow
Role = Literal["name", "under", "text", "number", "long", "note"]
FIRST = ("harm", "task")  # HS and FA stand behind the name, where a narrow screen has them too
SIGNS = {  # of a word: its sign, and whether that is good
    "kept": ("✓", "good"),
    "recovered": ("✓", "good"),
    "beyond": ("✓", "good"),
    "held": ("✓", "good"),
    "weakened": ("▾", "bad"),
    "lost": ("✗", "bad"),
    "not aligned": ("✗", "bad"),
    "broken": ("✗", "bad"),
    "within": ("=", "open"),
    "not decided": ("?", "open"),
    "undecided": ("?", "open"),
    "not scored": ("·", "open"),
    "no place": ("·", "open"),
    "missing": ("·", "open"),
}


@dataclass(frozen=True)
class Column:
    """A column of a table: its title, what it is counted in, and how it stands."""

    title: str
    unit: str = ""
    role: Role = "text"


@dataclass(frozen=True)
class ScoreEntry:
    """A score in a table; None where there is none."""

    score: Score | None
    struck: bool = False


@dataclass(frozen=True)
class Sign:
    """A word in a table. Its sign stands beside it, so that colour says nothing alone."""

    word: str

    @property
    def sign(self) -> str:
        return SIGNS[self.word][0]

    @property
    def side(self) -> str:
        """Return good, bad or open."""
        return SIGNS[self.word][1]


@dataclass(frozen=True)
class Link:
    """A text in a table that leads to a page beside this one."""

    text: str
    to: str


Entry = str | ScoreEntry | Sign | Link


@dataclass(frozen=True)
class Sheet:
    """A table: rows of as many entries as it has columns. Its name is that of its files."""

    name: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Entry]]
    caption: str = ""

    def entries(self, row: Sequence[Entry], *roles: Role) -> list[Entry]:
        """Return the entries of a row that stand in columns of these roles."""
        pairs = zip(self.columns, row, strict=True)
        return [entry for column, entry in pairs if column.role in roles]


def order(names: Sequence[str]) -> list[str]:
    """Put HS and FA before all other figures."""
    return [*(name for name in FIRST if name in names), *(n for n in names if n not in FIRST)]


def unit_of(figure: str) -> str:
    return "nats" if figure == "margin" else "%"


def figure_columns(names: Sequence[str], told: str = "") -> list[Column]:
    """Return a column a figure; `told` stands behind the unit of each."""
    return [Column(NAMES.get(name, name), f"{unit_of(name)}{told}", "number") for name in names]
