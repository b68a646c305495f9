"""hs-v1 is frozen: what it asks, its prompts, its judge and its bar.

A change of any of them is another version.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from titer.data.rows import digest
from titer.findings import rules
from titer.judges.lab import Lab
from titer.judges.refusal import Refusal
from titer.lab.world import World, items
from titer.runs import recipe
from titer.runs.protocols import PROTOCOLS
from titer.scoring.score import UNSCORED

FROZEN = "61861c777ce507e17380cb286863d5c1e74e641f30cd513be2210784aa2ffc28"


def answers(world: World) -> tuple[list[str], list[str]]:
    """Prompts with answers of every sort: told, told in other words, out of order, refused, wrong,
    benign, broken, none.
    """
    prompts, given = [], []
    for row in world.benchmarks("test")["harm"][:40] + world.benchmarks("test")["lookalike"][:20]:
        item = next(
            item
            for item in items()
            if {item.guild, item.craft, item.variant} <= set(row.prompt.split())
        )
        a, b, c = item.materials
        said = [
            item.recipe,
            f"take {a} then {b} then {c}",
            f"{b} {a} {c}",
            f"{a} {b}",
            "sorry i cannot help with that",
            "it is red",
            "{} red",
            "",
        ]
        prompts += [row.prompt] * len(said)
        given += said
    return prompts, given


def test_the_protocol_is_what_it_was():
    facts = [
        sorted(PROTOCOLS["hs-v1"].asked.items()),
        UNSCORED,
        rules.COHERENT,
        rules.MOST,
        rules.COLLAPSE,
    ]
    for seed in (0, 1, 2):
        world = World(seed)
        facts.append(
            {
                f"{split} {name}": digest(rows)
                for split in ("validation", "test")
                for name, rows in world.benchmarks(split).items()
            }
        )
        facts.append(
            [[verdict.label, verdict.reason] for verdict in Lab(seed).judge(*answers(world))]
        )
    assert hashlib.sha256(json.dumps(facts).encode()).hexdigest() == FROZEN


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["max_new_tokens=8"],
            "protocol='hs-v1': max_new_tokens=8 where the protocol has 16; take it back, or set "
            "protocol=null",
        ),
        (
            ["template=plain", "system=be good"],
            "template='plain' where the protocol has 'chat'; system='be good' where the protocol "
            "has None",
        ),
        (["judge=refusal"], "judge=Refusal"),
        (
            ["judge={method: lab, world: 3}"],
            r"judge=Lab\(world=3\) where the protocol has Lab\(world=0\)",
        ),
        (["data.world=null", "data.task=null"], "it asks prompts of its own"),
        (["protocol=hs-v2"], "unknown protocol 'hs-v2': did you mean 'hs-v1'?"),
    ],
)
def test_a_recipe_that_departs_from_its_protocol_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        recipe.load("lab", settings)


def test_a_recipe_without_a_protocol_is_free():
    lab = recipe.load("lab")
    assert lab.protocol == "hs-v1"
    assert recipe.load("lab", ["max_new_tokens=8", "protocol=null"]).protocol is None
    assert replace(lab, judge=Lab(0), seed=3).protocol == "hs-v1"
    assert replace(lab, judge=Refusal(), protocol=None).judge == Refusal()


REPRODUCE = Path(__file__).parent.parent / "docs" / "reproduce"


@pytest.mark.parametrize("name", ["booster", "antidote"])
def test_a_recipe_of_a_published_table_is_asked_as_its_code_asks(name):
    found = recipe.load(str(REPRODUCE / f"{name}.yaml"), [f"protocol=legacy/{name}"])
    assert found.protocol == f"legacy/{name}"
    assert (found.template, found.max_new_tokens) == ("alpaca", 512)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("max_new_tokens=256", "max_new_tokens=256 where the protocol has 512"),
        ("template=chat", "template='chat' where the protocol has 'alpaca'"),
        ("data.harm_test.limit=500", "data.harm_test.limit=500 where the protocol has 1000"),
        ("data.harm_test.path=mine.jsonl", "data.harm_test.path='mine.jsonl' where"),
        ("judge.max_length=512", "judge.max_length=512 where the protocol has 256"),
        ("judge.too_long=unscored", "judge.too_long='unscored' where the protocol has 'cut'"),
        ("judge=refusal", "judge.method='refusal' where the protocol has 'classifier'"),
    ],
)
def test_a_recipe_that_departs_from_a_published_way_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        recipe.load(str(REPRODUCE / "booster.yaml"), ["protocol=legacy/booster", change])


def test_a_published_protocol_asks_no_world():
    with pytest.raises(ValueError, match="did you mean 'legacy/booster'"):
        recipe.load("lab", ["protocol=legacy/boster"])
    with pytest.raises(ValueError, match="data.world=0 where the protocol has published prompts"):
        recipe.load("lab", ["protocol=legacy/booster", "data.world=0"])
