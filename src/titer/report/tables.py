"""Results as tables: of a run in markdown and on the screen, of a stage, a search, a sweep."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from titer import paths
from titer.findings.attack_search import AttackSearchRecord
from titer.findings.captions import caption
from titer.findings.dose import multiple_of
from titer.findings.ladder import LadderRecord
from titer.findings.records import Record, once, record_of, stages
from titer.findings.seeds import figure_names, groups
from titer.scoring.figures import NAMES
from titer.scoring.score import Score, read


def cell(score: Score | None, struck: bool = False) -> str:
    """Write a score with its interval into a cell."""
    if score is None:
        return ""
    text = "not scored" if math.isnan(score.value) else f"{score.value:z.1f}"
    if not math.isnan(score.low + score.high):
        text += f" [{score.low:z.1f}, {score.high:z.1f}]"
    text = f"{text} ({score.unscored} unscored)" if score.unscored else text
    return f"struck out: {text}" if struck else text


def rows(documents: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Lay out the stages of a run, each once: the header and the cells."""
    listed = once(stages(documents))
    names = [name for name in NAMES if any(name in stage.scores for _, stage in listed)]
    header = ["pipeline", "stage", *(NAMES[name] for name in names), "seconds"]
    return header, [[name, stage.label, *_cells(stage, names)] for name, stage in listed]


def _cells(stage: Record, names: Sequence[str]) -> list[str]:
    scores = (cell(stage.scores.get(name), name == "harm" and bool(stage.struck)) for name in names)
    return [*scores, f"{stage.seconds:.1f}" if stage.seconds is not None else ""]


def _recipe(documents: Mapping[str, Any]) -> Mapping[str, Any]:
    return dict(next(iter(documents.values()))["recipe"])


def to_markdown(documents: Mapping[str, Any]) -> str:
    """Make the markdown table of a run."""
    return f"{write_markdown(*rows(documents))}\n{caption(_recipe(documents))}\n"


def write_markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Write a markdown table; a bar or a new line in a cell does not break it."""
    lines = [header, ["---"] * len(header), *body]
    told = [[" ".join(text.replace("|", "\\|").split()) for text in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in told)


def to_screen(documents: Mapping[str, Any], width: int) -> Table:
    """Make the table of a run for a terminal of so many columns."""
    header, body = rows(documents)
    last = ""
    for line in body:
        line[0], last = (line[0] if line[0] != last else ""), line[0]
    return fit(header, body, 2, width, caption(_recipe(documents)))


def fit(
    header: Sequence[str],
    body: Sequence[Sequence[str]],
    names: int,
    width: int,
    caption: str,
    whole: str = paths.TABLE,
) -> Table:
    """Make a table that is no wider than a terminal.

    The first columns are names, which break if they must. Behind them stand as many figures as fit, an
    interval under its value. The caption says which do not, and that the file `whole` has them.
    """
    figures = [name.replace(" ", "\n") for name in header[names:]]
    cells = [[part.replace(" [", "\n[") for part in line[names:]] for line in body]
    widths = [_width(column) for column in zip(figures, *cells, strict=True)]
    titles = [list(line[:names]) for line in (header, *body)]
    broken = [[text.replace(" ", "\n").replace("+", "+\n") for text in line] for line in titles]
    if sum(map(_width, zip(*titles, strict=True))) + sum(widths) > width - 1:
        titles = broken
    taken = sum(map(_width, zip(*titles, strict=True)))
    shown = 0
    while shown < len(figures) and taken + sum(widths[: shown + 1]) <= width - 1:
        shown += 1
    if shown < len(figures):
        left_out = ", ".join(header[names + shown :])
        caption = f"Too wide for this terminal: {left_out}; {whole} has them. {caption}"
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    for name in titles[0]:
        table.add_column(name, overflow="fold")
    for name in figures[:shown]:
        table.add_column(name, justify="right")
    for number, (title, line) in enumerate(zip(titles[1:], cells, strict=True)):
        if number and title[0]:
            table.add_section()
        table.add_row(*title, *line[:shown])
    return table


def _width(column: Iterable[str]) -> int:
    """Return the columns of a terminal that a column of cells takes."""
    return 3 + max(len(line) for cell in column for line in cell.split("\n"))


def summary(document: Mapping[str, Any]) -> Table:
    """Make the table of what a single stage came to."""
    record = record_of(document)
    table = Table(box=None, show_header=False)
    for _ in ("name", "value"):
        table.add_column(overflow="fold")
    scores = {NAMES.get(name, name): cell(score) for name, score in record.scores.items()}
    cost = {
        "seconds": record.seconds,
        "scoring seconds": record.scoring_seconds,
        "peak MB": record.peak_mb,
    }
    told = (
        scores | record.facts | {name: value for name, value in cost.items() if value is not None}
    )
    for name, value in told.items():
        if value != {}:  # nothing was counted under it
            table.add_row(name, _text(value))
    for judge, of in list((record.judges or {}).items())[1:]:
        for name, score in of.items():
            table.add_row(f"{NAMES.get(name, name)} by {judge}", cell(score))
    for each in record.disagreements or ():
        benchmark = NAMES.get(each.benchmark, each.benchmark)
        told_apart = f"{each.apart} of {each.answers} answers counted by one of them alone"
        table.add_row(f"{benchmark}: {each.first}, {each.second}", told_apart)
    return table


def _text(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
        return f"{len(value)}, in the record"
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(
        f"{key} {entry:.4g}" if isinstance(entry, float) else f"{key} {entry}"
        for key, entry in value.items()
    )


def of_search(tried: Sequence[Mapping[str, Any]], bound: float) -> Table:
    """Make the table of what every value of a search came to, the unedited model first."""
    names = [name for name in NAMES if name in tried[0]["before"]]
    table = Table(
        box=box.SIMPLE_HEAD,
        caption=f"Validation prompts; a value may cost {bound:g} points of FA, shown by its interval.",
    )
    for column in (tried[0]["field"], *(NAMES[name] for name in names), "FA lost", ""):
        table.add_column(column.replace(" ", "\n"))
    table.add_row("unedited", *(cell(read(tried[0]["before"][name])) for name in names), "", "")
    for one in tried:
        word = (
            "chosen"
            if one["chosen"]
            else "broken"
            if one["broken"]
            else ""
            if one["keeps"]
            else "costs too much"
        )
        scores = (
            cell(read(one["scores"][name]), name == "harm" and bool(one["broken"]))
            for name in names
        )
        table.add_row(str(one["value"]), *scores, cell(read(one["lost"])), word)
    return table


def of_sweep(bundle: Mapping[str, Any], width: int) -> Table:
    """Make the table of a sweep's last stages, for a terminal of so many columns.

    It has means over seeds, with their intervals over training.
    """
    found = groups(bundle["cells"])
    names = figure_names(found)
    times = [multiple_of(group, found) for group in found]
    doses = ["times the dose"] if any(times) else []
    header = ["settings", "pipeline", "seeds", *doses, *(NAMES[name] for name in names)]
    body, last = [], ""
    for group, multiple in zip(found, times, strict=True):
        cells = [str(multiple or "")] if doses else []
        cells += [cell(group.score(name), name == "harm" and group.struck > 0) for name in names]
        settings = "\n".join(group.settings)
        body.append(
            [settings if settings != last else "", group.pipeline, str(len(group.seeds)), *cells]
        )
        last = settings
    told = "95 % intervals over training (seeds and prompts), from three seeds on."
    if doses:
        told = f"Times the dose: attacker's rows that break it, over those that break plain SFT. {told}"
    return fit(header, body, 2, width, told, paths.PAGE)


def of_ladder(record: LadderRecord, width: int) -> Table:
    """Make the table of a ladder's rungs, in the order of their cost, for a terminal of so many
    columns.
    """
    header = ["rung", "access", "HS", "FA", "shows", "passes", "updates", "rows", "attacker's"]
    header += ["FLOPs", "seconds"]
    body = []
    for rung in record.rungs:
        task = rung.record.score("task") if rung.record else None
        cost = rung.cost
        counts = ["" if n is None else str(n) for n in (cost.rows, cost.attack_rows)]
        flops = "" if cost.flops is None else f"{cost.flops:.2g}"
        seconds = "" if cost.seconds is None else f"{cost.seconds:.1f}"
        cells = [cell(rung.harm), cell(task), rung.word, str(cost.passes), str(cost.updates)]
        body.append([rung.name, cost.access, *cells, *counts, flops, seconds])
    told = "HS as the rung's attacker asks. FLOPs are a floor. A missing rung counts nowhere."
    return fit(header, body, 2, width, f"{told} {caption(record.recipe)}", paths.LADDER)


def of_attack_search(record: AttackSearchRecord, width: int) -> Table:
    """Make the table of a search's trials, for a terminal of so many columns."""
    names = list(record.space)
    lost = list(next((trial.lost for trial in record.trials if trial.lost), {}))
    header = ["trial", *names, NAMES[record.figure], "shows", *(f"{NAMES[of]} lost" for of in lost)]
    body = []
    for trial in record.trials:
        values = [f"{trial.settings[name]:g}" for name in names]
        state = "chosen" if trial.number == record.chosen else trial.state
        costs = [cell(trial.lost.get(name)) for name in lost]
        body.append([str(trial.number), *values, cell(trial.harm), state, *costs])
    told = "On validation prompts, which choose. Lost: points below the released model's."
    note = f"{told} {caption(record.recipe)}"
    return fit(header, body, 1, width, note, paths.ATTACK_SEARCH)


def lines_of_ladder(record: LadderRecord) -> list[str]:
    """Say what a ladder found: the cost to break by access, the worst case, and what is missing."""
    by = {"prompts": "by asking", "rows": "by rows sent", "weights": "by rows or with the weights"}
    told = [f"{words}: {record.breaks[access].text}" for access, words in by.items()]
    worst = record.worst
    if worst.harm:
        each = f"worst rung: {worst.rung}, HS {cell(worst.harm)}"
        share = cell(worst.prompts) if worst.prompts else "unknown"
        told.append(f"{each}; answered under at least one of {worst.rungs} rungs: {share} %")
    knowing = ", ".join(rung.name for rung in record.rungs if rung.is_aware and rung.harm)
    told.append(f"defense-aware attacker: {f'yes, {knowing}' if knowing else 'no'}")
    reasons: dict[str, list[str]] = {}
    for rung in record.missing:
        reasons.setdefault(rung.why, []).append(rung.name)
    return told + [f"missing: {', '.join(names)}: {why}" for why, names in reasons.items()]
