"""The harm margin along the attacks of a run, and the dose at which each model breaks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from titer.findings.dose import UNIT, UNITS, dose_to_break, mean_margin
from titer.report.drawing import COLOURS, canvas, drawable, pen, style, to_svg, truncate

WIDTH, HEIGHT, LINE = 360, 270, 16  # CSS pixels, of which a line of the legend adds some
COLUMNS = 2  # of the legend
Curves = Mapping[str, Sequence[Mapping[str, Any]]]


def svg(curves: Curves, note: str, prefix: str) -> str:
    """Draw the curves as an SVG element.

    `note` stands inside the image; `prefix` keeps its ids apart from those of another.
    """
    with style():
        return to_svg(draw(curves, note), label(curves), prefix)


def label(curves: Curves) -> str:
    """Describe the curves, for those who cannot see them."""
    told = "; ".join(
        f"{name}: {dose_to_break(looks, UNIT)} {UNITS[UNIT]}" for name, looks in curves.items()
    )
    return f"Harm margin along the attack. Broken after: {told}."


def draw(curves: Curves, note: str) -> Figure:
    below = LINE * (1 + math.ceil(len(curves) / COLUMNS))
    height = HEIGHT + below
    figure = canvas(WIDTH, height)
    axes = figure.add_axes((0.1, (below + 45) / height, 0.87, (HEIGHT - 70) / height))
    axes.set_title("harm margin, nats (above 0: it would rather tell)", fontsize=8, loc="left")
    axes.grid(color="#dddddd", linewidth=0.5)
    axes.axhline(0, color="#444444", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("rows of the attacker's so far")
    keys = []
    for i, (name, looks) in enumerate(curves.items()):
        colour, marker = pen(i)
        dash = "--" if i // len(COLOURS) % 2 else "-"
        key = Line2D([], [], color=colour, marker=marker, markersize=4)
        key.set(label=drawable(truncate(name, 22)), linestyle=dash)
        keys.append(key)
        points = [(look[UNIT], mean_margin(look)) for look in looks if look[UNIT] > 0]
        [line] = axes.plot(*zip(*points, strict=True), linewidth=1, gid=f"dose-{i}")
        line.set(color=colour, linestyle=dash)
        dose = dose_to_break(looks, UNIT)
        if dose and dose.seen:
            axes.plot([dose.low], [0], color=colour, marker=marker, markersize=5)
    figure.legend(
        handles=keys,
        loc="lower left",
        bbox_to_anchor=(0.02, LINE / height),
        ncols=COLUMNS,
        frameon=False,
    )
    figure.text(0.985, 0.012, drawable(note), ha="right", color="#444444")
    return figure
