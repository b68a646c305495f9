"""KL to the start against a plain computation, token by token, and at its limits."""

import math
from dataclasses import replace

import pytest
import torch

from conftest import tiny
from test_booster import plain_loss
from test_repnoise import _norms_in_float64  # noqa: F401  a gradient of both terms is a sum
from test_step import same, state, step_for
from titer import registry, testing
from titer.data.batches import Stream
from titer.defenses.kl import KL, divergence
from titer.defenses.sft import SFT
from titer.methods import Answers, Needs, Refusals
from titer.training.settings import Training
from titer.training.train import train
from titer.weights.adapters import add_lora
from trained import LORA, move, pair

test_contract = testing.contract(KL(on="rows"), KL(7.0))


def plain_divergence(model, start, rows):
    """Average KL(p' || p) over all answer tokens, a row at a time."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        with torch.no_grad():
            before = torch.softmax(start(torch.tensor([row.ids])).logits[0].double(), 1)
        now = torch.log_softmax(model(torch.tensor([row.ids])).logits[0].double(), 1)
        for at in range(row.answer, len(row.ids)):
            p = before[at - 1]
            total = total + (p * (torch.log(p) - now[at - 1])).sum()
            tokens += 1
    return total / tokens


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("on", ["alignment", "rows"])
@pytest.mark.parametrize("lam", [1.0, 7.0])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_gradient_is_that_of_the_objective(rows, accelerator, lora, on, lam, accumulate):
    model, bare, start = pair(lora)
    method = KL(lam, on)
    step = step_for(model, rows, accelerator, batch=3, accumulate=accumulate)
    streams = step_for(model, rows, accelerator).streams
    taken = streams["rows"].take(3 * accumulate)
    held = taken if on == "rows" else streams["alignment"].take(3 * accumulate)
    assert len({len(row.ids) - row.answer for row in held}) > 1  # so that tokens weigh, not rows
    move(model)
    vec = method.gradient(step, method.prepare(step))
    f, k = plain_loss(bare, taken), plain_divergence(bare, start, held)
    names, weights = zip(*step.parameters.items(), strict=True)
    wanted = dict(zip(names, torch.autograd.grad(f + lam * k, weights), strict=True))
    size = math.sqrt(sum(float((grad**2).sum()) for grad in wanted.values()))
    assert set(vec.names()) == set(wanted)
    off = [float(((vec.value(name) - wanted[name]) ** 2).sum()) for name in names]
    assert math.sqrt(sum(off)) < 1e-10 * size
    assert step.logged == {
        "f": pytest.approx(f.item(), rel=1e-12),
        "k": pytest.approx(k.item(), rel=1e-10),
    }
    only = SFT().gradient(step, None)
    assert (vec - only).norm() > 1e-2 * only.norm()
    assert step.streams["alignment"].position == (0 if on == "rows" else 3 * accumulate)


@pytest.mark.parametrize("on", ["alignment", "rows"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("lora", [False, True])
def test_at_the_start_it_is_nothing(rows, accelerator, on, autocast, lora):
    model = tiny(torch.float32)
    step = step_for(add_lora(model, LORA) if lora else model, rows, accelerator)
    step.autocast = autocast
    vec, plain = KL(50.0, on).gradient(step, None), SFT().gradient(step, None)
    assert step.logged["k"] == 0.0
    assert vec.names() == plain.names()
    assert all(torch.equal(vec.value(name), plain.value(name)) for name in plain.names())
    assert step.grad(step.batch("alignment"), divergence(step)).norm() == 0.0


@pytest.mark.parametrize("on", ["alignment", "rows"])
def test_without_weight_it_is_sft_bit_for_bit_and_with_more_predictions_stay_nearer(rows, on):
    ends, distances = [], []
    settings = Training(updates=10, lr=1e-3, batch=2, accumulate=2, lora=None)
    for method in (SFT(), KL(0.0, on), KL(1.0, on), KL(50.0, on)):
        model = tiny(torch.float32)
        history = train(model, method, rows, settings, seed=0)
        ends.append((state(model), history))
        with torch.no_grad():
            apart = plain_divergence(model, tiny(torch.float32), rows[on])
        distances.append(float(apart))
    assert same(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]
    assert not same(ends[0][0], ends[2][0])
    assert distances[1] > 1.05 * distances[2] > 1.2 * distances[3]


@pytest.mark.parametrize("lora", [False, True])
def test_the_reference_is_the_model_before_training(rows, lora):
    model, bare, start = pair(lora)
    seen = []

    class Looking(KL):
        def gradient(self, step, state):
            taken = Stream("alignment", rows["alignment"], 0, step.streams["alignment"].position)
            seen.append(plain_divergence(bare, start, taken.take(2)).item())
            return super().gradient(step, state)

    settings = Training(updates=4, lr=1e-2, batch=2, lora=None)
    history = train(model, Looking(), rows, settings, seed=0)
    assert history[0]["k"] == 0.0
    assert [terms["k"] for terms in history[1:]] == pytest.approx(seen[1:], rel=1e-6)
    assert history[3]["k"] > 1e-5


@pytest.mark.parametrize(("on", "passes"), [("alignment", 3), ("rows", 2)])
def test_logits_are_of_answer_tokens_alone_and_of_one_pass_on_the_users_rows(
    rows, accelerator, on, passes
):
    model, sizes = tiny(), []
    step = step_for(model, rows, accelerator)
    handle = model.lm_head.register_forward_hook(lambda _, __, out: sizes.append(out[0].shape[0]))
    KL(1.0, on).gradient(step, None)
    handle.remove()
    held = step.batch(on).tokens
    assert sizes == ([held] * 2 if on == "rows" else [step.batch("rows").tokens, held, held])
    assert len(sizes) == passes


def test_micro_batches_change_nothing(rows, accelerator):
    for on in ("alignment", "rows"):
        found = []
        for batch, accumulate in ((4, 1), (2, 2), (1, 4)):
            model = tiny()
            step = step_for(model, rows, accelerator, batch, accumulate)
            move(model)
            found.append(KL(3.0, on).gradient(step, None))
        for other in found[1:]:
            assert (found[0] - other).norm() < 1e-12 * found[0].norm()


def test_what_makes_no_sense_is_refused():
    for lam in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"lam={lam}: must be at least 0, and finite"):
            KL(lam)
    assert registry.build("defenses", {"method": "kl", "lam": 0, "on": "rows"}) == KL(0.0, "rows")
    with pytest.raises(ValueError, match="on"):
        registry.build("defenses", {"method": "kl", "on": "harmful"})
    assert {KL(), KL(1.0, "alignment")} == {KL()}
    assert KL().needs == Needs(
        streams={"rows": Answers, "alignment": Refusals}, references=("start",)
    )
    assert replace(KL(), on="rows").needs == Needs(streams={"rows": Answers}, references=("start",))
