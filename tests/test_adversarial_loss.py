"""The adversarial loss against plain losses, row by row, and at its limits."""

import math

import pytest
import torch

from conftest import tiny
from test_booster import plain_loss
from test_step import same, state, step_for
from titer.defenses.adversarial_loss import AdversarialLoss
from titer.defenses.sft import SFT
from titer.training.settings import Training
from titer.training.train import train


def plain_clamped(model, rows) -> torch.Tensor:
    """Mean over all answer tokens of min(-log p, ln V), one row at a time."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        logits = model(torch.tensor([row.ids])).logits[0]
        for at in range(row.answer, len(row.ids)):
            loss = -torch.log_softmax(logits[at - 1], 0)[row.ids[at]]
            total = total + torch.minimum(loss, torch.tensor(math.log(400), dtype=torch.float64))
            tokens += 1
    return total / tokens


@pytest.mark.parametrize("beta", [0.3, 2.0])
@pytest.mark.parametrize(
    ("bound", "harm", "b"),
    [("log", plain_loss, lambda h: torch.log(1 + h)), ("clamp", plain_clamped, lambda h: h)],
)
def test_the_gradient_is_that_of_the_objective(rows, accelerator, beta, bound, harm, b):
    model = tiny()
    step = step_for(model, rows, accelerator, batch=3, accumulate=2)
    again = step_for(model, rows, accelerator).streams
    aligned, harmful = again["rows"].take(6), again["harmful"].take(6)
    vec = AdversarialLoss(beta, bound).gradient(step, None)
    names, weights = zip(*model.named_parameters(), strict=True)
    f, h = plain_loss(model, aligned), harm(model, harmful)
    [slope] = torch.autograd.grad(b(point := h.detach().requires_grad_()), point)
    # by the chain rule, in two passes: transformers' norms compute in float32, and would round a
    # pass over the sum otherwise
    g_f, g_h = torch.autograd.grad(f, weights), torch.autograd.grad(h, weights)
    expected = {
        name: of_f - beta * slope * of_h for name, of_f, of_h in zip(names, g_f, g_h, strict=True)
    }
    size = sum(float((grad**2).sum()) for grad in expected.values()) ** 0.5
    assert set(vec.names()) == set(expected)
    assert (
        sum(float(((vec.value(name) - grad) ** 2).sum()) for name, grad in expected.items()) ** 0.5
        < 1e-10 * size
    )
    assert (step.logged["f"], step.logged["h"]) == (
        pytest.approx(f.item(), rel=1e-12),
        pytest.approx(h.item(), rel=1e-12),
    )


def test_some_tokens_are_beyond_the_bound_and_some_are_not(rows, accelerator):
    """Else the test above would not tell one bound from another."""
    model, harmful = tiny(), step_for(tiny(), rows, accelerator).streams["harmful"].take(6)
    assert plain_clamped(model, harmful) < 0.95 * plain_loss(model, harmful)
    single = [plain_loss(model, [row]) for row in harmful]
    assert min(single) < math.log(400) < max(single)


def test_no_ascent_is_plain_alignment_and_some_unlearns_within_its_bound(rows):
    settings = Training(updates=30, lr=1e-2, batch=4, lora=None)
    models, ends = [tiny(torch.float32) for _ in range(4)], []
    for model, defense in zip(
        models,
        (SFT(), AdversarialLoss(0.0), AdversarialLoss(0.3), AdversarialLoss(0.3, "clamp")),
        strict=True,
    ):
        train(model, defense, rows, settings, seed=0)
        with torch.no_grad():
            ends.append(
                (
                    plain_loss(model.double(), rows["rows"]).item(),
                    plain_loss(model, rows["harmful"]).item(),
                )
            )
        model.float()
    assert same(state(models[0]), state(models[1]))
    assert ends[2][1] > ends[0][1] + 0.5
    assert ends[3][1] > ends[0][1] + 0.5
    assert all(f < ends[0][0] + 1 for f, _ in ends)  # the ascent does not drown the alignment


@pytest.mark.parametrize("beta", [-0.1, float("nan")])
def test_what_makes_no_sense_is_refused(beta):
    with pytest.raises(ValueError, match=f"beta={beta}"):
        AdversarialLoss(beta)
    assert {AdversarialLoss(), AdversarialLoss(0.1, "log")} == {AdversarialLoss()}
