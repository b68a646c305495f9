"""EWC against a plain computation, row by row, and at its limits."""

import math
from dataclasses import replace

import pytest
import torch

from conftest import tiny
from test_booster import plain_loss
from test_repnoise import _norms_in_float64  # noqa: F401  in float32 sums of gradients would be rounded
from test_step import same, state, step_for
from titer import registry
from titer.data.batches import Stream
from titer.defenses.ewc import EWC, Importance
from titer.defenses.lisa import Lisa
from titer.defenses.sft import SFT
from titer.methods import Answers, Needs, Refusals
from titer.phase import Phase
from titer.training.settings import Training
from titer.training.train import train
from titer.weights.adapters import add_lora
from trained import LORA, adapted, check_resumes, move

SETTINGS = Training(updates=8, lr=1e-3, batch=2, lora=None)


def plain_fisher(bare, parameters, rows):
    """Square the gradient of every row's log-likelihood; bring the sum to a mean of 1."""
    total = {name: torch.zeros_like(weight) for name, weight in parameters.items()}
    for row in rows:
        tokens = len(row.ids) - row.answer
        log_p = -tokens * plain_loss(bare, [row])
        grads = torch.autograd.grad(log_p, list(parameters.values()), allow_unused=True)
        for name, grad in zip(parameters, grads, strict=True):
            total[name] += grad**2
    entries = torch.cat([of.flatten() for of in total.values()])
    return {name: of / entries.mean() for name, of in total.items()}


def made(lora, fresh=False):
    """A model, and what computes in it without an adapter's wrapping."""
    bare = tiny()
    model = add_lora(bare, LORA).double() if lora else bare
    if lora and not fresh:
        move(model, 0.1)
    return model, bare


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(("lam", "samples"), [(0.7, 5), (30.0, 1)])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_gradient_is_that_of_the_objective(rows, accelerator, lora, lam, samples, accumulate):
    model, bare = made(lora)
    step = step_for(model, rows, accelerator, batch=2, accumulate=accumulate)
    method, others = EWC(lam, samples), step_for(model, rows, accelerator).streams
    held = others["alignment"].take(samples)
    assert len({len(row.ids) - row.answer for row in held}) > 1 or samples == 1
    fisher = plain_fisher(bare, step.parameters, held)
    prepared = method.prepare(step)
    for name, wanted in fisher.items():
        torch.testing.assert_close(prepared.f[name], wanted, rtol=1e-10, atol=1e-12)
    start = state(model)
    move(model, 0.05, seed=2)
    vec = method.gradient(step, prepared)
    f = plain_loss(bare, others["rows"].take(2 * accumulate))
    term = sum((fisher[n] * (w - start[n]) ** 2).sum() for n, w in step.parameters.items())
    names, weights = zip(*step.parameters.items(), strict=True)
    wanted = dict(zip(names, torch.autograd.grad(f + lam / 2 * term, weights), strict=True))
    size = math.sqrt(sum(float((grad**2).sum()) for grad in wanted.values()))
    assert set(vec.names()) == set(wanted)
    off = [float(((vec.value(name) - wanted[name]) ** 2).sum()) for name in names]
    assert math.sqrt(sum(off)) < 1e-10 * size
    assert step.logged == {
        "f": pytest.approx(f.item(), rel=1e-12),
        "drift": pytest.approx(term.item() ** 0.5, rel=1e-10),
    }
    assert {name: stream.position for name, stream in step.streams.items()} == {
        "rows": 2 * accumulate,
        "alignment": samples,
        "harmful": 0,
        "held_out": 0,
    }


def test_the_importance_has_a_mean_of_one_whatever_the_rows_and_no_row_counts_twice(
    rows, accelerator
):
    step = step_for(tiny(), rows, accelerator)
    few = EWC(samples=3).prepare(step)
    step = step_for(tiny(), rows, accelerator)
    count = len(rows["alignment"])
    assert count < 128
    every = EWC().prepare(step)
    assert step.streams["alignment"].position == count
    for found in (few, every):
        entries = torch.cat([of.flatten() for of in found.f.values()])
        assert entries.mean().item() == pytest.approx(1.0, rel=1e-10)
        assert entries.min() >= 0.0
        assert entries.max() > 10.0
    assert not same(few.f, every.f)


def test_rows_are_squared_one_by_one(rows, accelerator):
    """A row and its gradient's opposite would cancel in a batch; here a row counts as itself."""
    model = tiny()
    [row] = Stream("alignment", rows["alignment"], 3).take(1)
    alone, twice = (
        EWC(samples=count)
        .prepare(step_for(model, rows | {"alignment": [row] * count}, accelerator, batch=4))
        .f
        for count in (1, 2)
    )
    for name, of in alone.items():
        torch.testing.assert_close(twice[name], of, rtol=1e-10, atol=1e-14)


def test_a_fresh_adapter_holds_b_alone(rows, accelerator):
    model, _ = made(lora=True, fresh=True)
    step = step_for(model, rows, accelerator)
    found = EWC(samples=4).prepare(step).f
    for name, of in found.items():
        assert (float(of.abs().max()) > 0.0) == ("lora_B" in name)


def test_without_weight_it_is_sft_bit_for_bit_and_with_more_it_stays_nearer(rows):
    ends, moved = [], []
    for method in (SFT(), EWC(0.0), EWC(1.0), EWC(100.0)):
        model = tiny(torch.float32)
        start = state(model)
        settings = replace(SETTINGS, updates=20, accumulate=2)
        history = train(model, method, rows, settings, seed=0)
        ends.append((state(model), history))
        moved.append(sum(float(((w - start[n]) ** 2).sum()) for n, w in state(model).items()))
    assert same(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]
    assert "drift" not in ends[1][1][-1]
    assert ends[2][1][0]["drift"] == 0.0
    assert not same(ends[0][0], ends[2][0])
    assert moved[1] > moved[2] > moved[3]


def test_with_the_same_importance_everywhere_it_is_the_distance_to_the_start(rows, accelerator):
    """That is Lisa without alignment rows or warm-up, its null."""
    model = tiny()
    step = step_for(model, rows, accelerator)
    step.phase = Phase("tune", 1)
    lisa = Lisa(k1=0, rho=0.7, warmup=0.0)
    origin = lisa.prepare(step)
    lisa.gradient(step, origin)
    even = Importance({name: torch.ones_like(weight) for name, weight in step.parameters.items()})
    move(model, 0.05)
    wanted, drift = lisa.gradient(step, origin), step.logged.pop("drift")
    vec = EWC(lam=0.7).gradient(step, even)
    assert (vec - wanted).norm() < 1e-13 * wanted.norm()
    assert step.logged["drift"] == pytest.approx(drift, rel=1e-12)
    assert (vec - SFT().gradient(step, None)).norm() > 0.01 * vec.norm()


def test_what_the_gradient_does_not_reach_stays(rows, accelerator):
    """An expert that no row is sent to, say: SFT does not touch it either."""
    step = step_for(tiny(), rows, accelerator)
    prepared = EWC(samples=2).prepare(step)
    full, part = step.grad, list(step.parameters)[1:]
    step.grad = lambda batch: full(batch).within(part)
    assert EWC().gradient(step, prepared).names() == part


def test_a_resumed_run_has_the_importance_and_the_weights_of_the_start(rows, tmp_path):
    check_resumes(adapted, EWC(samples=4), rows, SETTINGS, tmp_path)


def test_what_makes_no_sense_is_refused(rows, accelerator):
    for fields, said in (
        ({"lam": -0.1}, "lam=-0.1"),
        ({"lam": float("nan")}, "lam=nan"),
        ({"lam": float("inf")}, "lam=inf"),
        ({"samples": 0}, "samples=0: F is a mean over at least 1 row"),
    ):
        with pytest.raises(ValueError, match=said):
            EWC(**fields)
    lowest = {"method": "ewc", "lam": 0, "samples": 1}
    assert registry.build("defenses", lowest) == EWC(0.0, 1)
    assert {EWC(), EWC(1.0, 128)} == {EWC()}
    assert EWC().needs == Needs(
        streams={"rows": Answers, "alignment": Refusals}, references=("start",)
    )
    step = step_for(tiny(), rows, accelerator)
    grad = step.grad
    step.grad = lambda batch: 0.0 * grad(batch)
    with pytest.raises(ValueError, match=r"has a mean of 0\.0: no alignment row tells"):
        EWC().prepare(step)
