"""One self-contained HTML page per run, sweep or ladder. It is made from the JSON documents in the folder,
at any time.

The page loads nothing from anywhere, and holds no prompt and no answer. It shows the figures, their
cost and their origin.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from titer import paths
from titer.findings.ladder import LadderRecord
from titer.findings.records import (
    Claim,
    PipelineRecord,
    SweepRecord,
    check,
    load_document,
    load_json,
)


def page(documents: Mapping[str, Any]) -> str:
    """Return the page of the documents of a run, by pipeline.

    `titer.runs.documents.write_documents` returns these. Raises ValueError where they are of more
    than one run.
    """
    from titer.report.html import render

    return render(documents)


def write(documents: Mapping[str, Any], folder: Path) -> Path:
    """Write the page of a run into its folder, and the figures that it shows beside it."""
    from titer.report.figures import Figures
    from titer.report.html import render

    path, drawn = folder / paths.PAGE, Figures(folder)
    path.write_text(render(documents, drawn), encoding="utf-8")
    drawn.save()
    return path


def write_sweep(bundle: Mapping[str, Any], folder: Path) -> Path:
    """Write the page of a sweep from its bundle."""
    from titer.report.sweep import render

    path = folder / paths.PAGE
    path.write_text(render(bundle), encoding="utf-8")
    return path


def write_ladder(document: Mapping[str, Any], folder: Path) -> Path:
    """Write the page of a ladder from its record."""
    from titer.report.ladder import render

    path = folder / paths.PAGE
    path.write_text(render(check(LadderRecord, document, str(folder))), encoding="utf-8")
    return path


def again(folder: Path) -> Path:
    """Make the page of a run's, a sweep's or a ladder's folder again. Raises where it holds none."""
    if (folder / paths.LADDER).is_file():
        return write_ladder(load_document(folder / paths.LADDER, LadderRecord), folder)
    bundle = folder / paths.SWEEP
    if bundle.is_file():
        return write_sweep(load_document(bundle, SweepRecord), folder)
    return write(read(folder), folder)


def read(folder: Path) -> dict[str, Any]:
    """Read the documents in a run's folder, in the recipe's order. Raises where there are none."""
    found = {}
    for path in folder.glob("*.json"):
        if path.name not in (*paths.BESIDE, paths.SWEEP, paths.FIGURES, paths.LADDER):
            fields = load_json(path)
            if isinstance(fields, dict) and "stages" in fields:
                check(PipelineRecord, fields, str(path))
                found[path.stem] = fields
    if not found:
        raise ValueError(
            f"{folder} holds no results (<pipeline>.json): "
            "give the folder of a finished `titer run` or `titer sweep`"
        )
    marker, order = folder / paths.RUN, []
    if marker.is_file():
        order = list(load_document(marker, Claim)["recipe"].get("pipelines", {}))
    places = {name: (order.index(name) if name in order else len(order), name) for name in found}
    return {name: found[name] for name in sorted(found, key=lambda name: places[name])}
