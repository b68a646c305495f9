"""Choosing among methods by what a defender has: the words, the traits, and what they rule out."""

import dataclasses
import json
import typing

import pytest

from test_recipe import run
from test_registry import HALF, package  # noqa: F401  a fixture
from titer import listing, registry
from titer.assumptions import STAGES, WORDS, Trait, find_obstacles, read_assumptions
from titer.methods import Defense, Edit, StreamEdit

CHOOSABLE = [
    (kind, name)
    for kind in ("defenses", "edits")
    for name in registry.builtin(kind)
    if not registry.load(kind, name).about.control
    and not issubclass(registry.load(kind, name), StreamEdit)
]


def fitting(words: str) -> set[str]:
    return {each.listing.name for each in listing.choose(read_assumptions(words)) if each.fits}


# names as a reader of the papers would give them, written without the traits
ALIGN = {"adversarial_loss", "booster", "repnoise", "t_vaccine", "tar", "vaccine"}
TUNE = {
    *("anchor", "constrained_sft", "ema", "ewc", "kl", "ldifs", "lisa", "safe_mix"),
    *("safe_moe", "safegrad", "sppft"),
}
REPAIR = {
    *("antidote", "one_shot", "resta", "safe_delta", "safe_lora", "safe_merge", "wise_ft"),
}


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("before release", ALIGN | {"lox"}),
        ("open weights", ALIGN | {"lox"}),
        ("while fine-tuning", TUNE),
        ("after fine-tuning", REPAIR),
        ("while fine-tuning, after fine-tuning", TUNE | REPAIR),
        ("open weights, after fine-tuning", set()),
        ("before release, no harmful data", {"vaccine", "lox"}),
        ("no harmful data, adapter only, after fine-tuning", {"one_shot", "safe_lora", "wise_ft"}),
        ("after fine-tuning, no harmful data, no alignment data", {"safe_lora", "wise_ft"}),
        ("after fine-tuning, no base model", REPAIR - {"safe_lora", "safe_merge"}),
        ("after fine-tuning, no other model", {"antidote", "one_shot", "safe_delta", "wise_ft"}),
        ("after fine-tuning, no aligned model", {"one_shot"}),
        ("after fine-tuning, no training", REPAIR - {"one_shot"}),
        ("weights alone", {"lox", "resta", "safe_lora", "safe_merge", "wise_ft"}),
        ("dense model, while fine-tuning", TUNE - {"safe_moe"}),
        ("while fine-tuning, no alignment data, no harmful data, one pass",
         {"constrained_sft", "ema", "sppft"}),
    ],
)  # fmt: skip
def test_words_leave_what_fits(words, names):
    assert fitting(words) == names


def test_a_setting_that_asks_for_less_is_named():
    found = {each.listing.name: each for each in listing.choose(["whole model", "no harmful data"])}
    assert not found["antidote"].fits  # the setting spares it the adapter alone
    assert found["antidote"].obstacles == (Trait.HARMFUL, Trait.FACTORS)
    found = {each.listing.name: each for each in listing.choose(["whole model"])}
    assert found["antidote"].condition == "target=update"
    assert found["wise_ft"].condition == ""


@pytest.mark.parametrize(("kind", "name"), CHOOSABLE)
def test_leaner_settings_ask_for_less_and_are_all_declared(kind, name):
    """No choice of a field frees a method from a row or a model, but for those that say so."""
    default = registry.build(kind, name)
    before, lean = {*listing.traits(default)}, default.about.lean

    def build(fields: dict) -> set[Trait]:
        return {*listing.traits(registry.build(kind, {"method": name, **fields}))}

    assert not lean or before - build(dict(lean)), f"{lean} frees {name} from nothing"
    for each in dataclasses.fields(default):
        for value in typing.get_args(each.type):
            if isinstance(value, str) and each.name not in lean:
                try:
                    freed = before - build({each.name: value})
                except ValueError:  # not without another field
                    continue
                assert freed <= {Trait.WHOLE}, f"{each.name}={value} frees {name} from {freed}"


def test_every_method_says_what_is_needed_to_choose_it():
    for kind, name in CHOOSABLE:
        cls = registry.load(kind, name)
        assert issubclass(cls, Edit) or cls.about.stage in Defense.stages, name
        assert cls.about.paper, name
    controls = {name for name in registry.builtin("defenses") if name.startswith("random_")}
    controls |= {name for name in registry.builtin("edits") if name.startswith("random_")}
    assert controls | {"sft", "scale"} == {
        name
        for kind in ("defenses", "edits")
        for name in registry.builtin(kind)
        if registry.load(kind, name).about.control
    }


def test_every_word_rules_out_something_and_every_trait_has_a_word():
    every = fitting("before release, while fine-tuning, after fine-tuning")
    assert len(every) == len(CHOOSABLE)
    asked = [listing.traits(registry.build(kind, name)) for kind, name in CHOOSABLE]
    for word in WORDS:
        assert 0 < sum(bool(find_obstacles(each, [word])) for each in asked) < len(asked), word
    assert {trait for word in WORDS.values() for trait in word.excludes} == {*Trait}


def test_a_method_of_several_stages_fits_where_one_is_open():
    either = [STAGES["align"], STAGES["finetune"], Trait.TRAINS]
    assert find_obstacles(either, ["before release"]) == []
    assert find_obstacles(either, ["open weights", "while fine-tuning"]) == [*either[:2]]
    assert find_obstacles(either, ["no training", "while fine-tuning"]) == [Trait.TRAINS]


# ---- the command ----


def test_list_says_what_fits_and_on_request_why_not(monkeypatch, capsys):
    words = "  No harmful DATA, adapter  only,after fine-tuning,"
    code, out, err = run(monkeypatch, capsys, "list", "edits", "--assume", words)
    head, *lines, tail = out.splitlines()
    assert (code, err) == (0, "")
    assert head == "3 of 8 fit: no harmful data, adapter only, after fine-tuning"
    assert [line.split()[:2] for line in lines] == [
        ["one_shot", "edit"],
        ["safe_lora", "edit"],
        ["wise_ft", "edit"],
    ]
    assert tail == "5 do not: --why says why"
    code, out, _ = run(monkeypatch, capsys, "list", "edits", "--assume", words, "--why")
    told = dict(line.split(maxsplit=1) for line in out.splitlines()[5:])
    assert told["antidote"] == "needs harmful rows"
    assert told["resta"] == "needs harmful rows; leaves a whole model"
    assert told["lox"] == "edits the model before its release; leaves a whole model"
    assert len(told) == 5


def test_list_gives_the_same_as_json(monkeypatch, capsys):
    words = ("list", "--assume", "whole model, after fine-tuning", "--json")
    code, out, _ = run(monkeypatch, capsys, *words)
    found = {entry["name"]: entry for entry in json.loads(out)}
    assert code == 0
    assert {name for name, entry in found.items() if entry["fits"]} == REPAIR
    assert (found["antidote"]["with"], found["antidote"]["why"]) == ({"target": "update"}, [])
    assert found["booster"]["why"] == ["acts while the model is aligned"]
    assert (found["booster"]["kind"], found["booster"]["stages"]) == ("defenses", ["align"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--assume", "no harmfull data"),
            "unknown assumption 'no harmfull data': did you mean 'no harmful data'? There is adapter only",
        ),
        (("--assume", "no data,"), "unknown assumption 'no data'"),
        (("--assume", " , "), "--assume ' , ' says nothing: give some of before release"),
        (("--assume", ""), "--assume '' says nothing"),
        (("--why",), "--why says why a method does not fit what you have: give --assume too"),
        (
            ("attacks", "--assume", "adapter only"),
            "--assume chooses among defenses and edits, and 'attacks' are neither: leave it out",
        ),
    ],
)
def test_what_cannot_be_assumed_is_one_line(monkeypatch, capsys, arguments, said):
    code, out, err = run(monkeypatch, capsys, "list", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {said}")


def test_the_words_stand_in_the_help(monkeypatch, capsys):
    _, out, _ = run(monkeypatch, capsys, "list", "--help")
    lines = [line.strip() for line in out.splitlines()]
    for word, of in WORDS.items():
        assert f"{word:19}{of.meaning}" in lines
    assert max(map(len, lines)) <= 80


def test_plug_ins_are_chosen_among_and_a_broken_one_stops_nothing(package, monkeypatch, capsys):
    package(
        "elsewhere",
        {"defenses": ["half = elsewhere:Half", "mishap = nowhere:Half"]},
        {"elsewhere": HALF},
    )
    _, out, _ = run(monkeypatch, capsys, "list", "--assume", "before release", "--why")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert lines["half"].endswith("Halves everything. [elsewhere]")
    assert "align, finetune" in lines["half"]
    assert "cannot be used" in lines["mishap"]
