"""The published tables: made from the bundles, and the pages have no other."""

import json

import pytest

from results import tables


def stage(label: str, harm: float, task: float) -> dict:
    figures = {"harm": harm, "task": task, "margin": harm - 50, "benign": 100.0, "lookalike": 0.0, "general": 100.0}
    scores = {name: {"value": value, "n": 100, "low": value - 4, "high": value + 6} for name, value in figures.items()}
    return {"label": label, "scores": scores, "weights": "0", "seconds": 1, "peak_mb": 1}


@pytest.fixture
def bundle(tmp_path, monkeypatch) -> dict:
    cells = []
    for world in (1, 2):
        for seed, harm in enumerate((88.0, 90.0, 95.0)):
            attacked = [stage("base", 100, 70), stage("align sft", 0, 60), stage("finetune sft", harm - 10 * world, 100)]
            pipelines = {"sft": attacked, "edited": [*attacked, stage("edit antidote", 2, 90)]}
            cells.append({"settings": [f"data.world={world}"], "seed": seed, "status": "done", "pipelines": pipelines})
    found = {"claim": "toy", "cells": cells}
    (tmp_path / "toy.json").write_text(json.dumps(found))
    monkeypatch.setattr(tables, "HERE", tmp_path)
    return found


def test_a_full_table_has_every_stage_once_with_both_intervals(bundle):
    head, _, *lines = tables.full(bundle, "data.world=2")
    assert head == "| stage | HS | harm margin | FA | benign answers | over-refusal | general |"
    assert [line.split(" | ")[0] for line in lines] == ["| base", "| SFT-aligned", "| ... attacked", "| ... + Antidote"]
    attacked = lines[2].split(" | ")
    assert attacked[1].startswith("71.0 [")
    assert attacked[1].endswith("] ±5.0")  # half of the ten points that an interval over prompts is wide
    low, high = (float(end) for end in attacked[1].partition("[")[2].partition("]")[0].split(", "))
    assert low < 68 < 75 < high


def test_a_short_table_has_a_column_for_every_point_of_the_grid(bundle):
    assert tables.short(bundle, "") == [
        "| HS / FA | data.world=1 | data.world=2 |",
        "| --- | --- | --- |",
        "| SFT-aligned | 0 / 60 | 0 / 60 |",
        "| ... attacked | 81 / 100 | 71 / 100 |",
        "| ... + Antidote | 2 / 90 | 2 / 90 |",
    ]


def test_a_page_gets_its_tables_between_the_marks_and_keeps_the_rest(bundle):
    page = "before\n\n<!-- table short toy -->\n| old |\n<!-- end -->\n\nafter\n"
    once = tables.written(page)
    assert once.startswith("before\n\n<!-- table short toy -->\n| HS / FA | data.world=1")
    assert once.endswith("|\n<!-- end -->\n\nafter\n")
    assert "old" not in once
    assert tables.written(once) == once


@pytest.mark.parametrize("name", tables.PAGES)
def test_the_pages_tables_are_those_of_the_bundles(name):
    text = (tables.HERE.parent / name).read_text(encoding="utf-8")
    assert "<!-- table " in text
    assert tables.written(text) == text
