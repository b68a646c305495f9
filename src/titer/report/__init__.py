"""One self-contained HTML page per run, sweep or ladder. It is made from the JSON documents in the folder,
at any time.

The page loads nothing from anywhere, and holds no prompt and no answer. It shows the figures, their
cost and their origin.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer import paths
from titer.findings.ladder import LadderRecord
from titer.findings.records import (
    Claim,
    PipelineRecord,
    check,
    load_document,
    load_json,
    load_sweep,
    parse_document,
)

if TYPE_CHECKING:
    from titer.report.contents import Contents


def page(documents: Mapping[str, Any]) -> str:
    """Return the page of the documents of a run, by pipeline.

    `titer.runs.documents.write_documents` returns these. Raises ValueError where they are of more
    than one run.
    """
    from titer.report import html

    return html.lay_out(documents).render()


def write(documents: Mapping[str, Any], folder: Path) -> Path:
    """Write the page of a run into its folder, and the figures that it shows beside it."""
    from titer.report import html

    return _write(html.lay_out(documents), folder)


def write_sweep(bundle: Mapping[str, Any], folder: Path) -> Path:
    """Write the page of a sweep from its bundle, and its figures beside it."""
    from titer.report import sweep

    return _write(sweep.lay_out(bundle, folder), folder)


def write_ladder(document: Mapping[str, Any], folder: Path) -> Path:
    """Write the page of a ladder from its record, and its figure beside it."""
    from titer.report import ladder

    return _write(ladder.lay_out(check(LadderRecord, document, str(folder))), folder)


def again(folder: Path) -> Path:
    """Make the page of a run's, a sweep's or a ladder's folder again. Raises where it holds none."""
    return _write(lay_out(folder), folder)


def export(folder: Path, to: Path) -> list[Path]:
    """Write every figure and every table of a folder's page into a folder of their own.

    Raises where `to` is there already and is not an empty folder.
    """
    from titer.report.parts import write_parts

    return write_parts(lay_out(folder), to)


def lay_out(folder: Path) -> Contents:
    """Return what the page of a run's, a sweep's or a ladder's folder shows."""
    if (folder / paths.LADDER).is_file():
        from titer.report import ladder

        return ladder.lay_out(parse_document(folder / paths.LADDER, LadderRecord))
    bundle = folder / paths.SWEEP
    if bundle.is_file():
        from titer.report import sweep

        return sweep.lay_out(load_sweep(bundle), folder)
    from titer.report import html

    return html.lay_out(read(folder))


def _write(of: Contents, folder: Path) -> Path:
    from titer.report.figures import Figures

    path, drawn = folder / paths.PAGE, Figures(folder)
    path.write_text(of.render(drawn), encoding="utf-8")
    drawn.save()
    return path


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
