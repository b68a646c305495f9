"""One self-contained HTML page per run or sweep. It is made from the JSON documents in the folder,
at any time.

The page loads nothing from anywhere, and holds no prompt and no answer. It shows the figures, their
cost and their origin.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGE = "report.html"


def page(documents: Mapping[str, Any]) -> str:
    """Return the page of the documents by pipeline that `titer.report.tables.write` returns.

    Raises ValueError where they are of more than one run.
    """
    from titer.report.html import render

    return render(documents)


def write(documents: Mapping[str, Any], folder: Path) -> Path:
    path = folder / PAGE
    path.write_text(page(documents), encoding="utf-8")
    return path


def write_sweep(bundle: Mapping[str, Any], folder: Path) -> Path:
    """Write the page of a sweep from its bundle."""
    from titer.report.sweep import render

    path = folder / PAGE
    path.write_text(render(bundle), encoding="utf-8")
    return path


def again(folder: Path) -> Path:
    """Make the page of a run's or a sweep's folder again.

    Raises ValueError where it holds neither.
    """
    bundle = folder / "sweep.json"
    return write_sweep(_json(bundle), folder) if bundle.is_file() else write(read(folder), folder)


def read(folder: Path) -> dict[str, Any]:
    """Read the documents in a run's folder, in the recipe's order.

    Raises ValueError where there are none.
    """
    found = {path.stem: _json(path) for path in folder.glob("*.json") if path.name != "run.json"}
    found = {
        name: document
        for name, document in found.items()
        if isinstance(document, dict) and "stages" in document
    }
    if not found:
        raise ValueError(
            f"{folder} holds no results (<pipeline>.json): "
            "give the folder of a finished `titer run` or `titer sweep`"
        )
    marker = folder / "run.json"
    order = list(_json(marker)["recipe"]["pipelines"]) if marker.is_file() else []
    return {
        name: found[name]
        for name in sorted(
            found, key=lambda name: (order.index(name) if name in order else len(order), name)
        )
    }


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); run the recipe again") from None
