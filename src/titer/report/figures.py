"""The figures of a page, drawn once.

A page that is made again takes those that were drawn, and loads no library for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from titer import paths
from titer.config import hash_of


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

    def get(self, shows: Any, draw: Callable[[], str]) -> Markup:
        """Return the figure that shows these values, drawn by `draw` where it is not there."""
        key = hash_of([shows, drawing_code()])
        self._used[key] = self._known.get(key) or draw()
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
