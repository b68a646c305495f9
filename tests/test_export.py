"""What a page shows as files: every figure and every table, from the page's own objects."""

import csv
import io
import json
import re
from xml.etree import ElementTree

import pytest

from test_frontier import cell
from test_recipe import run as titer
from test_report import document
from titer import report
from titer.report.parts import to_csv, to_latex, to_markdown
from titer.report.sheets import Column, Link, ScoreEntry, Sheet, Sign
from titer.scoring.statistics import proportion

NAME = "a_b & 50 % | {c} <i> $x$"


@pytest.fixture
def finished(tmp_path):
    """The folder of a finished run of two pipelines, one with a name that every format would take
    for its own.
    """
    folder = tmp_path / "run"
    folder.mkdir()
    for name, path in (("sft", "sft sft"), (NAME, "booster sft")):
        made = document(name, [100, 0, 90 if name == "sft" else 60], path, tag=path[0])
        (folder / f"{'p' if name == NAME else name}.json").write_text(json.dumps(made))
    return folder


def test_every_figure_and_table_of_a_run_is_written(monkeypatch, capsys, finished, tmp_path):
    to = tmp_path / "new/parts"
    code, printed, err = titer(monkeypatch, capsys, "report", str(finished), "--export", str(to))
    assert code == 0, err
    files = {path.name for path in to.iterdir()}
    assert {str(to / name) for name in files} == set(printed.split("\n")) - {""}
    assert not (finished / "report.html").exists()
    figures = {"figure-HS-and-FA-along-sft", "figure-HS-and-FA-along-p"}
    tables = {"table-verdicts", "table-ranking", "table-all-figures", "table-cost"}
    suffixes = [("svg", "pdf", "png"), ("csv", "md", "tex")]
    assert files == {
        f"{name}.{suffix}"
        for names, kinds in zip((figures, tables), suffixes, strict=True)
        for name in names
        for suffix in kinds
    }
    assert (to / "figure-HS-and-FA-along-sft.pdf").read_bytes().startswith(b"%PDF-")
    assert (to / "figure-HS-and-FA-along-sft.png").read_bytes().startswith(b"\x89PNG")
    # the page's own figure
    drawn = (to / "figure-HS-and-FA-along-sft.svg").read_text()
    assert ElementTree.fromstring(drawn).attrib["role"] == "img"
    assert drawn.strip() in report.page(report.read(finished))
    assert [each.name for each in tmp_path.iterdir()].count("new") == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["parts"]  # no draft is left


def test_the_csv_has_the_figures_of_the_documents_in_full(finished, tmp_path):
    report.export(finished, tmp_path / "parts")
    with (tmp_path / "parts/table-ranking.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["rank"], row["pipeline"]) for row in rows] == [("1", "p"), ("2", "sft")]
    for row in rows:
        made = json.loads((finished / f"{row['pipeline']}.json").read_text())
        for title, key in (("HS", "harm"), ("FA", "task")):
            score = made["stages"][-1]["scores"][key]
            told = [float(row[f"{title}{part}"]) for part in ("", " low", " high")]
            assert told == [score[part] for part in ("value", "low", "high")]
            assert int(row[f"{title} prompts"]) == score["n"]


def test_each_format_writes_what_it_would_take_for_its_own():
    columns = [Column("pipeline", role="name"), Column("HS", "%", "number"), Column("verdict")]
    struck = ScoreEntry(proportion(5, 10, unscored=2), True)
    rows = [[NAME, struck, Sign("lost")], [Link("b\nc", "b.html"), ScoreEntry(None), "x"]]
    sheet = Sheet("t", columns, rows, "All of 5 % & more.")
    read = list(csv.DictReader(io.StringIO(to_csv(sheet))))
    assert (read[0]["pipeline"], read[0]["HS"], read[0]["HS unscored"]) == (NAME, "50.0", "2")
    assert (read[0]["HS struck out"], read[1]["HS struck out"], read[1]["HS"]) == ("yes", "", "")
    assert read[0]["verdict"] == "lost"
    lines = to_markdown(sheet).splitlines()
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines[:4]] == [4] * 4
    assert "| b c | not scored | x |" in lines
    assert lines[-1] == "All of 5 % & more."
    text = to_latex(sheet)
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lrl}"):
        assert rule in text
    assert r"a\_b \& 50 \% | \{c\} <i> \$x\$ & struck out: 50.0 [" in text
    assert r"\caption{All of 5 \% \& more.}" in text


@pytest.mark.parametrize("there", ["a file", "a folder with something in it"])
def test_what_is_there_already_is_left(monkeypatch, capsys, finished, tmp_path, there):
    to = tmp_path / "parts"
    if there == "a file":
        to.write_text("mine")
    else:
        to.mkdir()
        (to / "mine").touch()
    code, out, err = titer(monkeypatch, capsys, "report", str(finished), "--export", str(to))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(to) in err
    assert to.read_text() == "mine" if to.is_file() else [p.name for p in to.iterdir()] == ["mine"]


def test_an_empty_folder_is_taken_and_a_failed_export_leaves_none(monkeypatch, finished, tmp_path):
    (tmp_path / "parts").mkdir()
    monkeypatch.setattr("titer.report.parts.WRITERS", {".csv": lambda sheet: 1 / 0})
    with pytest.raises(ZeroDivisionError):
        report.export(finished, tmp_path / "parts")
    assert list((tmp_path / "parts").iterdir()) == []
    monkeypatch.setattr("titer.report.parts.WRITERS", {".csv": to_csv})
    assert report.export(finished, tmp_path / "parts")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "parts"}


def test_a_sweep_has_a_figure_an_axis_and_names_apart(tmp_path):
    cells = [cell(["data.world=1", f"attack.p={p}"], 0, 30) for p in (0.1, 0.2)]
    bundle = {"recipe": "lab", "cells": cells, "flags": [], "missing": 0}
    (tmp_path / "sweep.json").write_text(json.dumps(bundle))
    files = {path.name for path in report.export(tmp_path, tmp_path / "parts")}
    assert {name for name in files if name.endswith(".svg")} == {"figure-HS-and-FA-by-attack.p.svg"}
    assert {"table-by-attack.p.csv", "table-ranking.tex", "table-cells.md"} <= files
    with (tmp_path / "parts/table-by-attack.p.csv").open() as file:
        rows = [(row["pipeline"], row["attack.p"], row["HS"]) for row in csv.DictReader(file)]
    assert rows[-2:] == [("booster", "0.1", "30.0"), ("booster", "0.2", "30.0")]
