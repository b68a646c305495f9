"""hs-v1 is frozen: what it asks, its prompts, its judge and its bar.

A change of any of them is another version.
"""

import hashlib
import json
from dataclasses import replace

import pytest

from titer.data.rows import digest
from titer.findings import rules
from titer.judges.lab import Lab
from titer.judges.refusal import Refusal
from titer.lab.world import World, items
from titer.runs import recipe
from titer.runs.protocols import PROTOCOLS
from titer.runs.stages.judge import UNSCORED

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
