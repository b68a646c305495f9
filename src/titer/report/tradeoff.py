"""HS against FA: the frontier of plain fine-tuning, and the methods beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from titer.findings.frontier import Placed, front, has_place, is_free
from titer.findings.records import quote
from titer.report.drawing import (
    LEGEND,
    canvas,
    drawable,
    pen,
    reach,
    style,
    to_svg,
    truncate,
    write_title,
)
from titer.scoring.score import Score

WIDTH, HEIGHT = 620, 380  # CSS pixels
GREY = "#777777"
KINDS = {
    "finetune sft": ("o", "plain fine-tuning"),
    "finetune ema": ("^", "... averaged"),
    "edit wise_ft": ("d", "... in part"),
}
KINDS["edit scale"] = KINDS["edit wise_ft"]


def svg(found: Sequence[Placed], title: str, note: str, prefix: str) -> str:
    """Draw the plane of groups of one attack on one world, as an SVG element.

    `note` stands inside the image; `prefix` keeps its ids apart from those of another.
    """
    with style():
        return to_svg(draw(found, title, note), label(found, title, note), prefix)


def label(found: Sequence[Placed], title: str, note: str) -> str:
    """Describe the plane, for those who cannot see it."""
    told = [
        f"{_name(group)}: HS {quote(harm)}, FA {quote(task)}"
        for group, harm, task in _points(found)
        if not is_free(group)
    ]
    best = [f"HS {quote(harm)} at FA {quote(task)}" for _, harm, task in _points(front(found))]
    frontier = f"Frontier of plain fine-tuning: {'; '.join(best) or 'none'}"
    return f"{title}. {frontier}. {'; '.join(told)}. {note}".strip()


def draw(found: Sequence[Placed], title: str, note: str) -> Figure:
    """Draw FA to the right and HS upwards: a better method is further to the lower right."""
    figure = canvas(WIDTH, HEIGHT)
    axes = figure.add_axes((0.085, 0.13, 0.56, 0.77))
    points = list(_points(found))
    least = min((task.value for _, _, task in points), default=0.0)
    axes.set(
        xlim=(max(-2.0, 10 * math.floor(least / 10) - 2), 102),
        ylim=(-4, 104),
        xlabel="FA, percent",
        ylabel="HS, percent",
    )
    axes.tick_params(length=2, width=0.6)
    axes.grid(color="#dddddd", linewidth=0.5)
    axes.set_axisbelow(True)
    keys = [*_free(axes, points), *_front(axes, front(found)), *_methods(axes, points)]
    axes.legend(handles=keys, bbox_to_anchor=(1.02, 1.0), **LEGEND)
    write_title(figure, title)
    figure.text(0.985, 0.015, drawable(note), ha="right", color="#444444")
    return figure


def _free(axes: Axes, points: Sequence[tuple[Placed, Score, Score]]) -> list[Line2D]:
    keys = []
    for marker, name in dict.fromkeys(KINDS.values()):
        some = [
            (task.value, harm.value)
            for group, harm, task in points
            if is_free(group) and KINDS[group.label] == (marker, name)
        ]
        if some:
            look: dict[str, Any] = {
                "marker": marker,
                "color": GREY,
                "markerfacecolor": "white",
                "linestyle": "none",
                "markersize": 4.5,
            }
            axes.add_line(
                Line2D(
                    *zip(*some, strict=True), clip_on=False, zorder=2, gid=f"free-{marker}", **look
                )
            )
            keys.append(Line2D([], [], label=name, **look))
    return keys


def _front(axes: Axes, best: Sequence[Placed]) -> list[Line2D]:
    """Draw the frontier as a staircase: up to the FA of a free model, no free HS is lower."""
    points = [(task.value, harm.value) for _, harm, task in _points(best)]
    if not points:
        return []
    corners = [(points[0][0], 104.0)]
    for (x, y), (left, _) in zip(points, [*points[1:], (axes.get_xlim()[0], 0.0)], strict=True):
        corners += [(x, y), (left, y)]
    axes.plot(*zip(*corners, strict=True), color=GREY, linewidth=1.2, zorder=1, gid="front")
    return [Line2D([], [], color=GREY, linewidth=1.2, label="its frontier")]


def _methods(axes: Axes, points: Sequence[tuple[Placed, Score, Score]]) -> list[Line2D]:
    keys = []
    names = dict.fromkeys(group.pipeline for group, _, _ in points if not is_free(group))
    for i, name in enumerate(names):
        colour, marker = pen(i)
        for j, (_, harm, task) in enumerate(
            (group, harm, task) for group, harm, task in points if group.pipeline == name
        ):
            axes.errorbar(
                task.value,
                harm.value,
                reach(harm),
                reach(task),
                fmt="none",
                ecolor=colour,
                elinewidth=0.8,
                alpha=0.45,
                capsize=2,
            )
            axes.plot(
                task.value,
                harm.value,
                marker,
                color=colour,
                markersize=6,
                clip_on=False,
                zorder=3,
                gid=f"method-{i}-{j}",
            )
        keys.append(
            Line2D(
                [],
                [],
                marker=marker,
                color=colour,
                linestyle="none",
                markersize=6,
                label=drawable(truncate(name, 26)),
            )
        )
    return keys


def _points(found: Iterable[Placed]) -> list[tuple[Placed, Score, Score]]:
    """Return group, HS and FA of all groups that have a place."""
    told = [
        (group, group.score("harm"), group.score("task")) for group in found if has_place(group)
    ]
    return [(group, harm, task) for group, harm, task in told if harm and task]


def _name(group: Placed) -> str:
    return " ".join([group.pipeline, *group.settings])
