"""SPPFT against a plain computation: which layers part the prompts, which weights stay, and at its limits."""

import math
from dataclasses import replace
from itertools import accumulate, combinations, product
from types import SimpleNamespace

import pytest
import torch

from conftest import tiny
from test_booster import plain_loss
from test_ldifs import features
from test_repnoise import _norms_in_float64  # noqa: F401
from test_step import state, step_for
from titer import registry
from titer.data.batches import Stream
from titer.defenses.sft import SFT
from titer.defenses.sppft import SPPFT, SafetyLayers, gaps, widest
from titer.methods import Answers, Harmful, Needs, Refusals
from titer.testing.small import flags
from titer.training.settings import Training
from titer.training.train import train
from titer.weights.adapters import add_lora
from trained import LORA, adapted, check_resumes

DEPTH = 4
SETTINGS = Training(updates=6, lr=1e-3, batch=2, lora=None)


def prompts_of(rows):
    """An epoch's prompts in the order of the stream, each one once."""
    found = []
    for row in rows:
        prompt = row.ids[: row.answer]
        if prompt not in found:
            found.append(prompt)
    return found


def divided(rows):
    """The ordinary and the harmful prompts, each in the order of its stream."""
    drawn = {name: Stream(name, rows[name], 3) for name in ("alignment", "harmful")}
    every = {name: prompts_of(of.take(len(of.rows))) for name, of in drawn.items()}
    ordinary = [prompt for prompt in every["alignment"] if prompt not in every["harmful"]]
    return ordinary, every["harmful"]


def plain_gaps(model, ordinary, harmful):
    """Pair by pair, in degrees, before every layer and after the last one."""

    def states(prompt):
        with torch.no_grad():
            embedded = model.model.embed_tokens(torch.tensor(prompt))
            return [h[-1] for h in (embedded, *features(model, SimpleNamespace(ids=prompt)))]

    def angle(pairs, at):
        cosines = [
            (a[at] @ b[at] / ((a[at] @ a[at]) * (b[at] @ b[at])).sqrt()).item() for a, b in pairs
        ]
        return math.degrees(math.acos(min(1.0, sum(cosines) / len(cosines))))

    n, m = ([states(prompt) for prompt in of] for of in (ordinary, harmful))
    return [
        angle(list(product(n, m)), at) - angle(list(combinations(n, 2)), at)
        for at in range(DEPTH + 1)
    ]


@pytest.fixture
def shared(rows):
    """Rows whose defender has a harmful answer to half of what it refuses."""
    ordinary = [row for row in rows["alignment"] if row not in rows["harmful"]]
    return rows | {"alignment": ordinary + rows["harmful"][:4] * 2}


@pytest.mark.parametrize("count", [100, 6])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gap_is_that_of_all_pairs(shared, accelerator, count, seed):
    model = tiny(layers=DEPTH, seed=seed)
    step = step_for(model, shared, accelerator, batch=3)
    ordinary, harmful = divided(shared)
    assert len({len(prompt) for prompt in (*ordinary, *harmful)}) > 1  # so that there are pads
    wanted = plain_gaps(model, ordinary[:count], harmful[:count])
    found = SPPFT(prompts=count).prepare(step)
    assert found.gaps == pytest.approx(wanted[1:], rel=1e-9, abs=1e-7)
    assert (found.first, found.last) == widest(wanted, 0.25)
    assert max(map(abs, found.gaps)) > 0.5
    assert step.streams["rows"].position == 0


def test_the_gap_is_read_in_the_dtype_of_the_updates_own_passes(shared, accelerator):
    def read(autocast):
        model = tiny(torch.float32, layers=DEPTH, seed=0)
        step = step_for(model, shared, accelerator, batch=3)
        step.autocast = autocast
        return SPPFT().prepare(step).gaps

    exact, coarse = read(None), read(torch.bfloat16)
    assert coarse == pytest.approx(exact, abs=5.0)
    assert max(abs(a - b) for a, b in zip(coarse, exact, strict=True)) > 1e-4


def test_rounding_makes_no_angle_of_no_cosine():
    """The states of one token before the first layer, say, or opposite ones."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        x = torch.randn(1, 1, 33, generator=generator, dtype=torch.float64)
        same, apart = x.expand(7, 1, 33), torch.cat([x, -x])
        assert gaps(same, x.expand(5, 1, 33)).abs().max() < 1e-5
        assert gaps(same, -x.expand(5, 1, 33)).item() == pytest.approx(180.0, abs=1e-5)
        assert gaps(apart, apart).item() == pytest.approx(-90.0, abs=1e-5)


def test_repeated_and_harmful_prompts_are_no_ordinary_ones(shared):
    ordinary, harmful = divided(shared)
    assert not set(ordinary) & set(harmful)
    assert len(ordinary) < len(shared["alignment"]) - 8 + 1


@pytest.mark.parametrize(
    ("rises", "flat", "layers"),
    [
        ([0.0, 0.125, 1.0, 2.0, 1.0, 0.5, 0.0], 0.25, (2, 5)),
        ([0.0, 0.125, 1.0, 2.0, 1.0, 0.5, 0.0], 0.3, (2, 4)),
        ([0.0, 0.125, 1.0, 2.0, 1.0, 0.5, 0.0], 0.5, (2, 4)),
        ([0.0, 0.125, 1.0, 2.0, 1.0, 0.5, 0.0], 1.0, (3, 3)),
        ([1.0, -1.0, 4.0, 3.0, -0.125, 3.0], 0.25, (2, 3)),  # the later rise is another one
        ([3.0, 1.0], 0.3, (0, 1)),
        ([-1.0, 5.0], 0.3, (1, 1)),
        ([2.0, 2.0, 0.125, 2.0], 0.9, (0, 1)),  # of equal ones the first
        ([0.25, 0.375, 0.125, 0.375], 0.5, (0, 1)),
    ],
)
def test_the_layers_are_those_in_a_row_around_the_largest_rise(rises, flat, layers):
    assert widest([0.0, *accumulate(rises)], flat) == layers


def test_where_nothing_parts_the_prompts_it_is_refused(rows, accelerator):
    for gap in ([0.0, 0.0, 0.0], [1.0, 0.5, 0.5], [0.0, -2.0, -0.5], [0.0, -0.5, 0.0]):
        with pytest.raises(ValueError, match="no layer parts harmful prompts from ordinary ones"):
            widest(gap, 0.25)
    assert widest([0.0, -0.25, 0.25, 0.25], 0.25) == (1, 1)
    ordinary, _ = divided(rows)
    for count in (1, 2):
        few = [row for row in rows["alignment"] if row.ids[: row.answer] in ordinary[:count]]
        step = step_for(
            tiny(layers=DEPTH), rows | {"alignment": rows["harmful"] + few}, accelerator
        )
        if count == 2:  # one pair
            assert len(SPPFT().prepare(step).gaps) == DEPTH
            continue
        with pytest.raises(ValueError, match="1 of the alignment rows' prompts are ordinary ones"):
            SPPFT().prepare(step)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_gradient_is_that_of_sft_without_the_layers(rows, accelerator, lora, accumulate):
    bare = tiny(layers=DEPTH)
    model = add_lora(bare, LORA).double() if lora else bare
    step = step_for(model, rows, accelerator, accumulate=accumulate)
    with torch.no_grad():
        for name, weight in step.parameters.items():
            if "lora_B" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, dtype=weight.dtype))
    taken = step_for(model, rows, accelerator).streams["rows"].take(4 * accumulate)
    names, weights = zip(*step.parameters.items(), strict=True)
    f = plain_loss(bare, taken)
    wanted = dict(zip(names, torch.autograd.grad(f, weights), strict=True))
    method = SPPFT(layers=(1, -2))
    vec = method.gradient(step, method.prepare(step))
    kept = [name for name in names if "layers.1." not in name and "layers.2." not in name]
    assert vec.names() == kept
    assert any("layers.3." in name for name in kept)
    for name in kept:
        torch.testing.assert_close(vec.value(name), wanted[name], rtol=1e-10, atol=1e-13)
    assert step.logged == {"f": pytest.approx(f.item(), rel=1e-12), "first": 1, "last": 2}


def test_no_gradient_of_a_frozen_weight_is_computed_and_flags_come_back(rows, accelerator):
    model = tiny(layers=DEPTH)
    before, seen = flags(model), []
    step = step_for(model, rows, accelerator)
    for name, weight in step.parameters.items():
        weight.register_hook(lambda grad, name=name: seen.append(name))
    method = SPPFT(layers=(0, 1))
    method.gradient(step, method.prepare(step))
    assert seen
    assert not [name for name in seen if "layers.0." in name or "layers.1." in name]
    assert flags(model) == before


def test_frozen_layers_stay_bit_for_bit_and_the_rest_moves(shared):
    model = tiny(torch.float32, layers=DEPTH)
    before = state(model)
    history = train(model, SPPFT(), shared, replace(SETTINGS, weight_decay=0.3), seed=0)
    after = state(model)
    first, last = int(history[0]["first"]), int(history[0]["last"])
    assert all((terms["first"], terms["last"]) == (first, last) for terms in history)
    assert history[0]["gap"] == history[-1]["gap"]
    frozen = tuple(f"model.layers.{i}." for i in range(first, last + 1))
    for name in before:
        assert torch.equal(before[name], after[name]) == name.startswith(frozen)


def test_random_layers_are_as_many_elsewhere_by_the_seed_alone(shared, accelerator):
    found, null = (
        SPPFT(random=drawn).prepare(step_for(tiny(layers=DEPTH), shared, accelerator))
        for drawn in (False, True)
    )
    assert null.last - null.first == found.last - found.first
    assert null.gaps == found.gaps
    seen = set()
    for seed in range(40):
        step = step_for(tiny(layers=DEPTH + 1), shared, accelerator)
        step.streams["rows"].seed = seed
        drawn = [SPPFT(layers=(1, 2), random=True).prepare(step) for _ in range(2)]
        assert drawn[0] == drawn[1]
        seen.add((drawn[0].first, drawn[0].last))
    assert seen == {(3, 4)}  # all others share a layer
    step = step_for(tiny(layers=DEPTH), shared, accelerator)
    assert SPPFT(layers=(1, 3), random=True).prepare(step) == SafetyLayers(0, 2)
    with pytest.raises(ValueError, match="of 4 decoder layers no other 4 lie in a row"):
        SPPFT(layers=(0, 3), random=True).prepare(step)


def test_a_resumed_run_freezes_the_same_layers(shared, tmp_path):
    def fresh():
        return adapted(layers=DEPTH)

    check_resumes(fresh, SPPFT(flat=0.9), shared, SETTINGS, tmp_path)


def test_what_makes_no_sense_is_refused(rows, accelerator):
    for fields, said in (
        ({"prompts": 1}, "prompts=1: two ordinary prompts are a pair"),
        ({"flat": 0.0}, "flat=0.0: a share above 0 and at most 1"),
        ({"flat": 1.1}, "flat=1.1"),
        ({"flat": float("nan")}, "flat=nan"),
    ):
        with pytest.raises(ValueError, match=said):
            SPPFT(**fields)
    step = step_for(tiny(layers=DEPTH), rows, accelerator)
    for layers in ((0, 4), (-5, 1), (2, 1), (4, 4), (-1, 0)):
        with pytest.raises(ValueError, match="of the model's 4 decoder layers, 0 to 3"):
            SPPFT(layers=layers).prepare(step)
    whole = ((-4, -1), (0, 3), (3, 3), (0, 0))
    assert [SPPFT(layers=layers).prepare(step) for layers in whole] == [
        SafetyLayers(0, 3, []),
        SafetyLayers(0, 3, []),
        SafetyLayers(3, 3, []),
        SafetyLayers(0, 0, []),
    ]
    lowest = {"method": "sppft", "layers": [0, 0], "prompts": 2, "flat": 1, "random": True}
    assert registry.build("defenses", lowest) == SPPFT((0, 0), 2, 1.0, True)
    assert {SPPFT(), SPPFT(None, 100, 0.25, False)} == {SPPFT()}
    assert SPPFT().partial
    assert SPPFT(layers=(1, 2)).needs == Needs(streams={"rows": Answers})
    assert SPPFT().needs == Needs(
        streams={"rows": Answers, "alignment": Refusals, "harmful": Harmful}
    )


def test_an_adapter_that_lies_on_the_frozen_layers_alone_is_refused(rows, accelerator):
    model = add_lora(tiny(layers=DEPTH), LORA)
    step = step_for(model, rows, accelerator)
    with pytest.raises(ValueError, match=r"layers \[0, 1, 2, 3\] hold all of the trained weights"):
        SPPFT(layers=(0, 3)).gradient(step, SafetyLayers(0, 3))
    for name, weight in model.named_parameters():
        weight.requires_grad_(weight.requires_grad and "layers.2." in name)
    step = step_for(model, rows, accelerator)
    with pytest.raises(ValueError, match=r"layers \[0, 1\] hold none of the trained weights"):
        SPPFT(layers=(0, 1)).gradient(step, SafetyLayers(0, 1))
    vec = SPPFT(layers=(3, 3))
    with pytest.raises(ValueError, match=r"layers \[2\] hold all of the trained weights"):
        vec.gradient(step, SafetyLayers(2, 2))
    assert SFT().gradient(step, None).names() == list(step.parameters)
