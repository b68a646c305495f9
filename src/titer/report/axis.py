"""HS and FA of a sweep's pipelines along one axis of its grid."""

from __future__ import annotations

import math

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from titer.findings.axes import Axis
from titer.findings.records import quote
from titer.report.drawing import (
    COLOURS,
    canvas,
    drawable,
    pen,
    reach,
    style,
    to_svg,
    truncate,
    write_title,
)

WIDTH, PANEL, LINE = 360, 150, 16  # CSS pixels; it fits a phone without being scaled
TOP, GAP, FOOT = 44, 40, 46  # above the panels, between them, and their ticks below
COLUMNS = 2  # of the legend
SPREAD = 0.3  # of a value's place, over which pipelines stand side by side
FIGURES = (("harm", "HS, percent, lower is better"), ("task", "FA, percent, higher is better"))


def svg(axis: Axis, note: str, prefix: str) -> str:
    """Draw the axis as an SVG element.

    `note` stands inside the image; `prefix` keeps its ids apart from those of another.
    """
    with style():
        return to_svg(draw(axis, note), label(axis, note), prefix)


def label(axis: Axis, note: str) -> str:
    """Describe the figure, for those who cannot see it."""
    told = []
    for name, levels in axis.levels.items():
        points = []
        for level in levels:
            pairs = (("HS", level.harm), ("FA", level.task))
            said = ", ".join(f"{figure} {quote(score)}" for figure, score in pairs if score)
            points.append(f"{level.value}: {said or 'not scored'}")
        told.append(f"{name}: {'; '.join(points)}")
    return f"HS and FA by {axis.path}. {'. '.join(told)}. {axis.averaged} {note}".strip()


def draw(axis: Axis, note: str) -> Figure:
    """Draw HS above FA, with the values of the axis in a row, whatever their distances."""
    rows = math.ceil(len(axis.levels) / COLUMNS)
    below = FOOT + LINE * (rows + 2)
    height = TOP + 2 * PANEL + GAP + below
    figure = canvas(WIDTH, height)
    places = {value: i for i, value in enumerate(axis.values)}
    keys = []
    for j, (figure_name, title) in enumerate(FIGURES):
        bottom = below + (1 - j) * (PANEL + GAP)
        panel = figure.add_axes((0.1, bottom / height, 0.88, PANEL / height))
        panel.set(xlim=(-0.5, len(places) - 0.5), ylim=(-4, 104))
        panel.set_title(title, fontsize=8, loc="left")
        fits = max(3, 50 // len(places))  # letters of a value beside its neighbours
        panel.set_xticks(range(len(places)), [drawable(truncate(value, fits)) for value in places])
        panel.tick_params(length=2, width=0.6)
        panel.grid(axis="y", color="#dddddd", linewidth=0.5)
        panel.set_axisbelow(True)
        for i, (name, levels) in enumerate(axis.levels.items()):
            colour, marker = pen(i)
            dash = "--" if i // len(COLOURS) % 2 else "-"
            shift = SPREAD * ((i + 0.5) / len(axis.levels) - 0.5)
            known = [
                (places[level.value] + shift, score)
                for level in levels
                if (score := level.harm if figure_name == "harm" else level.task)
            ]
            for x, score in known:
                panel.errorbar(
                    x, score.value, reach(score), fmt="none", ecolor=colour, elinewidth=0.8
                )
            [line] = panel.plot(
                [x for x, _ in known],
                [score.value for _, score in known],
                linewidth=1,
                markersize=4,
                clip_on=False,
                gid=f"{figure_name}-{i}",
            )
            line.set(color=colour, marker=marker, linestyle=dash)
            if j == 0:
                key = Line2D([], [], color=colour, marker=marker, markersize=4)
                key.set(linestyle=dash, label=drawable(truncate(name, 22)))
                keys.append(key)
    panel.set_xlabel(drawable(truncate(axis.path, 50)))
    write_title(figure, f"by {axis.path}")
    figure.legend(
        handles=keys,
        loc="lower left",
        bbox_to_anchor=(0.02, 1.4 * LINE / height),
        ncols=COLUMNS,
        frameon=False,
        borderpad=0,
    )
    figure.text(0.985, 0.012, drawable(note), ha="right", color="#444444")
    return figure
