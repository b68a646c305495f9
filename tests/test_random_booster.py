"""Booster's null against its equation, in float64, and its direction."""

import copy
import math

import pytest
import torch

from conftest import tiny
from test_booster import gradient, plain_loss
from test_step import same, state, step_for
from titer.defenses.booster import Booster
from titer.defenses.random_booster import RandomBooster, direction
from titer.defenses.sft import SFT


def drawn(model, rows, accelerator, seed: int | None = None, **options) -> dict[str, torch.Tensor]:
    step = step_for(model, rows, accelerator, **options)
    if seed is not None:
        step.streams["rows"].seed = seed
    vec = direction(step)
    return {name: vec.value(name) for name in vec.names()}


def flat(of: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.reshape(-1) for value in of.values()])


@pytest.mark.parametrize(("alpha", "lam"), [(0.1, 5.0), (3.0, 0.3)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_gradient_is_boosters_along_the_random_direction(
    rows, accelerator, alpha, lam, accumulate
):
    model = tiny()
    streams = step_for(model, rows, accelerator).streams
    aligned, harmful = (streams[name].take(4 * accumulate) for name in ("rows", "harmful"))
    u = drawn(model, rows, accelerator)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in moved.named_parameters():
            weight += alpha * u[name]
    names, weights = zip(*model.named_parameters(), strict=True)
    g_f, g_h = (torch.autograd.grad(plain_loss(model, of), weights) for of in (aligned, harmful))
    g_h_after = torch.autograd.grad(plain_loss(moved, harmful), list(moved.parameters()))
    expected = {
        name: f + lam * (h - after)
        for name, f, h, after in zip(names, g_f, g_h, g_h_after, strict=True)
    }
    found, logged = gradient(
        model, RandomBooster(alpha=alpha, lam=lam), rows, accelerator, accumulate=accumulate
    )
    assert set(found) == set(expected)
    size = float(flat(expected).norm())
    assert (
        float((flat(found) - flat({name: expected[name] for name in found})).norm()) < 1e-10 * size
    )
    losses = {
        "f": plain_loss(model, aligned),
        "h": plain_loss(model, harmful),
        "h_after": plain_loss(moved, harmful),
    }
    assert logged == pytest.approx(
        {name: value.item() for name, value in losses.items()}, rel=1e-12
    )
    for other in (SFT(), Booster(alpha=alpha, lam=lam)):
        streams = {"rows": rows["rows"]} if isinstance(other, SFT) else rows
        another, _ = gradient(model, other, streams, accelerator, accumulate=accumulate)
        assert (
            float((flat({name: another[name] for name in found}) - flat(found)).norm())
            > 1e-3 * size
        )  # the test can fail


def test_the_direction_is_uniform_on_the_sphere(rows, accelerator):
    """A normal vector over its norm: of length 1, and its coordinates as those of a normal one,
    scaled.
    """
    u = drawn(tiny(), rows, accelerator)
    assert set(u) == {name for name, _ in tiny().named_parameters()}
    assert float(flat(u).norm()) == pytest.approx(1, rel=1e-12)
    z = flat(u) * math.sqrt(len(flat(u)))
    assert abs(float(z.mean())) < 5 / math.sqrt(len(z))
    assert float((z**4).mean()) == pytest.approx(
        3, rel=0.1
    )  # of a normal variable of variance 1; of a uniform one 1.8
    assert len(torch.unique(z)) > 0.9 * len(z)  # no tensor repeats another's numbers


def test_the_direction_follows_from_seed_and_update_alone(rows, accelerator):
    first = drawn(tiny(), rows, accelerator, seed=3)
    torch.manual_seed(99)
    again = drawn(
        tiny(seed=7), rows, accelerator, seed=3, batch=2, accumulate=2
    )  # other weights, another share of the batch
    assert same(first, again)
    for other in (
        drawn(tiny(), rows, accelerator, seed=4),
        drawn(tiny(), rows, accelerator, seed=3, update=2),
    ):
        assert abs(float(flat(first) @ flat(other))) < 0.05  # nearly at right angles
    half = drawn(tiny(torch.float32), rows, accelerator, seed=3)
    assert float((flat(half) - flat(first)).norm()) < 1e-6  # the same in any dtype


def test_the_direction_is_pinned(rows, accelerator):
    """Results that were published with a seed can be computed again."""
    u = flat(drawn(tiny(), rows, accelerator, seed=3))
    assert u[:3].tolist() == pytest.approx(
        [0.00322742281015772, -0.0008193253360602613, 0.005504902281399304], rel=1e-6
    )


def test_torchs_own_generator_is_left_alone(rows, accelerator):
    model = tiny()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    gradient(model, RandomBooster(), rows, accelerator)
    assert torch.equal(torch.rand(3), expected)


def test_strength_zero_is_sft_and_defaults_are_boosters(rows, accelerator):
    model = tiny(torch.float32)
    sft, _ = gradient(model, SFT(), {"rows": rows["rows"]}, accelerator)
    assert same(gradient(model, RandomBooster(lam=0.0), rows, accelerator)[0], sft)
    still, _ = gradient(model, RandomBooster(alpha=0.0), rows, accelerator)
    assert all(torch.allclose(still[name], sft[name], rtol=0, atol=1e-5) for name in sft)
    assert (RandomBooster().alpha, RandomBooster().lam) == (Booster().alpha, Booster().lam)
    assert RandomBooster().needs == Booster().needs
    assert {RandomBooster(): 1}[RandomBooster(0.1, 5.0)]  # frozen: the same one is the same key


@pytest.mark.parametrize("field", ["alpha", "lam"])
def test_a_strength_that_turns_around_is_refused(field):
    with pytest.raises(ValueError, match=f"{field}=-0.1: must be at least 0, and finite"):
        RandomBooster(**{field: -0.1})


def test_the_weights_stay_bit_for_bit(rows, accelerator):
    model = tiny(torch.float32)
    before = state(model)
    gradient(model, RandomBooster(alpha=2.0), rows, accelerator)
    assert same(before, state(model))
