"""The frontier of plain fine-tuning: what is free, what is best of it, and what lies beyond."""

import math
import random
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from titer import report
from titer.findings import flags
from titer.findings.frontier import front, is_free, place, places
from titer.findings.ranking import rank
from titer.findings.records import Record, record_of
from titer.findings.rules import ATTACK, OTHER_ATTACK
from titer.findings.seeds import Group, groups
from titer.findings.standings import stand
from titer.report import tradeoff
from titer.report.drawing import SVG
from titer.report.sweep import flag_lines
from titer.runs import sweep
from titer.scoring.statistics import proportion


def stage(
    label: str, harm: float | None = None, task: float | None = None, struck: bool = False
) -> Record:
    kind, _, method = label.partition(" ")
    scores = {
        name: vars(proportion(round(10 * value), 1000))
        for name, value in (("harm", harm), ("task", task))
        if value is not None
    }
    told = ["it is broken"] if struck else []
    return record_of(
        {
            "kind": kind,
            "method": {"method": method},
            "folder": label,
            "scores": scores,
            "struck out": told,
            "weights": "",
        }
    )


def group(
    path: str,
    harm: float,
    task: float,
    settings: tuple[str, ...] = (),
    seeds: int = 3,
    name: str = "",
    struck: bool = False,
) -> Group:
    *before, last = [
        f"{kind} {method}"
        for kind, method in zip(("align", "finetune", "edit"), path.split(), strict=False)
    ]
    rows = {
        seed: [stage("base"), *(stage(label) for label in before), stage(last, harm, task, struck)]
        for seed in range(seeds)
    }
    return Group(settings, name or path, rows)


SFT = [
    group("sft sft", 90, 99),
    group("sft sft", 50, 90, ("finetune.updates=60",)),
    group("sft sft wise_ft", 10, 70),
]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("sft sft", True),
        ("sft ema", True),
        ("sft sft wise_ft", True),
        ("sft ema wise_ft", True),
        ("sft sft scale", True),
        ("booster sft", False),
        ("sft sft antidote", False),
        ("sft booster", False),
        ("ema sft", False),
        ("sft", False),
    ],
)
def test_free_is_plain_fine_tuning_in_any_form(path, expected):
    assert is_free(group(path, 1, 1)) is expected


def test_what_was_released_edited_is_not_free():
    released = [
        stage("base"),
        stage("align sft"),
        stage("release lox"),
        stage("finetune sft", 1, 1),
    ]
    assert not is_free(Group((), "lox", {0: released}))


def test_the_front_is_what_no_other_is_as_good_as():
    rng = random.Random(0)
    for _ in range(30):
        found = [
            group(
                "sft sft",
                rng.randrange(0, 101, 10),
                rng.randrange(0, 101, 10),
                (f"finetune.lr={i}",),
            )
            for i in range(12)
        ]
        best = front([*found, group("booster sft", 0, 100), group("sft sft", 0, 100, struck=True)])
        points = [(each.score("harm").value, each.score("task").value) for each in found]
        chosen = [(each.score("harm").value, each.score("task").value) for each in best]
        assert set(chosen) == {
            (h, t)
            for h, t in points
            if not any((a <= h and b >= t) and (a, b) != (h, t) for a, b in points)
        }
        assert chosen == sorted(chosen, key=lambda point: -point[1])


@pytest.mark.parametrize(
    ("harm", "task", "word", "rival"),
    [
        (
            2,
            98,
            "beyond",
            "sft sft at the same settings has HS 90.0",
        ),  # the only one as able is far more harmful
        (10, 85, "beyond", "sft sft at finetune.updates=60 has HS 50.0"),
        (50, 89, "within", "sft sft at finetune.updates=60"),
        (60, 70, "within", "sft sft wise_ft at the same settings"),
        (9, 72, "not decided", "sft sft wise_ft"),
        (47, 91, "not decided", "sft sft at finetune.updates=60"),
        (88, 99, "not decided", "sft sft at the same settings"),
        (8.5, 69, "not decided", "sft sft wise_ft"),
    ],
)
def test_a_method_lies_beyond_within_or_it_is_not_decided(harm, task, word, rival):
    [told] = places([*SFT, group("booster sft", harm, task)])
    assert told.word == word
    assert rival in told.text
    assert told.text.startswith(f"HS {harm:.1f} [")


def with_attack(of: Group, p: float) -> Group:
    """The same pipeline under an attack of its own."""
    seeds = {
        seed: [
            each.model_copy(update={"facts": {ATTACK: {"p": p}}})
            if each.kind == "finetune"
            else each
            for each in stages
        ]
        for seed, stages in of.seeds.items()
    }
    return Group(of.settings, of.pipeline, seeds)


def test_a_model_under_another_attack_is_nobody_s_rival():
    """It met no harmful row, and so has the lowest HS of all."""
    benign = with_attack(group("sft sft", 0, 99, name="sft benign"), 0.0)
    method = group("booster sft", 20, 97)
    for found in ([*SFT, method], [*SFT, method, benign]):
        [told] = places(found)
        assert (told.group.pipeline, told.word) == ("booster sft", "beyond")
        assert benign not in front(found)
    named = {each.pipeline: each for each in stand([SFT[0], method, benign])}
    assert named["booster sft"].rank == 1
    assert (named["sft benign"].rank, named["sft benign"].reason) == (None, OTHER_ATTACK)
    # a method that was attacked otherwise has no free models to be placed among
    assert not places([*SFT, with_attack(method, 0.5)])
    ranked = rank({each.pipeline: each.seeds[0] for each in (SFT[0], method, benign)})
    assert {each.pipeline: each.reason for each in ranked}["sft benign"] == OTHER_ATTACK


def test_beyond_all_ability_that_is_free():
    rivals = [group("sft sft", 40, task, (f"finetune.updates={task}",)) for task in (20, 30, 40)]
    [told] = places([*rivals, group("booster sft", 90, 95)])
    assert (told.word, told.text.partition("; ")[2]) == ("beyond", "no free model has such an FA")


def test_what_cannot_be_compared_has_no_place():
    assert places([*SFT[:2], group("booster sft", 0, 100)]) == []  # two free models are no curve
    assert places([group("booster sft", 0, 100)]) == []
    [struck] = places([*SFT, group("booster sft", 0, 100, struck=True)])
    assert (struck.word, struck.text) == ("no place", "HS is struck out in 3 of 3 models")
    [two] = places([*SFT, group("booster sft", 0, 99, seeds=2)])  # two seeds have no interval
    assert two.word == "not decided"
    three = [stage("base"), stage("align booster"), stage("finetune sft", 3, None)]
    [unscored] = places([*SFT, Group((), "x", {0: three})])
    assert unscored.text == "HS or FA was not measured"


def test_settings_that_share_no_seed_are_told_apart_by_their_intervals():
    first, other = ("finetune.lr=1",), ("finetune.lr=2",)
    method = group("booster sft", 30, 98, first)
    lacking = replace(method, seeds={1: method.seeds[1]})
    free = [*SFT, group("sft sft", 80, 98, other, seeds=1)]
    assert math.isnan(lacking.less(free[-1], "harm").value)
    [told] = places([*free, lacking])
    assert (told.word, told.text.partition("; ")[2][:24]) == ("beyond", "sft sft at finetune.lr=2")


def test_the_plane_leaves_out_a_method_that_has_no_place():
    good, flagged = (group("booster sft", 2, 95, name=name) for name in ("good", "flagged"))
    flagged = replace(flagged, marks={0: ["defense inactive"]})
    free = replace(SFT[0], marks={0: ["defense inactive"]})
    assert place(free, SFT[:1]).word == "within"  # a free one keeps its own
    found = [free, *SFT[1:], good, flagged]
    assert [each.word for each in places(found)] == ["beyond", "no place"]
    told = tradeoff.label(found, "a title", "")
    assert "good: HS 2.0" in told
    assert "flagged" not in told
    assert "HS 90.0" in told  # a free one keeps its place, or methods would have fewer rivals


def test_one_seed_has_the_interval_over_prompts_and_three_that_over_training():
    one, three = group("sft sft", 50, 90, seeds=1), group("sft sft", 50, 90)
    assert one.score("harm") == proportion(500, 1000)
    assert (three.score("harm").covers, three.score("harm").seeds) == ("training", 3)
    assert three.prompts("harm") == pytest.approx(
        (proportion(500, 1000).high - proportion(500, 1000).low) / 2
    )


def test_the_plane_draws_every_point_at_its_place_and_the_front_below_none_of_the_free():
    found = [
        *SFT,
        group("booster sft", 30, 80, name="booster"),
        group("sft sft antidote", 5, 90, name="a <b> $c$"),
    ]
    text = tradeoff.svg(found, "a title", "a note", "x")
    root = ElementTree.fromstring(text)
    assert text == tradeoff.svg(found, "a title", "a note", "x")
    places_of = {
        key.attrib["id"]: [
            (float(u.attrib["x"]), float(u.attrib["y"])) for u in key.iter(f"{SVG}use")
        ]
        for key in root.iter(f"{SVG}g")
        if "id" in key.attrib
    }
    (circle_high, circle_low), [diamond] = places_of["x-free-o"], places_of["x-free-d"]
    [booster], [antidote] = places_of["x-method-0-0"], places_of["x-method-1-0"]

    def at(harm: float, task: float) -> tuple[float, float]:  # from two points that are drawn
        across = (circle_high[0] - diamond[0]) / (99 - 70)
        down = (circle_high[1] - diamond[1]) / (90 - 10)
        return diamond[0] + across * (task - 70), diamond[1] + down * (harm - 10)

    for drawn, harm, task in ((circle_low, 50, 90), (booster, 30, 80), (antidote, 5, 90)):
        assert drawn == pytest.approx(at(harm, task), abs=0.01)
    assert circle_high[1] < booster[1]  # HS upwards
    assert "booster: HS 30.0" in root.attrib["aria-label"]
    assert {"a title", "a note", "a <b> $c$", "booster"} <= {
        each.text for each in root.iter(f"{SVG}text")
    }


def cell(settings: list[str], seed: int, harm: float, **fields) -> dict:
    def document(path: str, harm: float, task: float) -> dict:
        [stages] = group(path, harm, task, seeds=1).seeds.values()
        return {
            "stages": [each.fields for each in stages],
            "recipe": {"data": {"world": 1}},
            "flags": fields.get("flags", []),
        }

    pipelines = {
        "sft": document("sft sft", 90, 99),
        "wise": document("sft sft wise_ft", 40, 80),
        "booster": document("booster sft", harm, 95),
    }
    return {"settings": settings, "seed": seed, "status": "done", "pipelines": pipelines}


def test_a_sweeps_page_has_its_frontier_its_flags_and_what_is_missing(tmp_path):
    flag = {
        "name": "answers cut off",
        "pipeline": "sft",
        "stage": "base",
        "text": "Many.",
        "mend": "Raise it.",
    }
    cells = [
        cell(["data.world=1", f"finetune.updates={updates}"], seed, harm)
        for updates in (60, 100)
        for seed, harm in enumerate((88, 20, 89))
    ]
    cells += [
        cell(["data.world=2"], 0, 5, flags=[flag]),
        {"settings": ["data.world=<2>"], "seed": 1, "status": "missing", "error": "out of memory"},
    ]
    bundle = {"recipe": "lab", "cells": cells, "flags": sweep.disagreeing(cells), "missing": 1}
    assert [each["pipeline"] for each in bundle["flags"]] == [
        f"data.world=1 finetune.updates={updates} booster" for updates in (60, 100)
    ]
    assert flags.from_documents(bundle["flags"])[0].name == "seeds disagree"
    page = report.write_sweep(bundle, tmp_path).read_text()
    assert "1 of 8 cells are missing" in page
    assert "data.world=&lt;2&gt; seed 1" in page
    assert "out of memory" in page
    assert "in 1 of 8 cells: data.world=2 seed 0" in page
    told = "red flag, answers cut off, in 1 of 8 cells: data.world=2 seed 0"
    assert flag_lines(cells) == [told]  # which the command prints
    # world 1 has four free models, world 2 has two, which are no curve; and there are two axes
    assert page.count("<svg") == 1 + 2
    assert "synthetic lab, world-v1</text>" in page
    assert page.count("no place</span>") == 2
    assert page.count("red flag in 3 of 3 models: seeds disagree") == 2 + 1  # and it has no rank
    assert "http" not in page.replace("http://www.w3.org", "").replace('http-equiv="', "")
    assert len(groups(cells)) == 9


def test_the_page_of_a_sweep_can_be_made_again(tmp_path):
    import json

    cells = [cell(["data.world=1"], 0, 30)]
    (tmp_path / "sweep.json").write_text(
        json.dumps({"recipe": "lab", "cells": cells, "missing": 0, "flags": []})
    )
    path = report.again(tmp_path)
    assert "A sweep of lab" in path.read_text()
    with pytest.raises(ValueError, match="holds no results"):
        report.again(tmp_path / "nowhere")
