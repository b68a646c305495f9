"""The published tables: made from the bundles, and the pages have no other."""

import json
from pathlib import Path

import pytest

from results import bundles, figures, tables


def stage(label: str, harm: float, task: float) -> dict:
    figures = {
        "harm": harm,
        "task": task,
        "margin": harm - 50,
        "benign": 100.0,
        "lookalike": 0.0,
        "general": 100.0,
    }
    scores = {
        name: {"value": value, "n": 100, "low": value - 4, "high": value + 6}
        for name, value in figures.items()
    }
    kind, _, method = label.partition(" ")
    return {
        "kind": kind,
        "method": {"method": method} if method else {},
        "struck out": [],
        "scores": scores,
        "weights": "0",
        "seconds": 1,
        "peak_mb": 1,
    }


@pytest.fixture
def bundle(tmp_path, monkeypatch) -> dict:
    cells = []
    for world in (1, 2):
        for seed, harm in enumerate((88.0, 90.0, 95.0)):
            attacked = [
                stage("base", 100, 70),
                stage("align sft", 0, 60),
                stage("finetune sft", harm - 10 * world, 100),
            ]
            pipelines = {
                "sft": {"stages": attacked},
                "edited": {"stages": [*attacked, stage("edit antidote", 2, 90)]},
            }
            cells.append(
                {
                    "settings": [f"data.world={world}"],
                    "seed": seed,
                    "status": "done",
                    "pipelines": pipelines,
                }
            )
    found = {"claim": "toy", "cells": cells}
    (tmp_path / "toy.json").write_text(json.dumps(found))
    monkeypatch.setattr(bundles, "HERE", tmp_path)
    return found


def test_a_full_table_has_every_stage_once_with_both_intervals(bundle):
    head, *lines = tables.full("toy", "data.world=2")
    assert head == ["stage", "HS", "harm margin", "FA", "benign answers", "over-refusal", "general"]
    assert [line[0] for line in lines] == ["base", "SFT-aligned", "... attacked", "... + Antidote"]
    attacked = lines[2]
    assert attacked[1].startswith("71.0 [")
    assert attacked[1].endswith(
        "] ±5.0"
    )  # half of the ten points that an interval over prompts is wide
    low, high = (float(end) for end in attacked[1].partition("[")[2].partition("]")[0].split(", "))
    assert low < 68 < 75 < high


def test_a_short_table_has_a_column_for_every_point_of_the_grid(bundle):
    assert tables.short("toy", "") == [
        ["HS / FA", "data.world=1", "data.world=2"],
        ["SFT-aligned", "0 / 60", "0 / 60"],
        ["... attacked", "81 / 100", "71 / 100"],
        ["... + Antidote", "2 / 90", "2 / 90"],
    ]


def test_a_model_that_is_struck_out_under_one_seed_shows_it(bundle, tmp_path):
    bundle["cells"][1]["pipelines"]["edited"]["stages"][3]["struck out"] = ["it refuses everything"]
    (tmp_path / "toy.json").write_text(json.dumps(bundle))
    lines = tables.full("toy", "data.world=1")
    assert lines[-1][1] == "~~2.0 [0.5, 7.4] ±5.0~~ struck out"
    assert "struck out" not in " ".join([*lines[-1][2:], *lines[-2]])


def test_a_page_gets_its_tables_between_the_marks_and_keeps_the_rest(bundle):
    page = "before\n\n<!-- table short toy -->\n| old |\n<!-- end -->\n\nafter\n"
    once = tables.remake(page)
    assert once.startswith("before\n\n<!-- table short toy -->\n| HS / FA | data.world=1")
    assert once.endswith("|\n<!-- end -->\n\nafter\n")
    assert "old" not in once
    assert tables.remake(once) == once


def test_the_tables_of_the_frontier_are_made_of_two_claims(tmp_path, monkeypatch):
    def cells(
        settings: list[str], pipelines: dict[str, tuple[str, str, float, float]]
    ) -> list[dict]:
        return [
            {
                "settings": settings,
                "seed": seed,
                "pipelines": {
                    name: {
                        "stages": [
                            stage("base", 100, 70),
                            stage(f"align {align}", 0, 60),
                            stage(f"finetune {tune}", harm + seed, task),
                        ]
                    }
                    for name, (align, tune, harm, task) in pipelines.items()
                },
            }
            for seed in (0, 1, 2)
        ]

    world = "data.world=1"
    lab = cells(
        [world],
        {
            "sft": ("sft", "sft", 90.0, 100.0),
            "good": ("booster", "sft", 2.0, 99.0),
            "poor": ("booster", "sft", 92.0, 50.0),
        },
    )
    rest = [
        cell
        for updates, harm, task in ((60, 50.0, 80.0), (100, 80.0, 90.0))
        for cell in cells(
            [world, f"finetune.updates={updates}"],
            {"sft": ("sft", "sft", harm, task), "booster": ("booster", "sft", 9.0, 30.0)},
        )
    ]
    monkeypatch.setattr(bundles, "HERE", tmp_path)
    (tmp_path / "lab.json").write_text(
        json.dumps({"recipe": {"finetune": {"lr": 8e-4, "updates": 200}}, "cells": lab})
    )
    (tmp_path / "lab-frontier.json").write_text(json.dumps({"cells": rest}))
    head, good, poor = tables.beyond("lab", world)
    assert head == ["pipeline", "HS", "FA", "frontier", "compared with"]
    assert (good[0], good[3]) == ("good", "beyond")
    assert good[4].startswith("sft at finetune.updates=100 has HS 81.0")
    assert (poor[0], poor[3]) == ("poor", "within")
    assert poor[4].startswith("sft at finetune.updates=60 has HS 51.0")
    lines = tables.delay("lab-frontier", "")
    assert lines[0] == ["attack", "data.world=1: SFT", "data.world=1: Booster"]
    assert [line[0] for line in lines[1:]] == ["finetune.updates=60", "finetune.updates=100"]
    assert (lines[1][1][:4], lines[1][2][:4]) == ("51.0", "10.0")


def test_pipelines_are_compared_seed_by_seed_along_the_setting_that_varies(tmp_path, monkeypatch):
    def cell(p: float, seed: int, ends: dict[str, float]) -> dict:
        made = {
            name: {"stages": [stage("base", 100, 70), stage("finetune sft", harm, 99.6)]}
            for name, harm in ends.items()
        }
        return {
            "settings": ["data.world=1", f"attack.p={p}"],
            "seed": seed,
            "status": "done",
            "pipelines": made,
        }

    cells = [
        cell(0.1, seed, {"sft": 80.0 + seed, "vaccine": 60.0 + 2 * seed}) for seed in (0, 1, 2)
    ]
    cells += [
        cell(0.02, seed, {"sft": 10.0 + seed, "vaccine": 10.0 + 3 * seed}) for seed in (0, 1, 2)
    ]
    (tmp_path / "toy.json").write_text(json.dumps({"cells": cells}))
    (tmp_path / "claims.yaml").write_text("toy: {against: [[vaccine, sft]]}")
    monkeypatch.setattr(bundles, "HERE", tmp_path)
    head, sft, vaccine = tables.by_setting("toy", "data.world=1")
    assert head == ["HS / FA", "attack.p=0.02", "attack.p=0.1"]
    assert (sft[0], vaccine[0]) == ("SFT", "Vaccine")
    assert (sft[1][:6], sft[2][:6]) == ("11.0 [", "81.0 [")
    assert vaccine[2].endswith("] / 100")
    # differences -20, -19, -18 and 0, 2, 4: the t interval of three has 4.303 standard
    # errors on either side
    assert tables.against("toy", "data.world=1") == [
        ["HS less HS", "attack.p=0.02", "attack.p=0.1"],
        ["Vaccine - SFT", "+2.0 [-3.0, +7.0]", "**-19.0 [-21.5, -16.5]**"],
    ]
    cells[0]["pipelines"]["sft"]["stages"][-1]["struck out"] = ["it babbles"]
    (tmp_path / "toy.json").write_text(json.dumps({"cells": cells}))
    assert tables.against("toy", "data.world=1")[1][2] == "struck out"


@pytest.fixture(scope="module")
def made() -> dict[Path, str]:
    return tables.made()


def cell(
    settings: list[str],
    seed: int,
    ends: dict[str, float],
    align: dict[str, float] | None = None,
    **more: dict,
) -> dict:
    """One in which pipelines end with an HS, after an alignment that took seconds."""
    made = {
        name: {
            "stages": [
                stage("base", 100, 70),
                stage(f"align {name}", 0, 60)
                | {"seconds": (align or {}).get(name, 1), "peak_mb": 100 if name == "sft" else 120},
                stage("finetune sft", harm, 99.0),
            ]
        }
        for name, harm in ends.items()
    }
    return {"settings": settings, "seed": seed, "status": "done", "pipelines": made}


@pytest.fixture
def two_claims(tmp_path, monkeypatch) -> list[str]:
    settings = ["data.world=1", "attack.p=0.1"]
    first = [
        cell(
            settings,
            seed,
            {"booster": 50.0 + seed, "sft": 80.0},
            {"sft": 10 + seed, "booster": 35 + seed},
        )
        for seed in (0, 1, 2)
    ]
    second = [
        cell(settings, seed, {"sft": 3.0, "tar": 20.0 + seed}, {"sft": 5, "tar": 60})
        for seed in (0, 1, 2)
    ]
    third = [
        cell([*settings, f"data.defense_rows={n}"], seed, {"booster": n + seed})
        for n in (9, 40)
        for seed in (0, 1, 2)
    ]
    for name, cells in (("one", first), ("two", second), ("rows", third)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"cells": cells}))
    (tmp_path / "claims.yaml").write_text(
        "one: {against: [[booster, sft]]}\ntwo: {against: [[tar, booster], [tar, vaccine]]}"
    )
    monkeypatch.setattr(bundles, "HERE", tmp_path)
    return settings


def test_joined_claims_have_every_pipeline_once_the_first_that_is_found(two_claims):
    head, *lines = tables.by_setting("one+two", two_claims[0])
    assert head == ["HS / FA", "attack.p=0.1"]
    assert [line[0] for line in lines] == ["SFT", "Booster", "TAR"]  # in the order of the stage
    assert [line[1].partition(" ")[0] for line in lines] == ["80.0", "51.0", "21.0"]
    assert [line[0] for line in tables.against("one+two", two_claims[0])[1:]] == [
        "Booster - SFT",
        "TAR - Booster",
        "TAR - Vaccine",
    ]
    assert [line[1] for line in tables.against("one+two", two_claims[0])[1:]] == [
        "**-29.0 [-31.5, -26.5]**",
        "-30.0",
        "-",
    ]


def test_the_whole_stage_is_told_before_and_after_the_attack_with_its_cost(two_claims):
    head, sft, attacked, booster, after, *_ = tables.whole("one+two", ",".join(two_claims))
    assert head == ["method", *head[1:7], "time", "memory"]
    assert (sft[0], sft[1].partition(" ")[0], sft[-2:]) == ("SFT", "0.0", ["1.00", "1.00"])
    assert (attacked[0], attacked[1].partition(" ")[0], attacked[-2:]) == (
        "... attacked",
        "80.0",
        ["", ""],
    )
    assert (booster[0], booster[1].partition(" ")[0], booster[-2:]) == (
        "Booster",
        "0.0",
        ["3.27", "1.20"],
    )  # 36 s over 11 s
    assert after[1].partition(" ")[0] == "51.0"
    assert tables.cost("one+two", "tar") == [
        "12.00",
        "1.20",
    ]  # over the plain alignment of its own claim
    assert tables.cost("one", "tar") == ["-", "-"]


def test_fewer_rows_stand_beside_all_of_them(two_claims):
    assert [
        [text.partition(" ")[0] for text in line]
        for line in tables.fewer("rows+one", ",".join(two_claims))
    ] == [
        ["HS", "data.defense_rows=9", "data.defense_rows=40", "all"],
        ["Booster", "10.0", "41.0", "51.0"],
    ]


def test_worlds_agree_by_kendalls_tau_of_methods_that_have_a_place(tmp_path, monkeypatch):
    ends = {1: {"sft": 90.0, "vaccine": 80.0, "booster": 60.0, "tar": 20.0, "random_tar": 1.0}}
    ends[2] = {
        "sft": 95.0,
        "vaccine": 70.0,
        "booster": 75.0,
        "tar": 30.0,
        "random_tar": 99.0,
    }  # one pair of six the other way
    cells = [
        cell([f"data.world={world}", "attack.p=0.1"], seed, of)
        for world, of in ends.items()
        for seed in (0, 1)
    ]
    cells += [
        cell([f"data.world={world}", "attack.p=0"], seed, dict.fromkeys(ends[1], 0.0))
        for world in ends
        for seed in (0, 1)
    ]
    cells += [cell(["data.world=1", "attack.p=0.2"], 0, ends[1])]
    (tmp_path / "toy.json").write_text(json.dumps({"cells": cells}))
    monkeypatch.setattr(bundles, "HERE", tmp_path)
    assert tables.worlds_agree("toy", "") == [
        ["attack", "methods", "tau of HS", "tau of harm margin"],
        [
            "attack.p=0.1",
            "4",
            "0.67 (p = 0.33)",
            "0.67 (p = 0.33)",
        ],  # (5 - 1) / 6; 8 of 24 orders are at least so much alike or unlike
        ["attack.p=0", "4", "-", "-"],
        ["attack.p=0.2", "0", "-", "-"],
    ]
    cells[0]["pipelines"]["vaccine"]["stages"][-1]["struck out"] = ["it babbles"]
    (tmp_path / "toy.json").write_text(json.dumps({"cells": cells}))
    assert tables.worlds_agree("toy", "")[1][1:3] == ["3", "1.00 (p = 0.33)"]


def test_sizes_stand_beside_each_other_at_the_points_of_the_larger_model(two_claims, tmp_path):
    ends = {
        "sft": 30.0,
        "booster": 40.0,
        "tar": 10.0,
        "vaccine": 0.0,
    }  # SFT and Booster change places, Vaccine has none on the other
    cells = [cell(two_claims, seed, ends) for seed in (0, 1)] + [
        cell(["data.world=2"], seed, ends) for seed in (0, 1)
    ]
    (tmp_path / "larger.json").write_text(json.dumps({"cells": cells}))
    head, *lines = tables.sizes("larger+one+two", ",".join(two_claims))
    assert head == ["method", "HS / FA", "larger model", "harm margin", "larger model"]
    assert [line[0] for line in lines] == ["SFT", "Booster", "TAR"]
    assert [[text.partition(" ")[0] for text in line[1:]] for line in lines] == [
        ["80.0", "30.0", "30.0", "-20.0"],
        ["51.0", "40.0", "1.0", "-10.0"],
        ["21.0", "10.0", "-29.0", "-40.0"],
    ]
    assert tables.sizes_agree("larger+one+two", "")[1:] == [
        ["data.world=1 attack.p=0.1", "3", "0.33 (p = 1)", "0.33 (p = 1)"]
    ]


def test_what_repairs_removed_stands_by_the_setting_that_varies(tmp_path, monkeypatch):
    def attacked(seed: int, lr: float) -> dict:
        edit = stage("edit antidote", 5, 99) | {
            "facts": {
                "removed energy": {"harm": 10 * lr + seed / 10, "task": 0.2},
                "update norm before": 4.0,
                "update norm after": 3.0,
            }
        }
        stages = [stage("base", 100, 70), stage("align sft", 0, 60), stage("finetune sft", 90, 99)]
        return {"sft": {"stages": stages}, "sft+antidote": {"stages": [*stages, edit]}}

    cells = [
        {
            "settings": ["data.world=1", f"finetune.lr={lr}"],
            "seed": seed,
            "status": "done",
            "pipelines": attacked(seed, lr),
        }
        for lr in (0.03, 0.01)
        for seed in (0, 1, 2)
    ]
    (tmp_path / "toy.json").write_text(json.dumps({"cells": cells}))
    monkeypatch.setattr(bundles, "HERE", tmp_path)
    assert tables.energies("toy", "data.world=1") == [
        ["removed: harm / task; left", "finetune.lr=0.01", "finetune.lr=0.03"],
        [
            "SFT+Antidote",
            "20 / 20; 75",
            "40 / 20; 75",
        ],  # the mean over seeds, and nothing of what is no repair
    ]
    for cell in cells[:3]:  # those of the second point
        del cell["pipelines"]["sft+antidote"]
    (tmp_path / "toy.json").write_text(json.dumps({"cells": cells}))
    assert tables.energies("toy", "data.world=1")[1:] == [["SFT+Antidote", "20 / 20; 75", "-"]]


@pytest.mark.parametrize("name", [*tables.PAGES, *figures.FIGURES])
def test_the_pages_tables_and_figures_are_those_of_the_bundles(made, name):
    path = tables.ROOT / name
    assert path.read_text(encoding="utf-8") == made[path]
