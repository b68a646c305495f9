"""The rungs of a ladder in the order of their cost: a drawing of one model or several, and the page
of one. The template is `ladder.html.j2`.
"""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from titer.findings.captions import caption, lab_of
from titer.findings.ladder import BAR, LadderRecord, RungRecord
from titer.findings.records import plain
from titer.report.contents import Contents
from titer.report.drawing import LEGEND, canvas, drawable, pen, reach, style, to_svg, truncate
from titer.report.figures import Drawing
from titer.report.sheets import FIRST, Column, Entry, ScoreEntry, Sheet, Sign, figure_columns
from titer.scoring.figures import NAMES

WIDTH, HEIGHT, BELOW = 46, 330, 120  # CSS pixels: of a rung, of the figure, of its names
LEFT, TOP = 50, 44
SPREAD = 0.5  # of a rung's place, over which several models stand side by side
Records = Mapping[str, LadderRecord]


def lay_out(record: LadderRecord) -> Contents:
    """Return what the page of a ladder's record shows."""
    model, note = record.pipeline or "this model", lab_of(record.recipe["data"])
    rungs = [
        [
            rung.name,
            rung.cost.access,
            rung.cost.passes,
            rung.word,
            plain(rung.harm and vars(rung.harm)),
        ]
        for rung in record.rungs
    ]
    shows = [model, record.breaks["weights"].text, rungs, note]
    values = {
        "record": record,
        "drawing": Drawing("HS by rung", "ladder", ({model: record}, note), "ladder", shows),
        "rungs": _rungs(record),
        "caption": caption(record.recipe),
    }
    return Contents("ladder.html.j2", values)


def _rungs(record: LadderRecord) -> Sheet:
    """Return the table of the rungs, in the order of their cost."""
    columns = [Column("rung", role="name"), *figure_columns(FIRST), Column("shows")]
    columns += [Column("figure"), Column("access")]
    counts = ("passes", "updates", "rows", "of the attacker's", "FLOPs, at least")
    columns += [*(Column(title, role="number") for title in counts), Column("why", role="note")]
    rows: list[list[Entry]] = []
    for rung in record.rungs:
        cost, task = rung.cost, rung.record.score("task") if rung.record else None
        flops = "" if cost.flops is None else f"{cost.flops:.2g}"
        row: list[Entry] = [rung.name, ScoreEntry(rung.harm), ScoreEntry(task), Sign(rung.word)]
        row += [NAMES[rung.figure], f"{cost.access}{', aware' * rung.is_aware}"]
        numbers = (cost.passes, cost.updates, cost.rows, cost.attack_rows)
        row += [*("" if n is None else str(n) for n in numbers), flops, rung.why]
        rows.append(row)
    return Sheet("rungs", columns, rows)


def svg(records: Records, note: str, prefix: str) -> str:
    """Draw the harm of every rung as an SVG element, a colour a model."""
    with style():
        return to_svg(draw(records, note), label(records), prefix)


def label(records: Records) -> str:
    """Describe the drawing, for those who cannot see it."""
    told = "; ".join(f"{name}: {record.breaks['weights'].text}" for name, record in records.items())
    return f"Harm by rung, the cheapest on the left. {told}."


def draw(records: Records, note: str) -> Figure:
    rungs = next(iter(records.values())).rungs
    width, height = LEFT + 20 + WIDTH * len(rungs), HEIGHT + 14 * (len(records) > 1)
    figure = canvas(width, height)
    box = LEFT / width, BELOW / height, 1 - (LEFT + 15) / width, 1 - (BELOW + TOP) / height
    axes = figure.add_axes(box)
    axes.set(ylim=(-4, 104), xlim=(-0.6, len(rungs) - 0.4))
    axes.set_title("HS, percent, after each rung", fontsize=8, loc="left", pad=6)
    axes.grid(color="#dddddd", linewidth=0.5, axis="y")
    axes.axhline(BAR, color="#444444", linewidth=0.8, linestyle="--")
    names = [f"{rung.name}\n{rung.cost.access}, {rung.cost.passes} passes" for rung in rungs]
    axes.set_xticks(range(len(rungs)), map(drawable, names), rotation=60, ha="right", fontsize=6.5)
    axes.get_xaxis().set_tick_params(length=2)
    for i, (name, record) in enumerate(records.items()):
        colour, marker = pen(i)
        shift = SPREAD * ((i + 0.5) / len(records) - 0.5)
        title = drawable(truncate(name, 30))
        axes.plot([], [], color=colour, marker=marker, linestyle="", markersize=4, label=title)
        for at, rung in enumerate(record.rungs):
            if rung.harm is None:
                axes.plot([at + shift], [-1], color=colour, marker="x", markersize=5, gid="missing")
                continue
            bar = axes.errorbar(
                [at + shift], [rung.harm.value], yerr=reach(rung.harm), color=colour, marker=marker
            )
            bar.lines[0].set(markersize=4, markerfacecolor=_fill(rung, colour))
    if len(records) > 1:
        figure.legend(ncols=len(records), **LEGEND)
    figure.text(0.985, 0.012, drawable(note), ha="right", color="#444444")
    return figure


def _fill(rung: RungRecord, colour: str) -> str:
    """Fill what is shown to break or to hold; what shows nothing stays hollow."""
    return "white" if rung.word == "undecided" else colour
