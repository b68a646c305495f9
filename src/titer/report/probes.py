"""The probes of every attack, side by side. They show why a defense holds or does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from titer.report.drawing import COLOURS, canvas, drawable, pen, style, to_svg, truncate

WIDTH, HEIGHT = 620, 470  # CSS pixels, of two rows of panels
PITCH = 0.43 * HEIGHT  # from one row to the next
OVER = {  # probe -> its title, over the updates of the attack
    "harmful loss": "harmful loss, nats per token",
    "gradient": "norm of the harmful gradient",
    "drift": "drift of attention outputs",
}
ROUTING = {  # of sparse models
    "routing drift, harmful": "drift of routing, harm prompts",
    "routing drift, task": "drift of routing, the task's prompts",
}
PROFILE = "harmful gradient by layer, before the attack"


def svg(told: Mapping[str, Sequence[Mapping[str, Any]]], note: str, prefix: str) -> str:
    """Draw the panels as an SVG element.

    `note` stands inside the image; `prefix` keeps its ids apart from those of another.
    """
    with style():
        return to_svg(draw(told, note), label(told, note), prefix)


def label(told: Mapping[str, Sequence[Mapping[str, Any]]], note: str) -> str:
    """Describe the panels, for those who cannot see them."""
    ends = {
        name: [f"{probe} {looks[0][probe]:.3g} to {looks[-1][probe]:.3g}" for probe in titles(told)]
        for name, looks in told.items()
    }
    said = "; ".join(f"{name}: {', '.join(of)}" for name, of in ends.items())
    return f"Probes over the updates of the attack. {said}. {note}".strip()


def titles(told: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """Return the probes that every attack was looked at by, each with the title of its panel."""
    looks = [looks[0] for looks in told.values()]
    return {
        probe: title
        for probe, title in (OVER | ROUTING).items()
        if all(probe in look for look in looks)
    }


def draw(told: Mapping[str, Sequence[Mapping[str, Any]]], note: str) -> Figure:
    over = titles(told)
    rows = len(over) // 2 + 1  # the last panel is the profile
    height = HEIGHT + PITCH * (rows - 2)
    figure = canvas(WIDTH, round(height))
    keys = [
        Line2D([], [], color=colour, marker=marker, markersize=4)
        for colour, marker in map(pen, range(len(told)))
    ]
    for i, (key, name) in enumerate(zip(keys, told, strict=True)):
        key.set(
            label=drawable(truncate(name, 30)), linestyle="--" if i // len(COLOURS) % 2 else "-"
        )
    for j, title in enumerate([*over.values(), PROFILE]):
        bottom = height - 0.38 * HEIGHT - PITCH * (j // 2)
        axes = figure.add_axes(
            (0.075 + 0.5 * (j % 2), bottom / height, 0.4, 0.31 * HEIGHT / height)
        )
        axes.set_title(title, fontsize=8, loc="left")
        axes.tick_params(length=2, width=0.6)
        axes.grid(color="#dddddd", linewidth=0.5)
        probe = list(over)[j] if j < len(over) else ""
        for i, (key, looks) in enumerate(zip(keys, told.values(), strict=True)):
            points = (
                [(look["update"], look[probe]) for look in looks]
                if probe
                else list(enumerate(looks[0]["layers"]))
            )
            [line] = axes.plot(
                *zip(*points, strict=True), markersize=3, linewidth=1, gid=f"why-{j}-{i}"
            )
            line.set(color=key.get_color(), marker=key.get_marker(), linestyle=key.get_linestyle())
        if "drift" in probe:  # which begins at 0; the others are compared by their ratios
            axes.set_ylim(bottom=0)
        else:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("layer" if j == len(over) else "update")
    figure.legend(
        handles=keys,
        loc="lower left",
        bbox_to_anchor=(0.06, 0.035 * HEIGHT / height),
        ncols=4,
        frameon=False,
        borderpad=0,
    )
    figure.text(0.985, 0.008 * HEIGHT / height, drawable(note), ha="right", color="#444444")
    return figure
