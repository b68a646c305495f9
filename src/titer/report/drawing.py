"""Draw with matplotlib an SVG that stands in a page or alone, and is the same every time."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from titer.scoring.score import Score

SVG = "{http://www.w3.org/2000/svg}"
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    # the first comes with matplotlib, so the layout is the same everywhere
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 8.0,  # points: 10.7 pixels
    "svg.fonttype": "none",
    "svg.hashsalt": "titer",
    "text.parse_math": False,  # a pipeline's name may hold a $
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
}

# Okabe and Ito's, the light ones darker until a white page shows them (WCAG: 3 to 1), and grey
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#c37f00", "#3d94cc", "#000000", "#888888")
MARKERS = "osDv^P*hp<>"  # with the colours a new pair for each of 88 pipelines
LEGEND: dict[str, Any] = {
    "loc": "upper left",
    "frameon": False,
    "borderpad": 0,
    "handlelength": 2.2,
}


def canvas(width: int, height: int) -> Figure:
    """Make an empty figure of so many CSS pixels, of which an inch has 96."""
    figure = Figure((width / 96, height / 96), dpi=96)
    FigureCanvasSVG(figure)
    return figure


def to_svg(figure: Figure, label: str, prefix: str) -> str:
    """Return the figure as an SVG element.

    `label` describes it to those who cannot see it; `prefix` keeps its ids apart from those of
    another.
    """
    text = io.StringIO()
    figure.savefig(
        text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    return _inline(text.getvalue(), label, prefix, width, height)


@contextmanager
def style() -> Iterator[None]:
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # whatever a matplotlibrc says
        matplotlib.rcParams.update(STYLE)
        # of a name in another script; the reader's fonts have it
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def pen(i: int) -> tuple[str, str]:
    """Return the colour and the marker of the i-th pipeline."""
    return COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]


def write_title(figure: Figure, title: str) -> None:
    figure.text(0.015, 0.985, drawable(truncate(title, 90)), va="top", weight="bold")


def reach(score: Score) -> list[list[float]]:
    """Return the lengths of an error bar, down and up; both are 0 without an interval."""
    known = score.low <= score.high
    return [
        [max(0.0, score.value - score.low) if known else 0.0],
        [max(0.0, score.high - score.value) if known else 0.0],
    ]


def truncate(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def drawable(text: str) -> str:
    """Replace the characters that no XML may hold."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _inline(document: str, label: str, prefix: str, width: int, height: int) -> str:
    """Make the drawing an element of a page: with a name, and with ids of its own.

    Style rules, which would reach beyond it, are taken out.
    """
    ElementTree.register_namespace("", SVG[1:-1])
    root = ElementTree.fromstring(document)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
        for key, value in list(parent.attrib.items()):
            if key.endswith("}href"):  # xlink is of the past
                parent.set("href", parent.attrib.pop(key))
                key = "href"
            if key == "id":
                parent.set(key, f"{prefix}-{value}")
            else:
                parent.set(
                    key,
                    re.sub(r"^#|(?<=url\(#)", lambda found: f"{found[0]}{prefix}-", value)
                    if "#" in value
                    else value,
                )
    root.attrib |= {
        "width": str(width),
        "height": str(height),
        "role": "img",
        "aria-label": drawable(label),
        "stroke-linejoin": "round",
        "stroke-linecap": "butt",
    }
    return ElementTree.tostring(root, encoding="unicode")
