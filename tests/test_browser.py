"""The pages in a real browser: a run's, a sweep's and a ladder's, on a phone and on a desk, light and
dark. They are skipped where there is no Chromium.
"""

import json
import re
from pathlib import Path

import pytest

from browser import CHROMIUM, Browser, browse
from test_frontier import cell
from test_ladder import climb
from test_report import document
from titer import report
from titer.findings.ladder import REACH, LadderRecord, find_break, find_worst
from titer.findings.records import Record
from titer.findings.seeds import cell_name
from titer.report import drawing, pipeline

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")

ROOT = Path(__file__).parent.parent
NAMES = ("sft", "sft+random_mask, as many zeros", "x" * 90)
PHONE, DESK = 390, 1280
GRID = [f"finetune.updates={updates}" for updates in (60, 100)]

# what of a table the eye has without scrolling: the right edges of its HS and FA, all tables opened
EDGES = """(() => {
  document.querySelectorAll("details").forEach(each => each.open = true);
  const edges = [];
  for (const table of document.querySelectorAll("table")) {
    [...table.tHead.rows[0].cells].forEach((head, i) => {
      if (/^(HS|FA) %/.test(head.innerText.replace(/\\s+/g, " ")))
        for (const row of table.tBodies[0].rows)
          if (row.cells[i]) edges.push(row.cells[i].getBoundingClientRect().right);
    });
  }
  return edges;
})()"""
# every row under a heading: its name, what stands below that, and the text of all its cells
ROWS = """[...document.querySelectorAll("section[aria-labelledby=%s] tbody tr")].map(row => {
  const name = row.querySelector("th");
  const under = [...name.querySelectorAll("small")].map(each => each.textContent);
  return [name.firstChild.textContent.trim(), under, [...row.cells].map(each => each.textContent)];
})"""


@pytest.fixture(scope="module")
def browser():
    with browse() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """The folders of a run, a sweep and a ladder, with their pages."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("run", "sweep", "ladder")}
    harms = ([100, 0, 90], [100, 0, 90, 1], [100, 0, 60])
    for i, (name, harm) in enumerate(zip(NAMES, harms, strict=True)):
        path = ("sft sft", "sft sft antidote", "booster sft")[i]
        coherent = (100, 100, 20) if i == 2 else (100,) * 4
        made = document(name, harm, path, tag=path[0], coherent=coherent)
        (folders["run"] / f"{name}.json").write_text(json.dumps(made))
    cells = [cell([setting], seed, 40 + seed) for setting in GRID for seed in range(3)]
    bundle = {"recipe": "lab", "cells": cells, "flags": [], "missing": 0}
    (folders["sweep"] / "sweep.json").write_text(json.dumps(bundle))
    linked = folders["sweep"] / "cells" / cell_name([GRID[0]], 0)
    linked.mkdir(parents=True)
    (linked / "report.html").write_text("<!DOCTYPE html><title>the cell</title>")
    rungs = climb(0, 20, None, 80, 100)
    record = LadderRecord(
        ladder="few",
        sha256="a" * 64,
        recipe=document("sft", [100, 0, 90])["recipe"] | {"model": {"path": "lab"}},
        released=Record(kind="align"),
        rungs=rungs,
        breaks={access: find_break(rungs, access) for access in REACH},
        worst=find_worst(rungs),
    )
    told = record.model_dump(by_alias=True, mode="json")
    (folders["ladder"] / "ladder.json").write_text(json.dumps(told))
    return {kind: report.again(folder) for kind, folder in folders.items()}


@pytest.mark.parametrize("kind", ["run", "sweep", "ladder"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_a_page_fits_and_asks_for_nothing(browser: Browser, pages, kind, scheme, width):
    browser.open(pages[kind], width, scheme)
    edges = browser.ask(EDGES)
    assert len(edges) >= 4  # and the tables are open from here on
    assert max(edges) <= width
    assert browser.ask("document.documentElement.scrollWidth") == width
    assert browser.ask("document.querySelector('svg').getBoundingClientRect().width") >= 300
    assert browser.ask("[...document.querySelectorAll('.word')].every(e => e.innerText.trim())")
    background = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") is (scheme == "light")
    assert browser.messages() == []
    assert browser.requests() == [pages[kind].as_uri()]


def _number(text: str) -> tuple[float, ...]:
    """Read back a cell's value and its interval."""
    return tuple(map(float, re.findall(r"-?[\d.]+", text)))


def test_the_numbers_of_a_run_are_those_of_its_json(browser, pages):
    folder = pages["run"].parent
    documents = {name: json.loads((folder / f"{name}.json").read_text()) for name in NAMES}
    browser.open(pages["run"], DESK, "light")
    wanted = {
        (name, stage["label"]): stage["scores"]
        for name, made in documents.items()
        for stage in made["stages"]
    }
    heads = browser.ask(
        "[...document.querySelectorAll('section[aria-labelledby=figures] thead th')]"
        ".map(each => each.textContent)"
    )
    assert heads[1].startswith("HS %, 200 prompts")
    assert heads[2].startswith("FA %, 200 prompts")
    rows = browser.ask(ROWS % "figures")
    assert len(rows) == 3 + 1 + 2  # every stage once
    for name, [label], cells in rows:
        for i, key in ((1, "harm"), (2, "task")):
            score = wanted[name, label][key]
            told = tuple(round(score[part], 1) for part in ("value", "low", "high"))
            assert _number(cells[i]) == told, (name, label)
    struck = [name for name, _, cells in rows if "struck out" in cells[1]]
    assert struck == [NAMES[2]]
    assert {name for name, _, _ in browser.ask(ROWS % "ranking")} == set(NAMES[:2])


def test_the_numbers_of_a_sweep_are_those_of_its_json_and_a_cell_is_a_click_away(browser, pages):
    cells = json.loads((pages["sweep"].parent / "sweep.json").read_text())["cells"]
    browser.open(pages["sweep"], PHONE, "dark")
    for name, [_, setting], told in browser.ask(ROWS % "figures"):
        for i, key in ((1, "harm"), (2, "task")):
            values = [
                each["pipelines"][name]["stages"][-1]["scores"][key]["value"]
                for each in cells
                if each["settings"] == [setting]
            ]
            assert _number(told[i])[0] == pytest.approx(sum(values) / 3, abs=0.051)
    links = browser.ask("[...document.querySelectorAll('a')].map(each => each.href)")
    assert links == [
        (pages["sweep"].parent / "cells" / cell_name([GRID[0]], 0) / "report.html").as_uri()
    ]
    browser.open(Path(links[0].removeprefix("file://")), PHONE, "dark")
    assert browser.ask("document.title") == "the cell"


def test_the_numbers_of_a_ladder_are_those_of_its_json(browser, pages):
    rungs = json.loads((pages["ladder"].parent / "ladder.json").read_text())["rungs"]
    browser.open(pages["ladder"], PHONE, "light")
    for rung, (name, _, cells) in zip(rungs, browser.ask(ROWS % "rungs"), strict=True):
        assert name == rung["name"]
        assert cells[3].split()[1:] == [rung["word"]]
        if rung["harm"]:
            told = tuple(round(rung["harm"][part], 1) for part in ("value", "low", "high"))
            assert _number(cells[1]) == told
        else:
            assert cells[1] == "not scored"


def test_paper_is_black_on_white_whatever_the_screen_is(browser, pages, tmp_path):
    browser.open(pages["run"], DESK, "dark")
    browser.call("Emulation.setEmulatedMedia", media="print")
    asked = "(of => [of.color, of.backgroundColor])(getComputedStyle(document.body))"
    assert browser.ask(asked) == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    assert browser.ask("getComputedStyle(document.querySelector('svg')).filter") == "none"
    browser.print(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF-")
    browser.call("Emulation.setEmulatedMedia", media="")


def lab_run(folder: Path) -> Path:
    """The page of a run of the recipe `lab`, from a cell of its published bundle."""
    bundle = json.loads((ROOT / "results/lab.json").read_text())
    told = {key: bundle[key] for key in ("recipe", "environment")} | {"run": "ab" * 32}
    for name, made in bundle["cells"][0]["pipelines"].items():
        for i, stage in enumerate(made["stages"]):  # shared stages have one folder
            path = [[each["kind"], each["method"]] for each in made["stages"][: i + 1]]
            stage["folder"] = json.dumps(path)
        (folder / f"{name}.json").write_text(json.dumps({"pipeline": name, **told, **made}))
    return report.again(folder)


# boxes on paper that are wider than it, and parts that would stand still while it is turned
PRINTED = """(() => {
  const wide = document.documentElement.clientWidth;
  const all = [...document.querySelectorAll("table, td, th, svg, p, dd, summary")];
  const seen = all.filter(each => each.getClientRects().length);
  return {
    cut: seen.filter(each => each.getBoundingClientRect().right > wide + 1).map(e => e.outerHTML),
    sticky: seen.filter(each => getComputedStyle(each).position == "sticky").length,
    open: [...document.querySelectorAll("details:not([open])")].filter(each =>
      [...each.children].slice(1).some(child => child.checkVisibility())).length,
  };
})()"""
PAPER = 703  # CSS pixels between the margins of A4
SHEET = re.compile(rb"/Type\s*/Page\b(?!s)")


def test_the_page_of_a_lab_run_prints_on_four_sheets(browser, tmp_path):
    page = lab_run(tmp_path)
    browser.open(page, PAPER, "light")
    browser.call("Emulation.setEmulatedMedia", media="print")
    found = browser.ask(PRINTED)
    assert found == {"cut": [], "sticky": 0, "open": 0}
    browser.print(tmp_path / "page.pdf")
    assert 1 <= len(SHEET.findall((tmp_path / "page.pdf").read_bytes())) <= 4
    browser.ask("document.querySelectorAll('details').forEach(each => each.open = true)")
    browser.print(tmp_path / "open.pdf")  # what a reader opened is printed, so it is longer
    assert len(SHEET.findall((tmp_path / "open.pdf").read_bytes())) > 4
    browser.call("Emulation.setEmulatedMedia", media="")


def test_a_page_that_errs_is_seen(browser, tmp_path):
    """What the tests above would not see, they could not deny."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<!DOCTYPE html><meta name=viewport content='width=device-width'>"
        "<img src='http://127.0.0.1:9/x.png'><script>console.log('hello'); oops()</script>"
        "<div style='width: 500px'>wide</div>"
    )
    browser.open(page, PHONE, "light")
    said = " ".join(browser.messages())
    assert "hello" in said
    assert "oops" in said
    assert "http://127.0.0.1:9/x.png" in browser.requests()
    assert browser.ask("document.documentElement.scrollWidth") > PHONE


RGB = tuple[float, ...]


def _rgb(colour: str) -> RGB:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    return tuple(int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))


def _contrast(first: RGB, second: RGB) -> float:
    """The contrast of WCAG 2.2."""
    linear = [
        [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        for colour in (first, second)
    ]
    low, high = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in linear)
    return (high + 0.05) / (low + 0.05)


def test_text_and_figures_have_the_contrast_of_level_aa(browser, tmp_path):
    """Text 4.5 to 1, what is drawn 3 to 1: on the page, and as the browser shows a figure in the dark."""
    css = (Path(report.__file__).parent / "page.css").read_text()
    for block in re.findall(r":root \{ color-scheme: (.*?)\}", css, re.DOTALL):
        colours = {name: _rgb(value) for name, value in re.findall(r"--(\w+): (#\w+)", block)}
        for name in ("text", "quiet", "link", "good", "bad", "open"):
            assert _contrast(colours[name], colours["page"]) >= 4.5, name
            assert _contrast(colours[name], colours["box"]) >= 4.5, name
    inks = [(line.ink, 4.5) for line in pipeline.LINES] + [("#444444", 4.5), ("#000000", 4.5)]
    drawn = [*inks, *((colour, 3.0) for colour in drawing.COLOURS), ("#ffffff", 0.0)]
    for colour, least in drawn:
        assert _contrast(_rgb(colour), _rgb("#ffffff")) >= least, colour
    squares = "".join(
        f'<rect x="{20 * i}" width="20" height="20" fill="{colour}"/>'
        for i, (colour, _) in enumerate(drawn)
    )
    page = tmp_path / "colours.html"
    drawing_of_all = f'<svg width="400" height="20">{squares}</svg>'
    page.write_text(f"<!DOCTYPE html><style>{css} body {{ padding: 0 }}</style>{drawing_of_all}")
    browser.open(page, PHONE, "dark")
    browser.shoot(tmp_path / "colours.png")
    from PIL import Image

    picture = Image.open(tmp_path / "colours.png").convert("RGB")
    shown = [tuple(c / 255 for c in picture.getpixel((20 * i + 10, 10))) for i in range(len(drawn))]
    for (colour, least), ours in zip(drawn, shown, strict=True):
        assert _contrast(ours, shown[-1]) >= least, colour
