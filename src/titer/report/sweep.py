"""The page of a sweep, from its bundle alone. The template is `sweep.html.j2`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from titer.findings.captions import lab_caption, lab_of
from titer.findings.dose import multiple_of
from titer.findings.frontier import SETTINGS, Placement, places
from titer.findings.rules import is_undefended
from titer.findings.seeds import Group, figure_names, groups
from titer.findings.worlds import pool
from titer.report import tradeoff
from titer.report.html import template
from titer.scoring.differences import holm
from titer.scoring.figures import NAMES


@dataclass(frozen=True)
class Plane:
    drawing: Markup
    places: list[Placement[Group]]


def render(bundle: Mapping[str, Any]) -> str:
    """Return the page of the bundle that a sweep wrote."""
    cells = bundle["cells"]
    found = groups(cells)
    documents: list[Mapping[str, Any]] = [
        document for cell in cells for document in (cell.get("pipelines") or {}).values()
    ]
    # a grid may be over worlds, but not over labs
    asked: list[dict[str, Any]] = [document["recipe"]["data"] for document in documents]
    world = next(filter(lab_of, asked), {})
    return template("sweep.html.j2").render(
        recipe=bundle["recipe"],
        cells=len(cells),
        seeds=sorted({cell["seed"] for cell in cells}),
        missing=[cell for cell in cells if cell["status"] != "done"],
        caption=lab_caption(world),
        disagreeing=bundle.get("flags", []),
        raised=cells_by_flag(cells),
        planes=_planes(found, lab_of(world)),
        doses=_doses(found),
        groups=found,
        names={name: NAMES[name] for name in figure_names(found)},
    )


def _doses(found: Sequence[Group]) -> list[tuple[str, str, str, str]]:
    """List how many times plain SFT's dose each defense takes: pipeline, settings, times, and
    whether that is shown, over worlds by Holm's rule where there are several.
    """
    if any(len(each.worlds) > 1 for each in pool(found)):
        pools = pool(found)
        controls = {each.settings: each for each in pools if is_undefended(each.first)}
        told = [
            (each, each.times(controls[each.settings]))
            for each in pools
            if each.label.startswith("finetune") and each.settings in controls
        ]
        lines = [
            (each, times) for each, times in told if times and each is not controls[each.settings]
        ]
        words = holm([times.p for _, times in lines])
        return [
            (each.pipeline, " ".join(each.settings), times.ratio, "shown" if word else "not shown")
            for (each, times), word in zip(lines, words, strict=True)
        ]
    seen = [(group, multiple_of(group, found)) for group in found]
    return [
        (group.pipeline, " ".join(group.settings), str(times), "") for group, times in seen if times
    ]


def cells_by_flag(cells: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the cells whose runs raised a flag, by the name of the flag."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        document: Mapping[str, Any] = next(iter((cell.get("pipelines") or {}).values()), {})
        for name in dict.fromkeys(flag["name"] for flag in document.get("flags", [])):
            found.setdefault(name, []).append(" ".join([*cell["settings"], f"seed {cell['seed']}"]))
    return found


def _planes(found: Sequence[Group], note: str) -> list[Plane]:
    """Draw one plane for each of the settings that are not of fine-tuning.

    Each is another attack or another world.
    """
    apart: dict[tuple[str, ...], list[Group]] = {}
    for group in found:
        apart.setdefault(group.outside(*SETTINGS), []).append(group)
    drawn = []
    for i, (settings, of) in enumerate(apart.items()):
        told = places(of)
        if told:
            # what matplotlib wrote is markup; it has escaped the names in it
            drawing = Markup(
                tradeoff.svg(of, " ".join(settings) or "one setting", note, f"plane{i}")
            )
            drawn.append(Plane(drawing, told))
    return drawn
