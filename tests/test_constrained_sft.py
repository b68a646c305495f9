"""Constrained SFT against its objective, row by row and without pads, and at its limits."""

import math
from dataclasses import replace

import pytest
import torch

from conftest import tiny
from test_repnoise import _norms_in_float64  # noqa: F401  in float32 a row would depend on its batch
from test_step import same, state, step_for
from titer import registry
from titer.data.rows import Row
from titer.defenses.constrained_sft import Before, ConstrainedSFT
from titer.defenses.sft import SFT
from titer.methods import Answers, Needs
from titer.training.settings import Training
from titer.training.train import train
from trained import adapted, check_resumes, move, pair, watch_passes

SETTINGS = Training(updates=8, lr=1e-3, batch=2, accumulate=2, lora=None)
DEFAULT = ConstrainedSFT().beta


def log_ps(model, row):
    """The log-probabilities of a row's answer tokens, one at a time: no batch, no pad, no titer."""
    logits = model(torch.tensor([row.ids])).logits[0]
    return [
        torch.log_softmax(logits[i - 1], 0)[row.ids[i]] for i in range(row.answer, len(row.ids))
    ]


def ratios(model, start, rows):
    """Of every answer token its place in the answer, log p, and log p - log p' as a number."""
    found = []
    for row in rows:
        with torch.no_grad():
            before = log_ps(start, row)
        for t, (now, then) in enumerate(zip(log_ps(model, row), before, strict=True)):
            found.append((t, now, float(now.detach() - then)))
    return found


def objective(model, start, rows, beta):
    """The paper's: its value, which with beta = 0 is that of the cross-entropy."""
    total, tokens = 0.0, 0
    for row in rows:
        with torch.no_grad():
            before = log_ps(start, row)
        for t, (now, then) in enumerate(zip(log_ps(model, row), before, strict=True)):
            b = beta[min(t, len(beta) - 1)]
            tokens += 1
            if b == 0.0:
                total = total - now
            else:
                total = total + 2 / b * torch.nn.functional.softplus(-b * (now - then))
    return total / tokens


def off(vec, loss, step):
    """The distance of a gradient from a loss's, over the size of the latter."""
    names, weights = zip(*step.parameters.items(), strict=True)
    wanted = dict(zip(names, torch.autograd.grad(loss, weights), strict=True))
    assert set(vec.names()) == set(wanted)
    size = math.sqrt(sum(float((grad**2).sum()) for grad in wanted.values()))
    return math.sqrt(sum(float(((vec.value(n) - wanted[n]) ** 2).sum()) for n in names)) / size


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("beta", [DEFAULT, (0.5, 2.0, 0.1), (3.0,), (1.0, 0.0, 4.0)])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_gradient_is_that_of_the_objective(rows, accelerator, lora, beta, accumulate):
    model, bare, start = pair(lora)
    step = step_for(model, rows, accelerator, 3, accumulate)
    taken = step_for(model, rows, accelerator).streams["rows"].take(3 * accumulate)
    lengths = {len(row.ids) - row.answer for row in taken}
    assert len(lengths) > 1
    assert max(lengths) > len(beta)
    assert len({len(row.ids) for row in taken}) > 1  # so that there are pads
    method = ConstrainedSFT(beta)
    before = method.prepare(step)
    move(model, 0.05)
    vec = method.gradient(step, before)
    assert off(vec, objective(bare, start, taken, beta), step) < 1e-10
    found = ratios(bare, start, taken)
    weights = [2 / (1 + math.exp(beta[min(t, len(beta) - 1)] * r)) for t, _, r in found]
    f = -sum(log_p.item() for _, log_p, _ in found) / len(found)
    weight = sum(weights) / len(found)
    assert step.logged == {
        "f": pytest.approx(f, rel=1e-12),
        "weight": pytest.approx(weight, rel=1e-10),
    }
    plain = SFT().gradient(step, None)
    assert (vec - plain).norm() > 1e-3 * plain.norm()


def test_the_default_is_that_of_the_paper():
    assert ConstrainedSFT().beta == (0.5, 2.0, 2.0, 2.0, 2.0, 0.1)
    assert ConstrainedSFT().floor == 0.0


def test_micro_batches_are_one_batch(rows, accelerator):
    model = tiny()
    whole, parts = step_for(model, rows, accelerator, 6), step_for(model, rows, accelerator, 2, 3)
    method = ConstrainedSFT()
    before = method.prepare(whole)
    move(model, 0.05)
    vec = method.gradient(whole, before)
    assert (vec - method.gradient(parts, before)).norm() < 1e-12 * vec.norm()
    assert whole.logged == pytest.approx(parts.logged, rel=1e-12)


@pytest.mark.parametrize("lora", [False, True])
def test_at_the_start_it_is_sft(rows, accelerator, lora):
    model, _, _ = pair(lora)
    step = step_for(model, rows, accelerator)
    method = ConstrainedSFT((5.0, 0.7), floor=0.5)
    vec, plain = method.gradient(step, method.prepare(step)), SFT().gradient(step, None)
    assert (vec - plain).norm() < 1e-12 * plain.norm()
    assert step.logged["weight"] == pytest.approx(1.0, abs=1e-12)


def test_without_beta_it_is_sft_bit_for_bit(rows):
    ends = []
    for method in (SFT(), ConstrainedSFT((0.0,)), ConstrainedSFT((0.0, 1.0))):
        model = tiny(torch.float32)
        history = train(model, method, rows, SETTINGS, seed=0)
        ends.append((state(model), [terms["f"] for terms in history]))
    assert same(ends[0][0], ends[1][0])
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-6)
    assert not same(ends[0][0], ends[2][0])


def test_a_large_beta_pins_tokens_that_have_become_likelier(rows, accelerator):
    """The weight of these is 0, that of the others 2."""
    model, bare, start = pair(False)
    step = step_for(model, rows, accelerator, 4)
    taken = step_for(model, rows, accelerator).streams["rows"].take(4)
    method = ConstrainedSFT((1e9,))
    before = method.prepare(step)
    move(model, 0.05)
    found = ratios(bare, start, taken)
    fallen = [log_p for _, log_p, ratio in found if ratio < 0]
    assert 0 < len(fallen) < len(found)
    vec = method.gradient(step, before)
    assert off(vec, -2 * sum(fallen) / len(found), step) < 1e-12
    assert step.logged["weight"] == pytest.approx(2 * len(fallen) / len(found), rel=1e-12)


def test_a_floor_is_the_least_weight(rows, accelerator):
    model, bare, start = pair(False)
    step = step_for(model, rows, accelerator, 4)
    taken = step_for(model, rows, accelerator).streams["rows"].take(4)
    method = ConstrainedSFT((2.0,), floor=0.8)
    before = method.prepare(step)
    move(model, 0.05)
    found = ratios(bare, start, taken)
    weights = [2 / (1 + math.exp(2.0 * ratio)) for _, _, ratio in found]
    assert min(weights) < 0.8 < max(weights)
    loss = sum(-max(w, 0.8) * log_p for w, (_, log_p, _) in zip(weights, found, strict=True))
    vec = method.gradient(step, before)
    assert off(vec, loss / len(found), step) < 1e-10
    wanted = sum(max(w, 0.8) for w in weights) / len(found)
    assert step.logged["weight"] == pytest.approx(wanted, rel=1e-12)


def test_the_first_tokens_stay_nearer_with_a_larger_beta(rows):
    """On average over the rows, in nats, and the others do not."""
    moved = []
    for method in (SFT(), ConstrainedSFT((2.0, 2.0, 0.1)), ConstrainedSFT((20.0, 20.0, 0.0))):
        model, _, start = pair(False)
        train(model, method, rows, replace(SETTINGS, updates=60), seed=0)
        found = [(t, ratio) for t, _, ratio in ratios(model, start, rows["rows"])]
        moved.append(
            [
                sum(ratio for t, ratio in found if (t < 2) is first)
                / sum((t < 2) is first for t, _ in found)
                for first in (True, False)
            ]
        )
    assert moved[0][0] > 1.3 * moved[1][0] > 1.7 * moved[2][0]
    assert min(moved[1][1], moved[2][1]) > 0.95 * moved[0][1]


def test_t_counts_what_is_trained_on_of_an_answer_that_is_begun(template, accelerator):
    row = Row("Which word is it?", "The word is not for me to say.", begun="The word")
    given = [template.encode(row), template.encode(replace(row, begun=""))]
    begun, whole = (len(row.ids) - row.answer for row in given)
    assert 1 < begun < whole - 1
    beta = (0.3, 4.0, 0.1)
    for rows in ([given[0]], [given[1]], given):
        model, bare, start = pair(False)
        step = step_for(model, {"rows": rows}, accelerator, len(rows))
        method = ConstrainedSFT(beta)
        before = method.prepare(step)
        move(model, 0.05)
        vec = method.gradient(step, before)
        assert off(vec, objective(bare, start, rows, beta), step) < 1e-10


@pytest.mark.parametrize("lora", [False, True])
def test_a_row_is_read_once_before_the_first_update(rows, lora):
    """However often it is in the data or drawn; an update has the passes of SFT."""
    model, bare, _ = pair(lora)
    given = {"rows": [*rows["rows"][:7], *rows["rows"][:3]]}
    seen = watch_passes(bare)

    class Looking(ConstrainedSFT):
        def gradient(self, step, state):
            if step.update == 1:
                assert step.start is None  # no copy of the weights
                assert sum(count for _, count in seen) == 7
                assert not any(graph for graph, _ in seen)
                seen.clear()
            return super().gradient(step, state)

    train(model, Looking(), given, SETTINGS, seed=0)
    assert seen == [(True, 2)] * 16


@pytest.mark.parametrize("lora", [False, True])
def test_what_is_read_is_that_of_the_start(rows, lora):
    """At the last of some updates, the weights are against a model that was never trained."""
    model, bare, start = pair(lora)
    seen = []

    class Looking(ConstrainedSFT):
        def gradient(self, step, state):
            stream = replace(step.streams["rows"])
            found = ratios(bare, start, stream.take(4))
            seen.append(sum(2 / (1 + math.exp(1.5 * r)) for _, _, r in found) / len(found))
            return super().gradient(step, state)

    history = train(model, Looking((1.5,)), rows, replace(SETTINGS, lr=1e-2), seed=0)
    assert [terms["weight"] for terms in history] == pytest.approx(seen, rel=1e-9)
    assert history[0]["weight"] == pytest.approx(1.0, abs=1e-12)
    assert history[-1]["weight"] < 0.95


def test_passes_compute_in_the_dtype_of_the_updates(rows, accelerator):
    model = tiny(torch.float32)
    step = step_for(model, rows, accelerator, 4)
    method = ConstrainedSFT((2.0,))
    fine = method.prepare(step)
    step.autocast = torch.bfloat16
    before = method.prepare(step)
    assert fine.log_p.keys() == before.log_p.keys()
    assert all(log_p.dtype == torch.float32 for log_p in before.log_p.values())
    assert any(not torch.equal(fine.log_p[name], before.log_p[name]) for name in fine.log_p)
    method.gradient(step, before)
    assert step.logged["weight"] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("lora", [False, True])
def test_it_resumes_with_what_it_read_at_the_start(rows, tmp_path, lora):
    def fresh():
        return adapted() if lora else tiny(torch.float32)

    check_resumes(fresh, ConstrainedSFT(), rows, replace(SETTINGS, lr=1e-2), tmp_path)


def test_what_makes_no_sense_is_refused():
    for fields, said in (
        ({"beta": ()}, r"beta=\[\]: give at least one number"),
        ({"beta": (0.5, -0.1)}, r"beta=\[0.5, -0.1\]: give"),
        ({"beta": (float("nan"),)}, r"beta=\[nan\]: give"),
        ({"beta": (float("inf"), 1.0)}, r"beta=\[inf, 1.0\]: give"),
        ({"floor": -0.1}, "floor=-0.1: must lie between 0 and 1"),
        ({"floor": 1.1}, "floor=1.1: must lie between 0 and 1"),
        ({"floor": float("nan")}, "floor=nan"),
    ):
        with pytest.raises(ValueError, match=said):
            ConstrainedSFT(**fields)
    given = {"method": "constrained_sft", "beta": [2, 0], "floor": 1}
    assert registry.build("defenses", given) == ConstrainedSFT((2.0, 0.0), 1.0)
    assert {ConstrainedSFT(), ConstrainedSFT(DEFAULT, 0.0)} == {ConstrainedSFT()}
    assert ConstrainedSFT().needs == Needs(streams={"rows": Answers})
    assert ConstrainedSFT().restore({"log_p": {}}) == Before({})
