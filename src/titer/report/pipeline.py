"""HS and FA along a pipeline, as an SVG that stands in the page or alone and is always the same."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from titer.findings.records import Record, quote
from titer.report.drawing import canvas, drawable, style, to_svg, truncate

WIDTH, HEIGHT = 330, 250  # CSS pixels, 96 an inch: it fits a phone without being scaled


@dataclass(frozen=True)
class Line:
    """The look of a figure: each has its own colour (Okabe and Ito's), marker, dash and place."""

    benchmark: str
    name: str
    legend: str
    colour: str
    ink: str  # of its numbers, which are small: darker (WCAG: 4.5 to 1)
    marker: str
    dash: Literal["-", "--"]
    shift: float  # along the stages, so that no error bar hides another


LINES = (
    Line("harm", "HS", "HS, lower is better", "#d55e00", "#b24e00", "o", "-", -0.07),
    Line("task", "FA", "FA, higher is better", "#0072b2", "#0072b2", "s", "--", 0.07),
)


def svg(
    name: str, stages: Sequence[Record], struck: Collection[str], note: str, slots: int, prefix: str
) -> str:
    """Draw the panel of a pipeline as an SVG element.

    `note` stands inside the image; `prefix` keeps its ids apart from those of another panel.
    """
    with style():
        return to_svg(
            draw(name, stages, struck, note, slots), label(name, stages, struck, note), prefix
        )


def label(name: str, stages: Sequence[Record], struck: Collection[str], note: str) -> str:
    """Describe the panel, for those who cannot see it."""
    told = []
    for stage in stages:
        scores = [
            f"{line.name} {quote(score)}"
            for line in LINES
            if (score := stage.score(line.benchmark))
        ]
        out = " (HS struck out)" * (stage.folder in struck)
        told.append(f"{stage.label}: {', '.join(scores) or 'not scored'}{out}")
    return f"{name}, percent with 95 % intervals. {'; '.join(told)}. {note}".strip()


def draw(
    name: str, stages: Sequence[Record], struck: Collection[str], note: str, slots: int
) -> Figure:
    """Draw the panel, with room for `slots` stages.

    These are the stages of the longest pipeline, so that panels side by side compare.
    """
    figure = canvas(WIDTH, HEIGHT)
    axes = figure.add_axes((0.135, 0.235, 0.85, 0.56))
    axes.set(xlim=(-0.5, slots - 0.5), ylim=(-8, 104))
    axes.set_yticks(range(0, 101, 25), [f"{percent} %" for percent in range(0, 101, 25)])
    fits = min(11, 44 // slots)  # letters of a name beside its neighbours
    axes.set_xticks(
        range(len(stages)),
        [drawable(f"{stage.kind}\n{truncate(stage.method, fits)}") for stage in stages],
    )
    axes.tick_params(length=2, width=0.6)
    axes.grid(axis="y", color="#cccccc", linewidth=0.5)
    axes.set_axisbelow(True)
    keys = [
        key
        for line in LINES
        for key in _draw_line(axes, line, stages, struck if line.benchmark == "harm" else ())
    ]
    axes.legend(
        handles=keys,
        loc="lower left",
        bbox_to_anchor=(-0.06, 1.0),
        ncols=2,
        handlelength=2.6,
        frameon=False,
        borderpad=0,
        columnspacing=1.0,
    )
    figure.text(0.015, 0.98, drawable(truncate(name, 44)), va="top", weight="bold")
    figure.text(0.985, 0.015, note, ha="right", color="#444444")
    return figure


def _draw_line(
    axes: Axes, line: Line, stages: Sequence[Record], struck: Collection[str]
) -> list[Line2D]:
    """Draw a figure along the stages, and return its keys for the legend."""
    points = [
        (i + line.shift, score, stage.folder in struck)
        for i, stage in enumerate(stages)
        if (score := stage.score(line.benchmark))
    ]
    if not points:
        return []
    places, values = [x for x, _, _ in points], [score.value for _, score, _ in points]
    reach = [
        [max(0.0, s.value - s.low) for _, s, _ in points],
        [max(0.0, s.high - s.value) for _, s, _ in points],
    ]
    bars = axes.errorbar(
        places, values, reach, fmt="none", ecolor=line.colour, elinewidth=1.1, capsize=3
    )
    for part in (*bars[1], *bars[2]):
        part.set_clip_on(False)  # a bar at 0 or 100 shows all of its cap
    axes.plot(places, values, line.dash, color=line.colour, linewidth=1.2, alpha=0.6)
    keys = [
        Line2D(
            [],
            [],
            linestyle=line.dash,
            marker=line.marker,
            markersize=5,
            color=line.colour,
            label=line.legend,
        )
    ]
    for out, marker, face in ((False, line.marker, line.colour), (True, "X", "white")):
        some = [(x, score.value) for x, score, gone in points if gone is out]
        if some:
            look: dict[str, Any] = {
                "marker": marker,
                "color": line.colour,
                "markerfacecolor": face,
                "linestyle": "none",
                "markersize": 6,
            }
            axes.add_line(
                Line2D(
                    *zip(*some, strict=True),
                    clip_on=False,
                    zorder=3,
                    gid=f"{line.name}{'-struck' * out}",
                    **look,
                )
            )
            keys += [Line2D([], [], label=f"{line.name} struck out", **look)] * out
    side = "right" if line.shift < 0 else "left"
    for x, score, gone in points:
        if not gone:
            aside = axes.annotate(
                f"{score.value:z.0f}",
                (x, score.value),
                (line.shift * 90, 0),
                textcoords="offset points",
                ha=side,
                va="center",
            )
            aside.set(
                color=line.ink,
                annotation_clip=False,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4, "alpha": 0.75},
            )
    return keys
