"""LDIFS against a plain computation, row by row and without pads, and at its limits."""

import math
from dataclasses import replace

import pytest
import torch

from conftest import tiny
from test_booster import plain_loss
from test_repnoise import _norms_in_float64  # noqa: F401  a gradient of both terms is a sum
from test_step import same, state, step_for
from titer import registry
from titer.data.batches import Stream
from titer.defenses.ldifs import LDIFS, unit
from titer.defenses.sft import SFT
from titer.methods import Answers, Needs
from titer.training.settings import Training
from titer.training.train import train
from titer.weights.adapters import add_lora
from trained import LORA, adapted, check_resumes, move

DEPTH = 3


def features(model, row):
    """The residual streams of a row after every layer: (T, D) each."""
    seen = []
    handles = [
        layer.register_forward_hook(lambda _, __, out: seen.append(out[0]))
        for layer in model.model.layers
    ]
    model(torch.tensor([row.ids]))
    for handle in handles:
        handle.remove()
    return seen


def plain_distance(model, reference, rows, layers, axis):
    total = 0.0
    for row in rows:
        with torch.no_grad():
            then = features(reference, row)
        now = features(model, row)
        for i in layers:
            if axis == "channels":
                for a, b in zip(now[i], then[i], strict=True):
                    cos = (a * b).sum() / ((a**2).sum() * (b**2).sum()).sqrt()
                    total = total + (1 - cos) / len(layers)
            else:
                for a, b in zip(now[i].T, then[i].T, strict=True):  # a channel over the tokens
                    apart = a / (a**2).sum().sqrt() - b / (b**2).sum().sqrt()
                    total = total + (apart**2).sum() / len(now[i].T) / len(layers)
    return total / sum(len(row.ids) for row in rows)


def pair(lora, by=0.05):
    """A model that has moved from the start, what is trained of it, and that start."""
    bare, start = tiny(layers=DEPTH), tiny(layers=DEPTH)
    model = add_lora(bare, LORA).double() if lora else bare
    return model, bare, start, by


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(
    ("method", "layers"),
    [
        (LDIFS(0.7), (0, 1, 2)),
        (LDIFS(5.0, (1,)), (1,)),
        (LDIFS(2.0, (0, -1)), (0, 2)),
        (LDIFS(30.0, axis="tokens"), (0, 1, 2)),
        (LDIFS(90.0, (2,), "tokens"), (2,)),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_gradient_is_that_of_the_objective(rows, accelerator, lora, method, layers, accumulate):
    model, bare, start, by = pair(lora)
    step = step_for(model, rows, accelerator, batch=3, accumulate=accumulate)
    taken = step_for(model, rows, accelerator).streams["rows"].take(3 * accumulate)
    assert len({len(row.ids) for row in taken}) > 1  # so that there are pads
    move(model, by)
    method.prepare(step)
    vec = method.gradient(step, None)
    f = plain_loss(bare, taken)
    d = plain_distance(bare, start, taken, layers, method.axis)
    names, weights = zip(*step.parameters.items(), strict=True)
    wanted = dict(zip(names, torch.autograd.grad(f + method.lam * d, weights), strict=True))
    size = math.sqrt(sum(float((grad**2).sum()) for grad in wanted.values()))
    assert set(vec.names()) == set(wanted)
    off = [float(((vec.value(name) - wanted[name]) ** 2).sum()) for name in names]
    assert math.sqrt(sum(off)) < 1e-10 * size
    assert step.logged["f"] == pytest.approx(f.item(), rel=1e-12)
    assert step.logged["d"] == pytest.approx(d.item(), rel=1e-10)
    assert d.item() > 1e-4
    only = SFT().gradient(step, None)
    assert (vec - only).norm() > 1e-3 * only.norm()


@pytest.mark.parametrize("axis", ["channels", "tokens"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("lora", [False, True])
def test_at_the_start_it_is_nothing(rows, accelerator, axis, autocast, lora):
    model = tiny(torch.float32, layers=DEPTH)
    step = step_for(add_lora(model, LORA) if lora else model, rows, accelerator)
    step.autocast = autocast
    vec, plain = LDIFS(50.0, axis=axis).gradient(step, None), SFT().gradient(step, None)
    assert step.logged["d"] == 0.0
    assert vec.names() == plain.names()
    assert all(torch.equal(vec.value(name), plain.value(name)) for name in plain.names())


def test_a_pass_of_the_trained_weights_takes_no_casts_of_the_reference(rows, accelerator):
    """Autocast keeps casts of weights for as long as it lasts, and one of theirs has no graph."""
    model, _, _, _ = pair(lora=False)
    model = model.float()
    step = step_for(model, rows, accelerator)
    move(model, 0.1)
    found = []
    for dtype in (None, torch.bfloat16):
        step.autocast = dtype
        vec = LDIFS(20.0).gradient(step, None)
        assert set(vec.names()) == set(step.parameters)
        found.append((vec, step.logged["d"], step.logged["f"]))
    assert found[1][1] == pytest.approx(found[0][1], rel=0.05)
    assert found[1][2] == pytest.approx(found[0][2], rel=0.05)
    assert found[0][0].cosine(found[1][0]) > 0.99
    assert torch.is_autocast_cache_enabled()
    with pytest.raises(KeyError), step.reference():
        raise KeyError
    assert torch.is_autocast_cache_enabled()


def test_without_weight_it_is_sft_bit_for_bit_and_with_more_the_features_stay_nearer(rows):
    ends, distances = [], []
    settings = Training(updates=8, lr=1e-3, batch=2, accumulate=2, lora=None)
    for method in (SFT(), LDIFS(0.0), LDIFS(0.5), LDIFS(50.0)):
        model = tiny(torch.float32, layers=DEPTH)
        history = train(model, method, rows, settings, seed=0)
        ends.append((state(model), history))
        with torch.no_grad():
            start = tiny(torch.float32, layers=DEPTH)
            apart = plain_distance(model, start, rows["rows"], (0, 1, 2), "channels")
            distances.append(float(apart))
    assert same(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]
    assert not same(ends[0][0], ends[2][0])
    assert distances[1] > 1.05 * distances[2] > 1.2 * distances[3]


@pytest.mark.parametrize("lora", [False, True])
def test_the_reference_is_the_model_without_the_adapter_or_before_training(rows, lora):
    """At the last of some updates, the distance is that to a model which was never trained."""
    model, bare, start, _ = pair(lora)
    seen = []

    class Looking(LDIFS):
        def gradient(self, step, state):
            taken = Stream("rows", rows["rows"], 0, step.streams["rows"].position).take(2)
            if lora:
                with step.model.disable_adapter():
                    same_start = plain_distance(bare, start, taken, (0, 1, 2), "channels")
                assert same_start < 1e-15
            seen.append(plain_distance(bare, start, taken, (0, 1, 2), "channels").item())
            return super().gradient(step, state)

    settings = Training(updates=4, lr=1e-2, batch=2, lora=None)
    history = train(model, Looking(1.0), rows, settings, seed=0)
    assert [terms["d"] for terms in history[1:]] == pytest.approx(seen[1:], rel=1e-6)
    assert history[0]["d"] == 0.0
    assert history[3]["d"] > 1e-5


def test_a_resumed_run_has_the_reference_of_the_start(rows, tmp_path):
    """The model is at the start again when a checkpoint is read."""
    settings = Training(updates=7, lr=1e-2, batch=2, lora=None)
    check_resumes(adapted, LDIFS(), rows, settings, tmp_path)


def test_half_the_squared_distance_of_unit_vectors_is_one_less_cosine():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn((2, 50, 7), generator=generator, dtype=torch.float64)
    cos = torch.nn.functional.cosine_similarity(a, b, 1)
    torch.testing.assert_close((unit(a, 1) - unit(b, 1)).square().sum(1) / 2, 1 - cos)
    assert unit(a.bfloat16(), 1).dtype == torch.float32
    assert unit(torch.zeros(2, 3), 1).abs().max() == 0  # no token has such features


def test_what_makes_no_sense_is_refused(rows, accelerator):
    for fields, said in (
        ({"lam": -0.1}, "lam=-0.1"),
        ({"lam": float("nan")}, "lam=nan"),
        ({"lam": float("inf")}, "lam=inf"),
    ):
        with pytest.raises(ValueError, match=said):
            LDIFS(**fields)
    step = step_for(tiny(layers=DEPTH), rows, accelerator)
    for layers in ((3,), (-4,)):
        with pytest.raises(ValueError, match=r"the model has 3 decoder layers, 0 to 2"):
            LDIFS(layers=layers).prepare(step)
    for layers in ((2, -1), (1, 1)):
        with pytest.raises(ValueError, match="of 3 decoder layers, two of these are one"):
            LDIFS(layers=layers).prepare(step)
    assert LDIFS(layers=(0, 1, 2)).prepare(step) is LDIFS(layers=(-3, 2)).prepare(step) is None
    lowest = {"method": "ldifs", "lam": 0, "layers": [0], "axis": "tokens"}
    assert registry.build("defenses", lowest) == LDIFS(0.0, (0,), "tokens")
    assert {LDIFS(), LDIFS(1.0, (), "channels")} == {LDIFS()}
    assert LDIFS().needs == Needs(streams={"rows": Answers}, references=("start",))
    assert replace(LDIFS(), lam=0.0).partial is False
