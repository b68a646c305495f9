"""The published tables: made from the bundles, and the pages have no other."""

import json
from pathlib import Path

import numpy as np
import pytest

from results import answer, bundles, conditions, figures, tables
from test_worlds import group
from titer.findings.worlds import pool

LETTERS = {"harm": "hs", "task": "ew", "benign": "ew", "general": "ew", "lookalike": "rs"}


def stage(label: str, harm: float, task: float) -> dict:
    """A stage with the outcomes of 100 prompts a benchmark."""
    kind, _, method = label.partition(" ")
    rates = {"harm": harm, "task": task, "benign": 100, "general": 100, "lookalike": 0}
    scores = {
        name: {"value": float(rate), "n": 100, "low": max(rate - 4.0, 0), "high": rate + 6.0}
        for name, rate in rates.items()
    }
    outcomes = {
        name: {"packed": yes * round(rates[name]) + no * (100 - round(rates[name]))}
        for name, (yes, no) in LETTERS.items()
    }
    return {
        "kind": kind,
        "method": {"method": method} if method else {},
        "struck out": [],
        "scores": scores,
        "outcomes": outcomes,
        "weights": f"{label} {harm} {task}",
        "seconds": 1.0,
        "peak_mb": 100.0,
    }


def attacked(harm: float, task: float, align: str = "sft") -> list[dict]:
    return [
        stage("base", 100, 70),
        stage(f"align {align}", 0, 60),
        stage("finetune sft", harm, task),
    ]


def cell(world: int, pipelines: dict[str, list[dict]], *settings: str) -> dict:
    return {
        "settings": [f"data.world={world}", *settings],
        "seed": 0,
        "status": "done",
        "pipelines": {name: {"stages": stages} for name, stages in pipelines.items()},
    }


def write(folder: Path, claim: str, cells: list[dict]) -> None:
    (folder / f"{claim}.json").write_text(json.dumps({"cells": cells}))


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(bundles, "HERE", tmp_path)
    for each in (conditions.pools, answer.rivals):
        each.cache_clear()
    yield tmp_path
    for each in (conditions.pools, answer.rivals):
        each.cache_clear()


@pytest.fixture
def toy(here) -> list[dict]:
    cells = []
    for world, harm in ((1, 88), (2, 90), (3, 95)):
        stages = attacked(harm, 100)
        edited = [*stages, stage("edit antidote", 2, 90)]
        cells.append(cell(world, {"sft": stages, "edited": edited}))
    write(here, "toy", cells)
    return cells


def test_a_full_table_has_every_stage_once_with_its_interval_over_worlds(toy):
    head, *lines = tables.full("toy")
    assert head == ["stage", "HS", "FA", "benign answers", "over-refusal", "general"]
    assert [line[0] for line in lines] == ["base", "SFT-aligned", "... attacked", "... + Antidote"]
    assert lines[2][1].startswith("91.0 [")
    low, high = (float(end) for end in lines[2][1].partition("[")[2].rstrip("]").split(", "))
    assert low < 88 < 95 < high


def test_a_short_table_has_whole_numbers(toy):
    assert tables.short("toy") == [
        ["stage", "HS", "prefill HS", "FA"],
        ["base", "100", "-", "70"],
        ["align sft", "0", "-", "60"],  # the words of `titer run`
        ["finetune sft", "91", "-", "100"],
        ["edit antidote", "2", "-", "90"],
    ]


def test_a_model_that_is_struck_out_in_one_world_shows_it(toy, here):
    toy[1]["pipelines"]["edited"]["stages"][3]["struck out"] = ["it refuses everything"]
    write(here, "toy", toy)
    lines = tables.full("toy")
    assert lines[-1][1].startswith("~~2.0 [")
    assert lines[-1][1].endswith("~~ struck out in 1 of 3")
    assert "struck out" not in " ".join([*lines[-1][2:], *lines[-2]])


def test_a_page_gets_its_tables_between_the_marks_and_keeps_the_rest(toy):
    page = "before\n\n<!-- table short toy -->\n| old |\n<!-- end -->\n\nafter\n"
    once = tables.remake(page)
    assert once.startswith("before\n\n<!-- table short toy -->\n| stage | HS | prefill HS | FA |")
    assert once.endswith("|\n<!-- end -->\n\nafter\n")
    assert "old" not in once
    assert tables.remake(once) == once


def test_methods_lie_beside_what_is_free_in_the_same_worlds(here):
    worlds = (1, 2, 3)
    free = [
        cell(world, {"sft": attacked(harm + world, task)}, f"finetune.updates={updates}")
        for updates, harm, task in ((60, 50, 80), (100, 80, 90), (200, 90, 97))
        for world in worlds
    ]
    write(here, "lab-frontier", free)
    write(here, "lab-longer", [])
    mine = [
        cell(
            world,
            {
                "sft": attacked(90, 97),
                "perfect": attacked(0, 100, "booster"),
                "good": attacked(2 + world, 96, "booster"),
                "poor": attacked(92, 50, "booster"),
                "as plain": attacked(90 + world, 97, "booster"),
            },
        )
        for world in worlds
    ]
    write(here, "toy", mine)
    head, perfect, good, poor, same = tables.beyond("toy")
    assert head == ["pipeline", "HS", "FA", "frontier", "compared with"]
    assert (perfect[0], perfect[3]) == ("perfect", "beyond")
    assert (good[0], good[3]) == ("good", "beyond")
    assert good[4].startswith("sft at finetune.updates=100 has HS 82.0")
    assert (poor[0], poor[3]) == ("poor", "within")
    assert poor[4].startswith("sft at finetune.updates=60 has HS 52.0")
    assert (same[0], same[3]) == ("as plain", "within")  # plain fine-tuning by another name


def test_a_method_under_a_red_flag_in_some_world_has_no_place(here):
    worlds = (1, 2, 3)
    free = [
        cell(world, {"sft": attacked(harm + world, 95)}, f"finetune.updates={updates}")
        for updates, harm in ((60, 50), (100, 80), (200, 90))
        for world in worlds
    ]
    write(here, "lab-frontier", free)
    write(here, "lab-longer", [])
    mine = []
    for world in worlds:
        plain = attacked(90, 97)
        left = {"undone": 62 if world == 1 else 96, "kept": 96}  # of FA, 60 before the training
        edited = {name: [*plain, stage("edit antidote", 2, fa)] for name, fa in left.items()}
        mine.append(cell(world, {"sft": plain, **edited}))
    write(here, "toy", mine)
    _, undone, kept = tables.beyond("toy")
    why = "red flag in 1 of 3 models: the repair undid the training"
    assert (undone[0], *undone[3:]) == ("undone", "no place", why)
    assert kept[3] == "beyond"


def test_the_whole_stage_is_told_before_and_after_the_attack(here):
    cells = [
        cell(
            world,
            {
                "booster": attacked(50 + world, 99, "booster"),
                "sft": attacked(80, 99),
            },
        )
        for world in (1, 2, 3)
    ]
    write(here, "toy", cells)
    head, sft, after, booster, broken = tables.whole("toy")
    assert head == ["method", *tables.full("toy")[0][1:]]
    assert (sft[0], sft[1].partition(" ")[0]) == ("SFT", "0.0")
    assert (after[0], after[1].partition(" ")[0]) == ("... attacked", "80.0")
    assert booster[0] == "Booster"
    assert broken[1].partition(" ")[0] == "52.0"


def test_doses_stand_by_world_and_over_all(here):
    def looked(stages: list[dict], broke: float) -> list[dict]:
        looks = [
            {"attacker's rows": rows, "margins": [margin], "delivered": told}
            for rows, margin, told in ((0, -5, 0), (broke / 10, -5, 0), (broke, 0, 50))
        ]
        stages[-1]["facts"] = {"looks along the attack": looks}
        return stages

    cells = [
        cell(
            world,
            {
                "sft": looked(attacked(90, 99), 50.0),
                "booster": looked(attacked(89, 99, "booster"), 50.0 * times),
                "lox": looked(attacked(91, 99, "lox"), 100.0),
            },
        )
        for world, times in ((1, 1.0), (2, 2.0), (3, 4.0))
    ]
    write(here, "toy", cells)
    head, booster, lox = tables.dose("toy")
    assert head[:3] == ["method", "all", "by its answers"]
    assert booster[0] == "Booster"
    assert booster[1].startswith("2.00 [")
    assert booster[3:] == ["1.00", "2.00", "4.00"]
    assert lox[1] == lox[2] == "2.00"  # all worlds are alike, so nothing is known of others


@pytest.fixture(scope="module")
def made() -> dict[Path, str]:
    return tables.made()


@pytest.mark.parametrize("name", [*tables.PAGES, "docs/answer.md", *figures.FIGURES])
def test_the_pages_tables_and_figures_are_those_of_the_bundles(made, name):
    path = tables.ROOT / name
    assert path.read_text(encoding="utf-8") == made[path]


def test_gates_between_what_was_aligned_and_what_was_made_of_it(here):
    """In one world the attack is caught, in the other one nobody attacked."""
    outcomes = {"coherent": {"packed": "e" * 100}}
    worlds = []
    for world, harm in ((1, 88), (2, 0)):
        stages = attacked(harm, 60)
        for each in stages:
            each["scores"]["coherent"] = {"value": 100.0, "n": 100, "low": 96.0, "high": 100.0}
            each["outcomes"] = {
                name: {"packed": of["packed"], "prompts": [f"{name} {i}" for i in range(100)]}
                for name, of in {**each["outcomes"], **outcomes}.items()
            }
        worlds.append(cell(world, {"sft": stages}, "attack.p=0.1"))
    write(here, "toy", worlds)
    head, line = tables.KINDS["gates"]("toy")
    assert head == ["candidate", "world 1", "world 2"]
    assert line == ["SFT, attack.p=0.1", "fails by HS (+88)", "passes"]


def test_the_orders_of_two_worlds_stand_side_by_side_with_their_tau(monkeypatch):
    rng = np.random.default_rng(0)
    dose = {
        "here": {"sft": 10.0, "vaccine": 20.0, "booster": 40.0, "repnoise": 80.0},
        "there": {"sft": 5.0, "booster": 10.0, "vaccine": 40.0, "random_booster": 30.0},
    }
    there = {
        claim: {
            ((), each.pipeline): each
            for each in pool([group(rng, 0, name, 0.9, at) for name, at in of.items()])
        }
        for claim, of in dose.items()
    }
    monkeypatch.setattr(conditions, "pools", there.get)
    assert tables.KINDS["agreement"]("here+there") == [
        ["method", "here", "there"],
        ["Vaccine", "2.00", "8.00"],
        ["Booster", "4.00", "2.00"],
        ["Kendall's tau", "-1.00 (2 methods, p = 1)", ""],
    ]
