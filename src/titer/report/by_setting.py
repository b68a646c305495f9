"""HS and FA along a setting that varies.

Each pipeline is a line, and each figure a panel with intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from titer.findings.records import quote
from titer.findings.seeds import Group
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

WIDTH, HEIGHT = 620, 440  # CSS pixels
PANELS = {"harm": "HS, percent (lower is better)", "task": "FA, percent"}
SPREAD = (
    0.5  # of the room between two values: pipelines stand apart in it, so that bars do not hide
)

Points = Mapping[str, Mapping[str, Group]]  # value of the setting -> pipeline -> what it came to


def svg(points: Points, title: str, note: str, prefix: str, ordered: bool = True) -> str:
    """Draw the panels as an SVG element. Without an order of the values there is no line.

    `note` stands inside the image; `prefix` keeps its ids apart from those of another.
    """
    with style():
        return to_svg(panels(points, title, note, ordered), label(points, title, note), prefix)


def label(points: Points, title: str, note: str) -> str:
    """Describe the panels, for those who cannot see them."""
    told = []
    for value, of in points.items():
        figures = [
            f"{name} HS {quote(harm)}{' (struck out)' if group.struck else ''}, FA {quote(task)}"
            for name, group in of.items()
            if (harm := group.score("harm")) and (task := group.score("task"))
        ]
        told.append(f"{value}: {'; '.join(figures)}")
    return f"{title}, with 95 % intervals. {'. '.join(told)}. {note}".strip()


def panels(points: Points, title: str, note: str, ordered: bool = True) -> Figure:
    figure = canvas(WIDTH, HEIGHT)
    names = list(dict.fromkeys(name for of in points.values() for name in of))
    keys = [_key(i, name, ordered) for i, name in enumerate(names)]
    for j, (benchmark, text) in enumerate(PANELS.items()):
        axes = figure.add_axes((0.085, 0.56 - 0.44 * j, 0.67, 0.35))
        axes.set(xlim=(-0.5, len(points) - 0.5), ylim=(-4, 104))
        axes.set_xticks(
            range(len(points)),
            [drawable(truncate(value, 60 // len(points))) for value in points]
            if j
            else [""] * len(points),
        )
        axes.set_title(text, fontsize=8, loc="left")
        axes.tick_params(length=2, width=0.6)
        axes.grid(axis="y", color="#dddddd", linewidth=0.5)
        axes.set_axisbelow(True)
        for i, name in enumerate(names):
            _line(
                axes,
                keys[i],
                [of.get(name) for of in points.values()],
                benchmark,
                SPREAD * ((i + 0.5) / len(names) - 0.5),
                f"{j}-{i}",
            )
    figure.legend(handles=keys, bbox_to_anchor=(0.765, 0.9), **LEGEND)
    write_title(figure, title)
    figure.text(
        0.985,
        0.012,
        f"{drawable(note)}{'; ' if note else ''}open marker: struck out under some seed",
        ha="right",
        color="#444444",
    )
    return figure


def _key(i: int, name: str, ordered: bool) -> Line2D:
    colour, marker = pen(i)
    return Line2D(
        [],
        [],
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=1.1 * ordered,
        label=drawable(truncate(name, 22)),
    )


def _line(
    axes: Axes, key: Line2D, groups: Sequence[Group | None], benchmark: str, shift: float, gid: str
) -> None:
    """Draw a pipeline's figure along the values."""
    found = [
        (x + shift, group, score)
        for x, group in enumerate(groups)
        if group and (score := group.score(benchmark))
    ]
    colour = key.get_color()
    line = [x for x, _, _ in found], [score.value for _, _, score in found]
    axes.plot(*line, color=colour, linewidth=key.get_linewidth(), alpha=0.6, gid=f"along-{gid}")
    for x, group, score in found:
        axes.errorbar(
            x,
            score.value,
            reach(score),
            fmt="none",
            ecolor=colour,
            elinewidth=0.8,
            alpha=0.5,
            capsize=2,
        )
        face = "white" if group.struck and benchmark == "harm" else colour
        axes.plot(
            x,
            score.value,
            marker=str(key.get_marker()),
            color=colour,
            markerfacecolor=face,
            markersize=5,
            clip_on=False,
            zorder=3,
        )
