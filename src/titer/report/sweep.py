"""The page of a sweep, from its bundle alone. The template is `sweep.html.j2`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from titer import paths
from titer.findings.axes import Axis, axes
from titer.findings.captions import lab_caption, lab_of
from titer.findings.dose import multiple_of
from titer.findings.frontier import SETTINGS, places
from titer.findings.records import plain
from titer.findings.rules import is_plain_sft
from titer.findings.seeds import Group, cell_name, figure_names, groups
from titer.findings.standings import Standing, describe, stand
from titer.findings.worlds import pool
from titer.report.contents import Contents
from titer.report.figures import Drawing
from titer.report.html import HIDDEN, collect
from titer.report.sheets import (
    FIRST,
    Column,
    Entry,
    Link,
    ScoreEntry,
    Sheet,
    Sign,
    figure_columns,
    order,
)
from titer.scoring.differences import holm

FEW = 3  # cells that are named where a value is theirs alone


def lay_out(bundle: Mapping[str, Any], folder: Path | None = None) -> Contents:
    """Return what the page of a sweep's bundle shows.

    It links to the pages of the cells that lie in `folder`.
    """
    cells = bundle["cells"]
    found = groups(cells, bundle.get("flags", []))
    recipes = [_recipe(bundle, cell) for cell in cells]
    # a grid may be over worlds, but not over labs
    world: Mapping[str, Any] = next(
        filter(lab_of, (recipe["data"] for recipe in recipes if recipe)), {}
    )
    note = lab_of(world)
    standings = stand(found)
    values = {
        "recipe": _title(bundle),
        "cells": len(cells),
        "seeds": sorted({cell["seed"] for cell in cells}),
        "missing": [cell for cell in cells if cell["status"] != "done"],
        "caption": lab_caption(world),
        "answer": describe(standings),
        "disagreeing": bundle.get("flags", []),
        "raised": cells_by_flag(cells),
        "standings": standings,
        "ranking": _ranking(standings),
        "axes": [
            (axis, _draw_axis(axis, note, i), _sheet(axis)) for i, axis in enumerate(axes(found))
        ],
        "planes": _planes(found, note),
        "doses": _doses(found),
        "scores": _scores(found),
        "list": _cells(cells, folder),
        "recipe_yaml": yaml.safe_dump(
            next(filter(None, recipes), {}), sort_keys=False, allow_unicode=True
        ),
        "provenance": _provenance(bundle),
        "hidden": HIDDEN,
    }
    return Contents("sweep.html.j2", values)


def _recipe(bundle: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cell's recipe with all its pipelines; the bundle's where the documents have none."""
    recipes = [of["recipe"] for of in (cell.get("pipelines") or {}).values() if of.get("recipe")]
    if not recipes:
        shared = bundle["recipe"]
        return dict(shared) if isinstance(shared, Mapping) else {}
    pipelines = {k: v for of in recipes for k, v in of.get("pipelines", {}).items()}
    return dict(recipes[0]) | ({"pipelines": pipelines} if pipelines else {})


def _title(bundle: Mapping[str, Any]) -> str:
    named = bundle["recipe"]
    return named if isinstance(named, str) else str(bundle.get("claim", "a recipe"))


def _ranking(standings: Sequence[Standing]) -> Sheet:
    """Return the table of the pipelines that have a rank."""
    columns = [Column("rank", role="number"), Column("pipeline", role="name")]
    columns += [Column("last stage", role="under"), *figure_columns(FIRST)]
    columns.append(Column("settings", role="number"))
    rows: list[list[Entry]] = []
    for each in standings:
        if each.rank:
            row: list[Entry] = [str(each.rank), each.pipeline, each.of[0].label]
            rows.append([*row, ScoreEntry(each.harm), ScoreEntry(each.task), str(len(each.of))])
    told = "By HS of the last models, as means over all settings and training seeds, the lowest "
    told += "first. Neighbours may not be shown to differ, and FA is the price of a low HS."
    return Sheet("ranking", columns, rows, told)


def _draw_axis(axis: Axis, note: str, i: int) -> Drawing:
    levels = {
        name: [
            [each.value, *(score and plain(vars(score)) for score in (each.harm, each.task))]
            for each in of
        ]
        for name, of in axis.levels.items()
    }
    shows = [axis.path, axis.values, levels, axis.averaged, note]
    return Drawing(f"HS and FA by {axis.path}", "axis", (axis, note), f"axis{i}", shows)


def _sheet(axis: Axis) -> Sheet:
    """Return the figures of an axis's drawing as a table."""
    columns = [Column("pipeline", role="name"), Column(axis.path, role="under")]
    columns += [*figure_columns(FIRST), Column("settings", role="number")]
    columns.append(Column("of them struck out", role="number"))
    rows: list[list[Entry]] = [
        [
            *(name, each.value, ScoreEntry(each.harm), ScoreEntry(each.task)),
            *(str(each.settings), str(each.struck)),
        ]
        for name, levels in axis.levels.items()
        for each in levels
    ]
    return Sheet(f"by {axis.path}", columns, rows)


def _planes(found: Sequence[Group], note: str) -> list[tuple[Drawing, Sheet]]:
    """Return one plane for each of the settings that are not of fine-tuning, and what lies where.

    Each is another attack or another world.
    """
    apart: dict[tuple[str, ...], list[Group]] = {}
    for group in found:
        apart.setdefault(group.outside(*SETTINGS), []).append(group)
    planes = []
    for i, (settings, of) in enumerate(apart.items()):
        told = places(of)
        if told:
            title = " ".join(settings) or "one setting"
            shows: list[Any] = [title, note]
            shows += [[each.settings, each.pipeline, each.label, _shown(each)] for each in of]
            name = f"HS against FA {title}"
            plane = Drawing(name, "tradeoff", (of, title, note), f"plane{i}", shows)
            columns = [Column("pipeline", role="name"), Column("settings", role="under")]
            columns += [Column("place"), Column("what shows it", role="long")]
            rows: list[list[Entry]] = [
                [each.group.pipeline, " ".join(each.group.settings), Sign(each.word), each.text]
                for each in told
            ]
            planes.append((plane, Sheet(f"places {title}", columns, rows)))
    return planes


def _shown(group: Group) -> list[Any]:
    scores = [group.score(name) for name in FIRST]
    return [group.barred, *(score and plain(vars(score)) for score in scores)]


def _doses(found: Sequence[Group]) -> Sheet | None:
    """Return the table of how many times plain SFT's dose each defense takes, and whether that is
    shown, over worlds by Holm's rule where there are several; None where no dose is known.
    """
    columns = [Column("pipeline", role="name"), Column("settings", role="under")]
    columns += [Column("times plain SFT's rows to break"), Column("shown")]
    rows = _times(found)
    return Sheet("doses", columns, rows) if rows else None


def _times(found: Sequence[Group]) -> list[list[str]]:
    if any(len(each.worlds) > 1 for each in pool(found)):
        pools = pool(found)
        tuned = [each for each in pools if each.label.startswith("finetune")]
        controls = {  # the first of a setting and an attack
            (each.settings, str(each.attack)): each
            for each in reversed(tuned)
            if is_plain_sft(each.first)
        }
        told = [
            (each, control, each.times(control))
            for each in tuned
            if (control := controls.get((each.settings, str(each.attack))))
        ]
        lines = [(each, times) for each, control, times in told if times and each is not control]
        words = holm([times.p for _, times in lines])
        return [
            [each.pipeline, " ".join(each.settings), times.ratio, "shown" if word else "not shown"]
            for (each, times), word in zip(lines, words, strict=True)
        ]
    seen = [(group, multiple_of(group, found)) for group in found]
    return [
        [group.pipeline, " ".join(group.settings), str(times), ""] for group, times in seen if times
    ]


def _scores(found: Sequence[Group]) -> Sheet:
    """Return the table of every figure of every pipeline's last stage, at every setting."""
    names = order(figure_names(found))
    columns = [Column("pipeline", role="name"), Column("last stage", role="under")]
    columns += [Column("settings", role="under"), *figure_columns(names)]
    columns.append(Column("seeds", role="number"))
    rows: list[list[Entry]] = []
    for group in found:
        rows.append([group.pipeline, group.label, " ".join(group.settings)])
        rows[-1] += [
            ScoreEntry(group.score(key), key == "harm" and group.struck > 0) for key in names
        ]
        rows[-1].append(str(len(group.seeds)))
    told = (
        "The last stage of every pipeline. In brackets the 95 % interval: over training, new seeds "
    )
    told += (
        "on new prompts, from three seeds on; over prompts where there is one seed; none for two. "
    )
    return Sheet(
        "all figures", columns, rows, f"{told}HS is struck out where it is under any seed."
    )


def _cells(cells: Sequence[Mapping[str, Any]], folder: Path | None) -> Sheet:
    """Return the table of the cells, with links to their pages where these are there."""
    columns = [Column("settings", role="name"), Column("seed", role="number"), Column("status")]
    columns += [Column("run"), Column("red flags")]
    rows: list[list[Entry]] = []
    for cell in cells:
        page = f"{paths.CELLS}/{cell_name(cell['settings'], cell['seed'])}/{paths.PAGE}"
        title = _settings(cell)
        name: Entry = Link(title, page) if folder and (folder / page).is_file() else title
        first: Mapping[str, Any] = next(iter((cell.get("pipelines") or {}).values()), {})
        flags = dict.fromkeys(flag["name"] for flag in first.get("flags", []))
        status = cell.get("error") or cell["status"]
        run = str(first.get("run") or "")[:8]
        rows.append([name, str(cell["seed"]), status, run, "; ".join(flags)])
    return Sheet("cells", columns, rows)


def _settings(cell: Mapping[str, Any]) -> str:
    return " ".join(cell["settings"]) or "as the recipe says"


def _name(cell: Mapping[str, Any]) -> str:
    return " ".join([*cell["settings"], f"seed {cell['seed']}"])


def _provenance(bundle: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the other facts of the bundle and its cells; by cell where these do not agree."""
    told = {key: bundle[key] for key in ("claim", "code", "environment") if key in bundle}
    values: dict[str, dict[str, tuple[Any, list[str]]]] = {}
    for cell in bundle["cells"]:
        for key, value in collect(cell.get("pipelines") or {}).items():
            alike = values.setdefault(key, {})
            text = json.dumps(value, sort_keys=True)
            alike.setdefault(text, (value, []))[1].append(_name(cell))
    for key, alike in values.items():
        found = list(alike.values())
        told[key] = found[0][0] if len(found) == 1 else {_cut(at): value for value, at in found}
    return told


def _cut(names: Sequence[str]) -> str:
    """Name a few cells, and count the others."""
    more = len(names) - FEW
    return f"{'; '.join(names[:FEW])}{f' and {more} more' if more > 0 else ''}"


def flag_lines(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write a line for every kind of flag that the runs of cells raised, with some of the cells."""
    return [
        f"red flag, {name}, in {len(where)} of {len(cells)} cells: {_cut(where)}"
        for name, where in cells_by_flag(cells).items()
    ]


def cells_by_flag(cells: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the cells whose runs raised a flag, by the name of the flag."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        document: Mapping[str, Any] = next(iter((cell.get("pipelines") or {}).values()), {})
        for name in dict.fromkeys(flag["name"] for flag in document.get("flags", [])):
            found.setdefault(name, []).append(_name(cell))
    return found
