"""SafeGrad against a plain computation, row by row and without pads, and at its limits."""

import math
from dataclasses import replace

import pytest
import torch

from conftest import tiny
from test_booster import plain_loss
from test_ldifs import DEPTH
from test_repnoise import _norms_in_float64  # noqa: F401  a distance of logits is what is left of them
from test_step import same, state, step_for
from titer import registry
from titer.data.batches import Stream
from titer.defenses.kl import KL
from titer.defenses.safegrad import SafeGrad
from titer.defenses.sft import SFT
from titer.methods import Answers, Needs, Refusals
from titer.training.settings import Training
from titer.training.train import train
from titer.training.vector import Vec
from titer.weights.adapters import add_lora
from trained import LORA, adapted, check_resumes, pair

SETTINGS = Training(updates=8, lr=1e-3, batch=2, accumulate=2, lora=None)


def plain_distance(model, start, rows, temperature):
    """KL(p' || p) by its definition, averaged over answer tokens one at a time."""
    total, tokens = 0.0, 0
    for row in rows:
        with torch.no_grad():
            then = start(torch.tensor([row.ids])).logits[0]
        now = model(torch.tensor([row.ids])).logits[0]
        for at in range(row.answer, len(row.ids)):
            p = torch.softmax(then[at - 1] / temperature, 0)
            q = torch.softmax(now[at - 1] / temperature, 0)
            total = total + (p * (p / q).log()).sum()
            tokens += 1
    return total / tokens


def flat(loss, weights):
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, weights)])


def flat_vec(vec, names):
    return torch.cat([vec.value(name).flatten() for name in names])


def along_f(step, size):
    """Move the weights along the gradient of f: down it where the size is negative, as SFT does."""
    g = SFT().gradient(step, None)
    with torch.no_grad():
        for name, weight in step.parameters.items():
            weight.add_(size / g.norm() * g.value(name))


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(
    ("method", "size"),
    [
        (SafeGrad(), -0.1),
        (SafeGrad(0.4, 3.0), -0.1),
        (SafeGrad(2.0, 0.5), 0.1),
        (SafeGrad(0.0), -0.1),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_gradient_is_that_of_the_algorithm(rows, accelerator, lora, method, size, accumulate):
    model, bare, start = pair(lora)
    step = step_for(model, rows, accelerator, 3, accumulate)
    streams = step_for(model, rows, accelerator).streams
    users, aligned = (streams[name].take(3 * accumulate) for name in ("rows", "alignment"))
    assert len({len(row.ids) for row in aligned}) > 1  # so that there are pads
    along_f(step_for(model, rows, accelerator, 3, accumulate), size)
    names, weights = zip(*step.parameters.items(), strict=True)
    f, a = plain_loss(bare, users), plain_distance(bare, start, aligned, method.temperature)
    g_u, g_a = flat(f, weights), flat(a, weights)
    dot = float(g_u @ g_a)
    assert (dot < 0) == (size < 0)  # SFT's step goes against the alignment
    wanted = g_u + method.rho * g_a
    if dot < 0:
        wanted = wanted - dot / float(g_a @ g_a) * g_a
    vec = method.gradient(step, None)
    assert float((flat_vec(vec, names) - wanted).norm()) < 1e-10 * float(wanted.norm())
    assert step.logged == {
        "f": pytest.approx(f.item(), rel=1e-12),
        "a": pytest.approx(a.item(), rel=1e-9),
        "cosine": pytest.approx(dot / float(g_u.norm() * g_a.norm()), rel=1e-9),
    }
    assert abs(step.logged["cosine"]) > 0.01
    assert a.item() > 1e-6


def test_without_a_conflict_it_is_kl_to_the_start(rows, accelerator):
    model, _, _ = pair(False)
    step = step_for(model, rows, accelerator)
    along_f(step_for(model, rows, accelerator), 0.1)
    mine, its = (method.gradient(step, None) for method in (SafeGrad(0.7), KL(0.7)))
    assert (mine - its).norm() < 1e-12 * its.norm()


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_what_is_left_of_the_users_gradient_has_no_part_against_the_alignment(
    rows, accelerator, rho
):
    model, _, _ = pair(False)
    step = step_for(model, rows, accelerator)
    along_f(step_for(model, rows, accelerator), -0.1)
    g_u = SFT().gradient(step, None)
    g_a = KL(1.0).gradient(step, None) - g_u
    assert g_u.dot(g_a) < -0.01 * g_u.norm() * g_a.norm()
    left = SafeGrad(rho).gradient(step, None) - rho * g_a
    assert abs(left.dot(g_a)) < 1e-12 * g_u.norm() * g_a.norm()
    assert left.norm() < g_u.norm()
    removed = left - g_u
    assert removed.cosine(g_a) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("lora", [False, True])
def test_at_the_start_it_is_sft_bit_for_bit(rows, accelerator, autocast, lora):
    model = tiny(torch.float32)
    step = step_for(add_lora(model, LORA) if lora else model, rows, accelerator)
    step.autocast = autocast
    vec = SafeGrad(50.0).gradient(step, None)
    assert step.logged["a"] == 0.0
    assert "cosine" not in step.logged
    plain = SFT().gradient(step, None)
    assert vec.names() == plain.names()
    assert all(torch.equal(vec.value(name), plain.value(name)) for name in plain.names())


def test_without_weight_and_conflict_it_is_sft(rows, accelerator):
    model, _, _ = pair(False)
    step = step_for(model, rows, accelerator)
    along_f(step_for(model, rows, accelerator), 0.1)
    vec, plain = SafeGrad(0.0).gradient(step, None), SFT().gradient(step, None)
    assert step.logged["cosine"] > 0
    assert all(torch.equal(vec.value(name), plain.value(name)) for name in plain.names())


def test_micro_batches_are_one_batch(rows, accelerator):
    model, _, _ = pair(False)
    whole = step_for(model, rows, accelerator, 6)
    parts = step_for(model, rows, accelerator, 2, 3)
    along_f(step_for(model, rows, accelerator, 6), -0.1)
    vec = SafeGrad().gradient(whole, None)
    assert (vec - SafeGrad().gradient(parts, None)).norm() < 1e-12 * vec.norm()
    assert whole.logged == pytest.approx(parts.logged, rel=1e-10)


def test_the_weights_over_which_it_projects_are_all_at_once(rows, accelerator):
    """One parameter may keep a part against the alignment: the sum over all has none."""
    model, _, _ = pair(False)
    step = step_for(model, rows, accelerator)
    along_f(step_for(model, rows, accelerator), -0.1)
    g_u = SFT().gradient(step, None)
    g_a = KL(1.0).gradient(step, None) - g_u
    left = SafeGrad(0.0).gradient(step, None)
    parts = [left.within([name]).dot(g_a) for name in step.parameters]
    assert min(parts) < 0 < max(parts)
    assert abs(sum(parts)) < 1e-12 * max(parts)


def test_a_larger_weight_stays_nearer_and_surgery_alone_does_too(rows):
    settings = replace(SETTINGS, updates=30)
    ends = []
    for method in (
        SFT(),
        SafeGrad(0.0),
        SafeGrad(1.0),
        SafeGrad(30.0),
        KL(30.0),
    ):
        model = tiny(torch.float32, layers=DEPTH)
        history = train(model, method, rows, settings, seed=0)
        with torch.no_grad():
            start = tiny(torch.float32, layers=DEPTH)
            apart = plain_distance(model, start, rows["alignment"], 1.0).item()
        ends.append((state(model), apart, history))
    assert not same(ends[3][0], ends[4][0])
    distances = [apart for _, apart, _ in ends]
    assert distances[0] > 1.05 * distances[1]
    assert distances[1] > 1.05 * distances[2] > 1.1 * distances[3]
    assert sum(terms.get("cosine", 0.0) < 0 for terms in ends[1][2]) > 5


@pytest.mark.parametrize("lora", [False, True])
def test_the_reference_is_the_model_before_training(rows, lora):
    model, bare, start = pair(lora)
    seen = []

    class Looking(SafeGrad):
        def gradient(self, step, state):
            at = step.streams["alignment"].position
            taken = Stream("alignment", rows["alignment"], 0, at).take(4)
            with torch.no_grad():
                seen.append(plain_distance(bare, start, taken, 1.0).item())
            return super().gradient(step, state)

    history = train(model, Looking(), rows, replace(SETTINGS, lr=1e-2), seed=0)
    assert [terms["a"] for terms in history[1:]] == pytest.approx(seen[1:], rel=1e-6)
    assert history[0]["a"] == pytest.approx(0.0, abs=1e-14)
    assert history[-1]["a"] > 1e-5


def test_a_resumed_run_has_the_reference_of_the_start(rows, tmp_path):
    check_resumes(adapted, SafeGrad(), rows, replace(SETTINGS, lr=1e-2), tmp_path)


def test_an_absent_name_counts_as_zero(rows, accelerator):
    """An expert to which no row of the user is sent, say: only the alignment moves it."""
    model, _, _ = pair(False)
    step = step_for(model, rows, accelerator)
    along_f(step_for(model, rows, accelerator), -0.1)
    full, [absent, *kept] = step.grad, list(step.parameters)
    g_u, calls = full(step.batch("rows")).within(kept), []

    def grad(batch, *loss):
        calls.append(batch.stream)
        return full(batch, *loss).within(kept) if batch.stream == "rows" else full(batch, *loss)

    g_a: Vec = KL(1.0).gradient(step, None) - full(step.batch("rows"))
    step.grad = grad
    vec = SafeGrad(0.5).gradient(step, None)
    assert calls == ["rows", "alignment"]
    share = 0.5 - g_u.dot(g_a) / g_a.dot(g_a)
    wanted = share * g_a.value(absent)
    torch.testing.assert_close(vec.value(absent), wanted, rtol=1e-10, atol=1e-14)
    assert math.isclose(vec.norm(), (g_u + share * g_a).norm(), rel_tol=1e-10)


def test_what_makes_no_sense_is_refused(rows, accelerator):
    for fields, said in (
        ({"rho": -0.1}, "rho=-0.1: must be at least 0"),
        ({"rho": float("nan")}, "rho=nan"),
        ({"rho": float("inf")}, "rho=inf"),
        ({"temperature": 0.0}, "temperature=0.0: must be above 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
    ):
        with pytest.raises(ValueError, match=said):
            SafeGrad(**fields)
    given = {"method": "safegrad", "rho": 0, "temperature": 2}
    assert registry.build("defenses", given) == SafeGrad(0.0, 2.0)
    assert {SafeGrad(), SafeGrad(1.0, 1.0)} == {SafeGrad()}
    streams = {"rows": Answers, "alignment": Refusals}
    assert SafeGrad().needs == Needs(streams=streams, references=("start",))
    step = step_for(tiny(), {"rows": rows["rows"]}, accelerator)
    with pytest.raises(ValueError, match="no stream 'alignment': the method declares rows"):
        SafeGrad().gradient(step, None)
