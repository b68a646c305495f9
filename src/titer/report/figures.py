"""The figures of a page, drawn once.

A page that is made again takes those that were drawn, and loads no library for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from titer import paths
from titer.config import hash_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing:
    """A figure of a page, not drawn yet.

    The module that draws it, one of this folder, has `draw(*arguments)`, which returns the figure,
    and `svg(*arguments, prefix)`. It is loaded when it is asked.
    """

    name: str  # of its files: what it shows, in words
    module: str
    arguments: Sequence[Any]
    prefix: str  # of its ids, which keeps them apart from those of another
    shows: Any  # as JSON knows it: what it shows, whatever it is made from

    def svg(self) -> str:
        """Draw it as an element of a page, which stands alone too."""
        return str(self._module.svg(*self.arguments, self.prefix))

    def draw(self) -> Figure:
        """Draw it as matplotlib's figure, to be saved in another format inside `style()`."""
        figure: Figure = self._module.draw(*self.arguments)
        return figure

    @property
    def _module(self) -> Any:
        return import_module(f"titer.report.{self.module}")


@dataclass
class Figures:
    """The figures in a folder, by the hash of what they show and of the code that draws them."""

    folder: Path | None = None  # None: of a page that is not written
    _known: dict[str, str] = field(default_factory=dict)
    _used: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path = self.folder / paths.FIGURES if self.folder else None
        if path and path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:  # cut off, say: they are drawn again
                return
            self._known = (
                {key: svg for key, svg in found.items() if isinstance(svg, str)}
                if isinstance(found, dict)
                else {}
            )

    def get(self, drawing: Drawing) -> Markup:
        """Return a figure of the page, drawn where it is not there."""
        key = hash_of([drawing.module, drawing.prefix, drawing.shows, drawing_code()])
        self._used[key] = self._known.get(key) or drawing.svg()
        return Markup(
            self._used[key]
        )  # what matplotlib wrote is markup; it has escaped the names in it

    def save(self) -> None:
        """Keep the figures that were asked for, for the next time."""
        if self.folder:
            (self.folder / paths.FIGURES).write_text(json.dumps(self._used), encoding="utf-8")


@cache
def drawing_code() -> str:
    """Hash the modules that draw."""
    hasher = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        hasher.update(path.read_bytes())
    return hasher.hexdigest()
