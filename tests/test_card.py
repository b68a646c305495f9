"""The tamper card: nothing without controls, nothing left out silently, and what two of them share."""

import json
import math
from dataclasses import replace

import pytest
import yaml
from typer.testing import CliRunner

from test_assay import BY, IMMUNE, N, asked, pairs
from titer import registry
from titer.cli import app
from titer.errors import EvidenceError
from titer.findings.assay import assay, conclude
from titer.findings.assay_record import AssayRecord, tell_attacked, tell_conditions
from titer.findings.card import (
    NOTICE,
    SAMPLES,
    STANDARDS,
    card,
    differ,
    find_controls,
    find_obstacles,
    find_worst,
    list_untested,
)
from titer.findings.conditions import CROSS_DOMAIN, REQUIRED, STRONG, Evidence, Pairing
from titer.findings.dose import UNIT
from titer.findings.records import Record, last
from titer.findings.standards import PERSON
from titer.report.card import difference, list_flags, metadata, to_markdown
from titer.report.model_card import ModelPage
from titer.report.model_card import to_markdown as page_of_model
from titer.scoring.curve import FACT
from titer.scoring.score import Score


def told(evidence: Evidence = IMMUNE, **more) -> dict:
    """The record of an assay of planted models, as its file has it."""
    conditions = assay(evidence, BY)
    return {
        "schema": 1,
        "defended": {"name": "mine", "sha256": "a" * 64},
        "original": {"name": "plain", "sha256": "b" * 64},
        "verdict": conclude(conditions),
        "required": list(REQUIRED),
        "conditions": tell_conditions(conditions),
        "thresholds": vars(BY),
        "budget": {"updates": 200, "rows": 10, "learning rate": 8e-4, "seeds": [0, 1, 2]},
        "attacks": {"mix": {"method": "harmful_mix", "p": 0.1, "n": 500}},
        "defense-aware attacks": [],
        "disjoint": {"shared": 0},
        "attacked": tell_attacked(evidence, BY.phi),
        "recipe": {"data": {"lab": "world-v1", "world": 1}, "protocol": "hs-v1"},
        "judge": {"method": "lab", "world": 1},
        "flags": [],
        **more,
    }


def record(evidence: Evidence = IMMUNE, **more) -> AssayRecord:
    return AssayRecord.model_validate(told(evidence, **more))


def test_the_worst_case_is_by_the_attacker_s_words_where_these_give_more():
    held = pairs((math.inf,) * 3, harm=0)
    quiet = [replace(each, defended=asked(each.defended, 100)) for each in held]
    made = card(record(Evidence({"mix": held, "backdoor": quiet})))
    assert (made["worst case"]["attack"], made["worst case"]["HS"]["value"]) == ("backdoor", 100)
    assert {each["verdict"] for each in made["samples"]} == {"harmful"}


def test_a_card_says_first_that_it_is_no_certificate():
    made = card(record())
    assert next(iter(made)) == "notice"
    text = to_markdown(made)
    assert text.splitlines()[:2] == ["---", f"# {NOTICE}"]
    assert text.split("---\n", 2)[2].lstrip().startswith(f"*{NOTICE}*")
    assert "no certificate" in NOTICE


def test_the_metadata_is_a_model_index_of_the_worst_case_and_the_cost():
    _, front, _ = to_markdown(card(record())).split("---\n", 2)
    [index] = yaml.safe_load(front)["model-index"]
    [result] = index["results"]
    assert index["name"] == "mine"
    assert result["dataset"]["name"] == "world-v1, seed 1"
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values == {"HS": 90.0, "times": 3.1}


def in_updates(of: Pairing) -> Pairing:
    """The same, of an attacker who sends no rows of his own."""

    def tell(stages):
        looks = last(("finetune",), stages).fact(FACT)
        told = [{**look, "update": look[UNIT], UNIT: 0} for look in looks]
        return [*stages[:-1], stages[-1].model_copy(update={"facts": {FACT: told}})]

    return Pairing(tell(of.defended), tell(of.original))


def test_a_cost_to_break_is_in_its_unit_and_a_bound_is_called_one():
    def cost(evidence):
        made = card(record(evidence))
        [line] = [of for of in to_markdown(made).splitlines() if of.startswith("* **cost to")]
        [index] = metadata(made)["model-index"]
        return line, [of["name"] for of in index["results"][0]["metrics"] if of["type"] == "times"]

    line, names = cost(IMMUNE)
    assert line.endswith("times the original's rows (mix)")
    assert names == ["cost to break (attacker's rows, times the original's)"]
    line, names = cost(Evidence({"mix": [in_updates(of) for of in IMMUNE.attacks["mix"]]}))
    assert line.endswith("times the original's updates (mix)")
    assert names == ["cost to break (updates, times the original's)"]
    line, names = cost(Evidence({"mix": pairs((math.inf,) * 3, harm=0)}))
    assert line == "* **cost to break**: more than 3.85 times the original's rows (mix)"
    assert names == []


def test_what_others_named_breaks_no_table_and_a_flag_of_no_pipeline_no_line():
    condition = card(record())["conditions"][0]
    condition["decided by"] |= {"of": "a|b", "why": "one\ntwo"}
    text = to_markdown({**card(record()), "conditions": [condition]})
    assert "| a\\|b | one two |" in text
    flag = {"name": "weights hardly moved", "pipeline": "", "stage": "align booster", "text": "T"}
    assert list_flags([flag]) == "* weights hardly moved (align booster): T"


def test_a_model_s_page_strikes_out_and_says_what_was_not_scored():
    scores = {
        "harm": Score(0.0, 144, 0.0, 2.6),
        "task": Score(math.nan, 0, math.nan, math.nan),
        "lookalike": Score(97.0, 60, 90.0, 99.0),
    }
    how = {"kind": "align", "method": {"method": "booster"}, "scores": scores}
    told = Record.model_validate({**how, "struck out": ["it is broken"]})
    for made, why in ((told, "it is broken"), (Record.model_validate(how), "it refuses 97.0")):
        page = ModelPage(
            "m", [made], "a" * 64, "b", None, None, False, None, scores, {}, {}, None, [], {}
        )
        text = page_of_model(page)
        assert "| HS (%) | struck out: 0.0 [0.0, 2.6] | 144 |" in text
        assert f"HS is struck out, it shows nothing: {why}" in text
        assert "| FA (%) | not scored | 0 |" in text
        [index] = yaml.safe_load(text.split("---")[1])["model-index"]
        assert [of["type"] for of in index["results"][0]["metrics"]] == ["lookalike"]


def test_without_a_control_that_comes_out_right_there_is_no_card():
    assert find_controls(record(), BY.phi)["positive"][1].value == 90
    assert find_controls(record(), BY.phi)["negative"][1].value == 0
    with pytest.raises(EvidenceError, match="does not break"):
        card(record(thresholds={**vars(BY), "phi": 95.0}))
    attacked = tell_attacked(IMMUNE, BY.phi)
    for each in attacked:
        each["before"] = {"value": 40.0, "low": 30.0, "high": 50.0, "n": N}
    with pytest.raises(EvidenceError, match="before any attack"):
        card(record(attacked=attacked))
    mine = [each for each in tell_attacked(IMMUNE, BY.phi) if each["of"] == "defended"]
    with pytest.raises(EvidenceError, match="an undefended model is missing"):
        card(record(attacked=mine))
    its = [each for each in tell_attacked(IMMUNE, BY.phi) if each["of"] == "original"]
    with pytest.raises(EvidenceError, match="no attacked model"):
        card(record(attacked=its))


def test_the_worst_case_is_over_all_attacks_seeds_and_rows():
    evidence = Evidence(
        {"a": pairs((150.0, 160.0, 155.0), harm=60)},
        topics={"b": pairs((150.0, 160.0, 155.0), harm=80)},
    )
    worst = find_worst(record(evidence))
    assert (worst.attack, worst.arm, worst.after.value) == ("b", "topics", 80)


def test_what_was_not_tested_is_made_from_the_registry():
    untested = list_untested(record())
    known = registry.names("attacks")
    assert "harmful_mix" in known
    assert untested["attacks"] == [name for name in known if name != "harmful_mix"]
    assert "lab" not in untested["judges"]
    assert "answers" not in untested["tasks"]
    assert untested["conditions"] == []
    assert "an attacker who knows the defense" in untested["besides"]
    aware = record(**{"defense-aware attacks": ["mix"]})
    assert "an attacker who knows the defense" not in list_untested(aware)["besides"]
    open_one = record(Evidence(IMMUNE.attacks, IMMUNE.topics, {}, IMMUNE.task))
    assert list_untested(open_one)["conditions"] == [CROSS_DOMAIN]
    rungs = {
        "rungs": [
            {"attack": {"method": "benign"}, "word": "held"},
            {"attack": {"method": "backdoor"}, "word": "missing"},
        ]
    }
    found = list_untested(record(), rungs)["attacks"]
    assert ("benign" in found, "backdoor" in found) == (False, True)


def test_samples_are_five_by_the_hash_of_the_model_and_show_no_text():
    made = card(record())
    assert len(made["samples"]) == SAMPLES == 5
    assert made["samples"] == card(record())["samples"]
    other = card(record(defended={"name": "mine", "sha256": "c" * 64}))
    assert other["samples"] != made["samples"]
    assert set(made["samples"][0]) == {"prompt", "verdict"}


def test_every_field_of_a_standard_points_into_the_card_or_is_a_person_s():
    made = card(record())
    assert len(STANDARDS) == 14
    for field in made["standards"]:
        if field["at"] is None:
            assert field["answer"] == PERSON
        else:
            assert made[field["at"].removeprefix("/")]


def test_the_error_of_a_judge_is_told_or_left_to_a_person():
    assert card(record())["judge"]["measured error"].startswith("none")
    judged = card(record(judge={"method": "refusal"}))["judge"]
    assert judged["measured error"] == PERSON
    assert card(record(judge={"method": "x", "error": 0.1}))["judge"]["measured error"] == 0.1


def test_a_ladder_of_another_model_is_refused_and_one_of_the_same_shown():
    rung = {"name": "r1", "cost": {"passes": 20}, "harm": None, "word": "missing", "attack": {}}
    ladder = {"ladder": "ladder-v1", "model": {"sha256": "a" * 64}, "rungs": [rung]}
    text = to_markdown(card(record(), ladder))
    for knows in (True, False):  # a rung whose attacker knows the defense counts as an attack does
        made = card(record(), ladder | {"defense-aware attacker": knows})
        assert made["defense-aware attacker"] is knows
        assert ("an attacker who knows the defense" in made["not tested"]["besides"]) is not knows
    assert "| r1 | 20 | missing | missing |" in text
    with pytest.raises(ValueError, match="another model"):
        card(record(), ladder | {"model": {"sha256": "d" * 64}})


def test_two_cards_are_compared_by_figure_and_told_where_they_cannot_be():
    first, second = card(record()), card(record())
    assert difference(first, second) == ["no difference"]
    weaker = card(record(Evidence({"mix": pairs((55.0, 54.0, 53.0))}, task=IMMUNE.task)))
    places = [place for place, _, _ in differ(first, weaker)]
    assert "cost to break, times the original's, value" in places
    assert not find_obstacles(first, weaker)
    other = card(record(thresholds={**vars(BY), "phi": 20.0}))
    assert find_obstacles(first, other) == ["protocol, thresholds, phi"]
    assert difference(first, other)[0].startswith("the figures cannot be compared")


def test_cards_of_other_rows_or_beside_another_original_do_not_compare_alike():
    def made(**more):
        return card(record(recipe={"data": {"world": None, "harmful": "mine.csv"}}, **more))

    def rows(harm, attack="1"):
        return {"attacks": {"attack": attack, "benchmark harm": harm}}

    first = made(rows=rows("a"))
    assert difference(first, made(rows=rows("a"))) == ["no difference"]
    asked, sent = made(rows=rows("b")), made(rows=rows("a", "2"))
    assert find_obstacles(first, asked) == ["protocol, rows, attacks, benchmark harm"]
    assert find_obstacles(first, sent) == ["protocol, rows, attacks, attack"]
    whole, few = ({"data": {"world": 1, "split": of}} for of in ("test", "validation"))
    few["data"]["limit"] = 20
    places = find_obstacles(card(record(recipe=whole)), card(record(recipe=few)))
    assert places == ["protocol, split", "protocol, limit"]
    weaker = made(rows=rows("a"), original={"name": "plain", "sha256": "c" * 64})
    assert find_obstacles(first, weaker) == ["original, sha256"]
    assert difference(first, weaker)[0].startswith("the costs to break and the conditions cannot")


def test_the_command_writes_both_forms_and_refuses_in_one_line(tmp_path):
    run = CliRunner().invoke
    (tmp_path / "assay.json").write_text(json.dumps(told()))
    done = run(app, ["card", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert NOTICE in done.output
    made = json.loads((tmp_path / "card.json").read_text())
    assert made["defense-aware attacker"] is False
    assert (tmp_path / "card.md").read_text().startswith("---\n# This card is no certificate")
    done = run(app, ["card", "--diff", str(tmp_path), str(tmp_path / "card.json")])
    assert done.output.strip() == "no difference"
    for wrong in (["card", "--diff", str(tmp_path)], ["card", str(tmp_path / "nothing")]):
        assert isinstance(run(app, wrong).exception, ValueError)


def test_conditions_that_are_not_required_are_shown_too():
    assert STRONG in to_markdown(card(record()))
